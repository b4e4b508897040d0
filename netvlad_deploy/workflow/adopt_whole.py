"""The part of `adopt` that takes a file as it is: any network from images, or features, to one vector."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netvlad_deploy.artifact import FileReference, OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.export.fold_backbone import check_half
from netvlad_deploy.export.foreign.half import halved
from netvlad_deploy.export.foreign.read import ForeignModel
from netvlad_deploy.export.foreign.wrap import fixed_lengths, only_output, wrapped
from netvlad_deploy.export.foreign.write import write_foreign
from netvlad_deploy.oracle.goldens import Golden, load_goldens
from netvlad_deploy.parity.adoption import check_passed
from netvlad_deploy.parity.foreign_goldens import foreign_goldens, peaks_of
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.parity.pipelines import compare_goldens
from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.runtime.foreign_runner import ForeignImageRunner
from netvlad_deploy.runtime.open_runner import Candidate, parity_backend
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import FOREIGN, AggregatorSpec
from netvlad_deploy.support.formats import naming


def adopt_whole(
    model: ForeignModel,
    target: Path,
    parent: FileReference,
    graph: GraphOptions,
    *,
    output: str | None,
    images: ImageInput | None,
    notes: tuple[str, ...],
) -> Adoption:
    """Write a foreign graph as it is, behind the inputs of an artifact; return what was done.

    Args:
        model: the file.
        target: the ONNX file to write.
        parent: the file by its name and hash.
        graph: the options of the graph, of which the precision alone may be another than usual.
        output: the name of its descriptor, where it has several outputs.
        images: the preparation of its images, None if it takes features.
        notes: what was assumed of its input.

    Raises: UsageError for an option of the graph; InputError for a file that cannot be run; ExportError, OutputError.
    """
    if graph not in (GraphOptions(), GraphOptions(precision="fp16")):
        raise UsageError("--no-head keeps the nodes of the file: leave the options of a graph but --precision out")
    name, fixed = only_output(model, output), fixed_lengths(model)
    width = 0 if images is not None else int(model.source_shape[2] or 0)
    goldens, unit = foreign_goldens(wrapped(model, name, images, 1), images, width, fixed, graph.precision)
    size = goldens[0].descriptor.size
    spec = AggregatorSpec(name=FOREIGN, descriptor_size=size, unit_length=unit, feature_size=width, settings=fixed)
    whole = wrapped(model, name, images, size)
    warnings: tuple[str, ...] = ()
    if graph.half:
        whole, warnings = _halved(whole, goldens, fixed)
    nodes = len(whole.graph.node)
    artifact = write_foreign(whole, target, spec, goldens, images, parent, precision=graph.precision, warnings=warnings)
    said = f"taken as it is: its descriptors are {'' if unit else 'not '}of norm 1"
    return Adoption(
        artifact=artifact,
        head="",
        nodes=len(model.proto.graph.node),
        adopted_nodes=nodes,
        notes=(*model.notes, *notes, said),
        proofs=(_proof(artifact, model, name, parent),),
    )


def _halved(model: Any, goldens: tuple[Golden, ...], fixed: Mapping[str, int]) -> tuple[Any, tuple[str, ...]]:
    """Return a wrapped model in FP16, and a warning if its activations come close to where FP16 ends.

    Raises: ExportError if they go beyond.
    """
    half, names = halved(model)
    return half, check_half(peaks_of(model, names, goldens, fixed.get("batch", 1)))


def _proof(artifact: OnnxArtifact, model: ForeignModel, output: str, parent: FileReference) -> ParityReport:
    """Return the comparison of a new file with the old one on golden inputs, which were run in the old one's terms.

    Raises: InputError if they differ.
    """
    goldens, spec = load_goldens(artifact.reference_path), artifact.spec
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(parent.name))
        runner = stack.enter_context(Candidate.of(artifact, backend=parity_backend(artifact)).open())
        old = None
        if artifact.images is not None:
            old = stack.enter_context(ForeignImageRunner(model, output, spec, artifact.images))
        report = compare_goldens(runner, goldens, None, against=old)
        check_passed(report)
    return report
