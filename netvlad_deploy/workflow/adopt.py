"""The verb `adopt`: an ONNX file that others made to an artifact, its NetVLAD in this package's form."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from netvlad_deploy.artifact import FileReference, OnnxArtifact, external_path, reference_path, sidecar_path
from netvlad_deploy.errors import InputError
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.runtime.open_runner import Candidate, parity_backend
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.support.files import check_apart, check_suffix, check_targets, sha256_file, stage_files
from netvlad_deploy.support.formats import naming, reading
from netvlad_deploy.support.require import require
from netvlad_deploy.support.scratch import scratch_folder

if TYPE_CHECKING:
    from netvlad_deploy.export.foreign.read import ForeignModel
    from netvlad_deploy.models.netvlad import NetVLAD
    from netvlad_deploy.parity.adoption import ForeignHead

LOG = logging.getLogger(__name__)

COPY_BLOCK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class AdoptOptions:
    """How a file is adopted.

    Args:
        graph: precision, inputs and outputs of the new graph.
        head: the name of the softmax of its NetVLAD, where there are several.
    """

    graph: GraphOptions = field(default_factory=GraphOptions)
    head: str | None = None


def adopt(source: Path, target: Path, options: AdoptOptions, *, force: bool = False) -> Adoption:
    """Find the NetVLAD in an ONNX file, and write the same network as an artifact, with the head in its usual form.

    What was recovered is believed only because it computes the same: the head of the file, run in FP32, passes the
    cases of `validate` against the oracle with the recovered parameters, and so does the new file against the old.

    >>> from netvlad_deploy import NetVLAD, export_onnx
    >>> exported = export_onnx(NetVLAD(4, 8).eval(), "ours.onnx")
    >>> adopt(exported.path, Path("adopted.onnx"), AdoptOptions())
    Traceback (most recent call last):
    netvlad_deploy.errors.InputError: ours.onnx was made by this package: build, validate and embed take it as it is

    Raises: InputError for a file without a NetVLAD, or with one that this package cannot express; UsageError,
        OutputError and MissingDependencyError before it is read.
    """
    check_targets(check_suffix(target, ".onnx"), sidecar_path(target), reference_path(target), force=force)
    check_apart(target, [source], "target")
    for package, extra in (("torch", "export"), ("onnx", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")):
        require(package, extra=extra)
    from netvlad_deploy.export.foreign.read import read_foreign
    from netvlad_deploy.export.foreign.sites import find_site
    from netvlad_deploy.parity.adoption import prove_head

    with reading(source):
        parent = FileReference(name=source.name, sha256=sha256_file(source))
    model = read_foreign(source)
    with naming(source):
        found = prove_head(model, find_site(model, name=options.head))
        layout = _features_alone(model, found)
    with _kept_if_proven(target, force=force) as trial:
        artifact = _export(found, trial, options.graph, parent)
        with naming(source):
            against = _against(artifact, found)
        adopted = _count(trial)
    notes = (*model.notes, *found.notes, *layout)
    for note in notes:
        LOG.info("%s", note)
    return Adoption(
        artifact=replace(artifact, path=target),
        head=found.site.name,
        nodes=len(model.proto.graph.node),
        adopted_nodes=adopted,
        notes=notes,
        proofs=(
            replace(found.proof, candidate=f"the head of {source.name}"),
            replace(against, candidate=target.name, reference=source.name),
        ),
    )


def _features_alone(model: "ForeignModel", found: "ForeignHead") -> tuple[str, ...]:
    """Return a note on how the new input differs from the old, after checking that the head is all of the file.

    Raises: InputError if something else than layout stands before the head.
    """
    from netvlad_deploy.export.foreign.paths import LAYOUT
    from netvlad_deploy.export.foreign.read import CURE

    paths = found.site.paths
    before = {node.op_type for node in paths.between(model.source, found.start.tensor)} - LAYOUT
    if before:
        raise InputError(f"before its NetVLAD it computes {', '.join(sorted(before))}, expected features; {CURE}")
    shape = "x".join("?" if length is None else str(length) for length in model.source_shape)
    return (f"the file takes {shape}, the new one features (batch, num_features, {found.site.feature_size})",)


def _module(found: "ForeignHead") -> "NetVLAD":
    """Return the recovered layer as the reference module."""
    from netvlad_deploy.models.head import Head

    torch = require("torch", extra="export")
    tensors = {name: torch.from_numpy(value.copy()) for name, value in found.layer.tensors.items()}
    return Head(spec=found.layer.spec, tensors=tensors).module(found.site.name)


def _export(found: "ForeignHead", target: Path, options: GraphOptions, parent: FileReference) -> OnnxArtifact:
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(_module(found), target, options, origin=parent.name, parent=parent)


def _against(artifact: OnnxArtifact, found: "ForeignHead") -> ParityReport:
    """Return the comparison of a new file with the head of the old.

    Raises: InputError if they differ.
    """
    from netvlad_deploy.parity.adoption import check_passed

    with Candidate.of(artifact, backend=parity_backend(artifact)).open() as runner:
        report = compare(runner, found.layer.parameters(), against=found.runner, cases=found.cases)
    check_passed(report)
    return report


def _count(path: Path) -> int:
    """Return the number of nodes of an ONNX file."""
    onnx = require("onnx", extra="export")
    return len(onnx.load(str(path), load_external_data=False).graph.node)


@contextlib.contextmanager
def _kept_if_proven(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield a path to write an artifact to; its files become those of the target at the end, unless there is an error.

    Raises: UsageError or OutputError if the target cannot be written.
    """
    with scratch_folder() as folder:
        trial = folder / target.name
        yield trial
        with stage_files(force=force) as staging:
            for path in (trial, sidecar_path(trial), reference_path(trial), external_path(trial)):
                if path.exists():
                    staging.write(target.with_name(path.name), _blocks(path))


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in blocks."""
    with path.open("rb") as stream:
        while block := stream.read(COPY_BLOCK_BYTES):
            yield block
