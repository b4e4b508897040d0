"""Find the NetVLAD in a foreign graph, by its structure.

The anchor is a softmax over the columns of a product of local descriptors with a constant matrix. The local descriptors
are the last tensor before it that all data passes through; the descriptor is the last one after it, before a projection
if one follows. What lies between is not read: `recover` measures it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign.paths import LAYOUT, REARRANGED, Paths
from netvlad_deploy.export.foreign.products import Affine, followed, product_of, vector
from netvlad_deploy.export.foreign.read import CURE, ForeignModel

NORM_MARKS: Final = frozenset(("ReduceL2", "ReduceSumSquare", "LpNormalization", "Sqrt", "Pow"))
"""Operators of which an L2 normalisation has at least one."""

NORM_OPS: Final = NORM_MARKS | {"ReduceSum", "Clip", "Max", "Mul", "Div", "Add", "Reciprocal", "Abs", "Constant"}
"""Operators of which an L2 normalisation may be written."""

BURST: Final = "Sigmoid"
"""Operator that weighs local descriptors by how often they occur. Source: Ahmedest61/VLAD-BuFF, vlad_buff.py."""

BRANCHES: Final = frozenset(
    (
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Not", "And", "Or", "Xor"),
        *("ArgMax", "ArgMin", "TopK", "OneHot", "NonZero", "Compress", "CumSum", "Trilu", "Unique"),
        *("Sign", "Floor", "Ceil", "Round", "Mod", "IsNaN", "IsInf"),
    )
)
"""Operators by which a graph treats some values in another way than others: what is tried says nothing of all."""

SHAPED: Final = frozenset(("Expand", "Reshape", "Tile", "ScatterND", "Slice", "Unsqueeze", "Squeeze", "Gather"))
"""Operators whose first input alone has values that go on; the others are shapes, axes and places."""

MOST_FLOOR: Final = 1e-5
"""Largest constant that keeps the norm of a projected descriptor from 0: larger ones change descriptors."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """A tensor at which a head may begin, and whether it L2-normalises what it is given there."""

    tensor: str
    normalize_input: bool


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A projection after a head: `product` with a matrix (K*D,P), and L2-normalisation of the result if `l2`."""

    product: Affine
    l2: bool


@dataclass(frozen=True, kw_only=True)
class Site:
    """The place of a NetVLAD in a graph.

    Args:
        name: the name of its softmax.
        paths: the graph up to the output that it leads to.
        logits: the map from local descriptors to assignment logits (K+G,).
        starts: where the head may begin, the likeliest first.
        aggregate: the tensor of its flattened, L2-normalised vector.
        tail: the projection after it, None if there is none.
        operators: the operators between the local descriptors and the aggregate.
        constants: the names of all constants that these use.
    """

    name: str
    paths: Paths
    logits: Affine
    starts: tuple[Start, ...]
    aggregate: str
    tail: Tail | None
    operators: frozenset[str]
    constants: tuple[str, ...]

    @property
    def feature_size(self) -> int:
        """Return D."""
        return int(self.logits.weight.shape[0])


def find_site(model: ForeignModel, *, name: str | None = None) -> Site:
    """Return the one place in a model that has the structure of a NetVLAD.

    `name` chooses among several, by the name of the softmax or of the output that it leads to.

    Raises: InputError if there is none, or there are several and none is named; or if what follows is no projection.
    """
    outputs = [output.name for output in model.proto.graph.output]
    if name in outputs:
        outputs, name = [name], None
    found: dict[str, tuple[Paths, Any, Affine]] = {}
    leads: dict[str, list[str]] = {}
    for output in outputs:
        paths = Paths(model.proto.graph, model.source, output, model.opset)
        for node in paths.nodes:
            logits = _logits(paths, node)
            if logits is not None and _bypassed(paths, node, logits):
                head = node.name or node.output[0]
                found.setdefault(head, (paths, node, logits))
                leads.setdefault(head, []).append(output)
    if not found:
        raise InputError(
            "it has no NetVLAD: no softmax over the columns of a product with a constant matrix, beside which the same "
            f"values go on; {CURE}"
        )
    joined = len({paths.output for paths, _, _ in found.values()}) < len(found)
    if len(found) > 1 and joined:
        raise InputError(f"it has {len(found)} NetVLADs in one descriptor, {', '.join(found)}, expected one; {CURE}")
    if name is None and len(found) > 1:
        raise InputError(f"it has {len(found)} NetVLADs, {', '.join(found)}: choose one with --head NAME")
    if name is not None and name not in found:
        raise InputError(f"it has no NetVLAD {name!r}, but {', '.join(found)}: choose that with --head")
    chosen = name or next(iter(found))
    if len(leads[chosen]) > 1:
        said = ", ".join(leads[chosen])
        raise InputError(f"its NetVLAD leads to {len(leads[chosen])} outputs, {said}: choose one with --head NAME")
    return _site(chosen, *found[chosen])


def _logits(paths: Paths, node: Any) -> Affine | None:
    """Return the map to the logits of a softmax, or of an exponential that begins one; None for any other node."""
    if node.op_type not in ("Softmax", "LogSoftmax", "Exp") or not paths.inputs(node):
        return None
    name = paths.inputs(node)[0]
    if node.op_type == "Exp":
        maker = paths.makers.get(name)
        if maker is None or maker.op_type == "LogSoftmax":
            return None
        name = maker.input[0] if maker.op_type == "Sub" and len(paths.inputs(maker)) == 2 else name
    steps: list[Any] = list(paths.affine(name, lambda each: product_of(paths, each) is not None))
    product = product_of(paths, steps[-1]) if steps else None
    return None if product is None else followed(paths, product, reversed(steps[:-1]))


def _bypassed(paths: Paths, node: Any, logits: Affine) -> bool:
    """Return True if data goes past a softmax: then no tensor between its product and itself is a gate."""
    first, last = paths.position(logits.node.output[0]), paths.position(node.output[0])
    return not any(first <= paths.position(gate) <= last for gate in paths.gates)


def _site(name: str, paths: Paths, node: Any, logits: Affine) -> Site:
    softmax = paths.position(node.output[0])
    before = [gate for gate in paths.gates if paths.position(gate) < softmax]
    after = [gate for gate in paths.gates if paths.position(gate) > softmax]
    aggregate, tail = _end(paths, after, softmax, logits)
    nodes = paths.between(before[-1], aggregate)
    if strange := sorted(set(_branches(paths, nodes))):
        raise InputError(
            f"between its local descriptors and its descriptor it computes {', '.join(strange)}, by which it may treat "
            f"some inputs in another way than those that are tried, expected none of these; {CURE}"
        )
    return Site(
        name=name,
        paths=paths,
        logits=logits,
        starts=_starts(paths, before),
        aggregate=aggregate,
        tail=tail,
        operators=frozenset(each.op_type for each in nodes),
        constants=tuple(_constants(paths, nodes)),
    )


def _branches(paths: Paths, nodes: Sequence[Any]) -> Iterator[str]:
    """Yield the operators of BRANCHES among nodes, and among those that make the factors and terms of these nodes.

    A shape is no factor: operators that compute one are passed over.
    """
    yield from (node.op_type for node in nodes if node.op_type in BRANCHES)
    factors = [node for node in nodes if node.op_type in ("Add", "Sub", "Mul", "Div")]
    for name in _beside_data(paths, factors, lambda maker: maker.input[:1] if maker.op_type in SHAPED else maker.input):
        kind = paths.makers[name].op_type if name in paths.makers else ""
        if kind in BRANCHES or kind == "Range":
            yield kind


def _constants(paths: Paths, nodes: Iterable[Any]) -> Iterator[str]:
    """Return the names of the constants that nodes use, and of those from which they are computed."""
    return (name for name in _beside_data(paths, nodes, lambda maker: maker.input) if name in paths.constants)


def _beside_data(paths: Paths, nodes: Iterable[Any], inputs: Callable[[Any], Iterable[str]]) -> Iterator[str]:
    """Yield the inputs of nodes that are no data, and all that they are made of; `inputs` gives those of a maker."""
    pending = [name for node in nodes for name in node.input if name not in paths.data]
    done: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in done:
            done.add(name)
            yield name
            pending += inputs(paths.makers[name]) if name in paths.makers else ()


def _is_norm(operators: Iterable[str]) -> bool:
    operators = set(operators)
    return operators <= NORM_OPS | LAYOUT and bool(operators & NORM_MARKS)


def _starts(paths: Paths, before: list[str]) -> tuple[Start, ...]:
    """Return where the head may begin: before an L2 normalisation of its input, or right after it."""
    plain = first = before[-1]
    normalized = False
    for last, gate in zip(reversed(before), reversed(before[:-1]), strict=False):
        operators = {node.op_type for node in paths.between(gate, last)}
        if operators <= REARRANGED:
            first = gate
            plain = plain if normalized else gate
        elif _is_norm(operators) and operators <= NORM_OPS | REARRANGED | {"Expand"}:
            first, normalized = gate, True
        else:
            break
    starts = (Start(tensor=first, normalize_input=True), Start(tensor=plain, normalize_input=False))
    return starts if normalized else starts[1:]


def _end(paths: Paths, after: list[str], softmax: int, logits: Affine) -> tuple[str, Tail | None]:
    """Return the tensor of the aggregate, and the projection that follows it, if any."""
    width = logits.weight.shape[0]
    for index, node in enumerate(paths.nodes[softmax + 1 :], softmax + 1):
        product = product_of(paths, node)
        if product is None or product.weight.shape[0] % width:
            continue
        aggregate = [gate for gate in after if paths.position(gate) < index][-1:]
        if aggregate:
            return aggregate[0], _tail(paths, aggregate[0], product)
    return paths.output, None


def _tail(paths: Paths, aggregate: str, product: Affine) -> Tail:
    """Return the projection from the aggregate to the output.

    Raises: InputError if something else stands there, too.
    """
    nodes = paths.between(aggregate, paths.output)
    place = next(index for index, node in enumerate(nodes) if node is product.node)
    for node in nodes[:place]:
        product = _shifted(paths, product, node)
    rest = nodes[place + 1 :]
    steps = 0
    while steps < len(rest) and (longer := followed(paths, product, rest[steps : steps + 1])) is not None:
        product, steps = longer, steps + 1
    operators = [node.op_type for node in rest[steps:]]
    if operators and not _is_norm(operators):
        others = sorted(set(operators) - NORM_OPS - LAYOUT) or sorted(set(operators))
        raise InputError(
            f"after its NetVLAD and the projection it computes {', '.join(others)}, expected an L2 normalisation or "
            f"nothing; {CURE}"
        )
    _check_floor(paths, rest[steps:])
    return Tail(product=product, l2=bool(operators))


def _check_floor(paths: Paths, nodes: Iterable[Any]) -> None:
    """Raise InputError if an L2 normalisation keeps norms from 0 by a constant that is seen in usual descriptors."""
    for node in nodes:
        constants = [paths.constant(name) for name in node.input[1:2]] if node.op_type in ("Clip", "Max", "Add") else []
        floors = [float(np.max(each)) for each in constants if each is not None and each.size]
        floors += [each.f for each in node.attribute if node.op_type == "Clip" and each.name == "min"]
        if max(floors, default=0.0) > MOST_FLOOR:
            raise InputError(
                f"after its projection norms are kept from 0 by {max(floors):g}, expected {MOST_FLOOR:g} at most; "
                f"{CURE}"
            )


def _shifted(paths: Paths, product: Affine, node: Any) -> Affine:
    """Return a product whose input first passes a node: the mean that a whitening subtracts becomes its bias.

    Raises: InputError if the node does anything else.
    """
    if node.op_type in LAYOUT:
        return product
    other = next((name for name in node.input if name not in paths.data), "")
    mean = vector(paths.constant(other), product.weight.shape[0])
    if node.op_type not in ("Add", "Sub") or mean is None or node.input[0] not in paths.data:
        raise InputError(f"between its NetVLAD and the projection it computes {node.op_type}, expected a mean; {CURE}")
    term = (mean if node.op_type == "Add" else -mean) @ product.weight.astype("float64")
    return product.plus(term if product.scale is None else term * product.scale)
