"""The drawing of an ONNX graph: what follows the local descriptors node by node, a backbone as one box.

Nodes in a chain share a box. Boxes stand in layers from the inputs down, each below all that it needs, and a line that
passes a layer has a place of its own there, in the order of what it comes from.
Source: Sugiyama, Tagawa and Toda 1981, "Methods for visual understanding of hierarchical system structures".
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree as ET

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.report.page import Block, Figure, Grid, Paragraph
from netvlad_deploy.report.plots import PALETTE, Drawn
from netvlad_deploy.spec.images import LOCAL_DESCRIPTORS
from netvlad_deploy.support.require import require

MOST_NODES: Final = 120
"""Most nodes that are drawn; of a larger graph the operators are counted."""

LEAST_WIDTH, LAYER, BOX_HEIGHT, LETTER, BETWEEN = 360.0, 40.0, 22.0, 5.6, 14.0
"""Lengths of the drawing: its width, from one layer to the next, the height of a box, a letter, between two boxes."""

MOST_IN_BOX: Final = 4
"""Most nodes of a chain in one box."""

PASSING: Final = 8.0
"""Width of the place of a line that passes a layer."""


@dataclass
class Box:
    """A box, or the place of a line that passes a layer: its text, what it takes lines from, its place."""

    text: str
    sources: list["Box"] = field(default_factory=list)
    layer: int = 0
    x: float = 0.0

    @property
    def width(self) -> float:
        """Return the width of the box."""
        return len(self.text) * LETTER + 14 if self.text else PASSING


def graph_block(artifact: OnnxArtifact) -> Block:
    """Return the drawing of an artifact's graph, or a sentence or a table in its place; where onnx is missing, too.

    Raises: ArtifactError if the file is another one now.
    """
    try:
        onnx = require("onnx", extra="strict")
    except MissingDependencyError as error:
        return Paragraph(f"The graph is not drawn: {error}")
    graph = onnx.load_model_from_string(artifact.content()).graph
    nodes, folded = _below_backbone(graph.node)
    if len(nodes) > MOST_NODES:
        counts = Counter(node.op_type for node in nodes).most_common()
        return Grid(("operator", "nodes"), [(name, str(count)) for name, count in counts])
    boxes = _boxes(nodes, artifact.inputs, artifact.outputs, folded)
    whole = f"{len(graph.node)} nodes, {folded} of them in the backbone" if folded else f"{len(graph.node)} nodes"
    return Figure(
        Drawn(svg=_svg(_layers(boxes))),
        alt=f"The graph from {', '.join(artifact.inputs)} to {', '.join(artifact.outputs)}: {whole}",
        caption=f"The graph: {whole}. Nodes in a chain share a box, and weights are left out.",
    )


def _below_backbone(nodes: Sequence[Any]) -> tuple[list[Any], int]:
    """Return the nodes below the local descriptors, and the number of the others; all nodes where there are none."""
    makers = {name: node for node in nodes for name in node.output}
    if LOCAL_DESCRIPTORS not in makers:
        return list(nodes), 0
    above, todo = {LOCAL_DESCRIPTORS}, [LOCAL_DESCRIPTORS]
    while todo:
        node = makers.get(todo.pop())
        fresh = [name for name in (node.input if node else ()) if name not in above]
        above.update(fresh)
        todo += fresh
    head = [node for node in nodes if not above & set(node.output)]
    return head, len(nodes) - len(head)


def _boxes(nodes: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str], folded: int) -> list[Box]:
    """Return the boxes of inputs, backbone, chains of nodes and outputs, each after all that it takes lines from."""
    made = {name: Box(name) for name in inputs}
    boxes = list(made.values())
    if folded:
        backbone = Box(f"backbone, {folded} nodes", list(boxes))
        boxes.append(backbone)
        made[LOCAL_DESCRIPTORS] = backbone
    users = Counter(name for node in nodes for name in set(node.input))
    length: dict[int, int] = {}
    for node in nodes:
        sources = list({id(made[name]): made[name] for name in node.input if name in made}.values())
        before = [name for name in node.input if name in made]
        box = sources[0] if len(sources) == 1 else None
        if (
            box
            and length.get(id(box), MOST_IN_BOX) < MOST_IN_BOX
            and users[before[0]] == 1
            and before[0] not in outputs
        ):
            box.text += f", {node.op_type}"
        else:
            box = Box(node.op_type, sources)
            boxes.append(box)
        length[id(box)] = length.get(id(box), 0) + 1
        made |= dict.fromkeys(node.output, box)
    return boxes + [Box(name, [made[name]]) for name in outputs if name in made]


def _layers(boxes: Iterable[Box]) -> list[list[Box]]:
    """Return the boxes in layers from the top, and the places of the lines that pass a layer; each gets its place."""
    layers: list[list[Box]] = []

    def put(box: Box, layer: int) -> None:
        box.layer = layer
        while len(layers) <= layer:
            layers.append([])
        layers[layer].append(box)

    passing: dict[tuple[int, int], Box] = {}
    for box in boxes:
        put(box, max((source.layer + 1 for source in box.sources), default=0))
        for place, source in enumerate(box.sources):
            above = source
            for passed in range(source.layer + 1, box.layer):
                key = id(source), passed
                if key not in passing:
                    passing[key] = Box("", [above])
                    put(passing[key], passed)
                above = passing[key]
            box.sources[place] = above
    for layer in layers:
        _spread(layer)
    return layers


def _spread(layer: list[Box]) -> None:
    """Place the boxes of a layer side by side, each as near as may be to the middle of what it takes lines from."""
    wanted = {id(box): sum(each.x for each in box.sources) / max(1, len(box.sources)) for box in layer}
    layer.sort(key=lambda box: wanted[id(box)])
    left = -math.inf
    for box in layer:
        box.x = max(wanted[id(box)], left + box.width / 2)
        left = box.x + box.width / 2 + BETWEEN
    moved = sum(box.x - wanted[id(box)] for box in layer) / len(layer)
    for box in layer:
        box.x -= moved


def _svg(layers: Sequence[Sequence[Box]]) -> str:
    """Return the drawing as an `<svg>`: lines first, boxes on them."""
    boxes = [box for layer in layers for box in layer]
    left = min(box.x - box.width / 2 for box in boxes)
    right = max(box.x + box.width / 2 for box in boxes)
    width = max(LEAST_WIDTH, right - left + 2)
    view = f"{(left + right - width) / 2:.1f} 0 {width:.1f} {LAYER * len(layers):g}"
    svg = ET.Element("svg", {"viewBox": view, "xmlns": "http://www.w3.org/2000/svg"})
    for box in boxes:
        end = LAYER * box.layer + 2
        for source in box.sources:
            start = LAYER * source.layer + 2 + BOX_HEIGHT
            bend = (start + end) / 2
            path = f"M{source.x:.1f} {start:g}C{source.x:.1f} {bend:g} {box.x:.1f} {bend:g} {box.x:.1f} {end:g}"
            path += "" if box.text else f"V{end + BOX_HEIGHT:g}"
            ET.SubElement(svg, "path", {"d": path, "style": _style("none", "pale")})
    for box in boxes:
        if box.text:
            _draw_box(svg, box, plain=not box.sources or not box.text[0].isupper())
    return ET.tostring(svg, encoding="unicode")


def _draw_box(svg: ET.Element, box: Box, *, plain: bool) -> None:
    """Draw a box of nodes, or in another colour that of an input, an output or a backbone."""
    top = LAYER * box.layer + 2
    place: Mapping[str, float] = {"x": box.x - box.width / 2, "y": top, "width": box.width, "height": BOX_HEIGHT}
    style = _style("card", "first" if plain else "line")
    ET.SubElement(svg, "rect", {**{name: f"{value:.1f}" for name, value in place.items()}, "rx": "4", "style": style})
    middle = {"x": f"{box.x:.1f}", "y": f"{top + 15:g}", "text-anchor": "middle"}
    text = ET.SubElement(svg, "text", {**middle, "style": f"font-size: 10.5px; fill: {PALETTE['ink'][0]}"})
    text.text = printable(box.text)


def _style(fill: str, stroke: str) -> str:
    inside = fill if fill == "none" else PALETTE[fill][0]
    return f"fill: {inside}; stroke: {PALETTE[stroke][0]}"
