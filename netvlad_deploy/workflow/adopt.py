"""The verb `adopt`: an ONNX file that others made to an artifact, its NetVLAD in this package's form."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from netvlad_deploy.artifact import FileReference, OnnxArtifact, external_path, reference_path, sidecar_path
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.oracle.goldens import load_goldens
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.parity.pipelines import compare_goldens
from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.runtime.open_runner import Candidate, parity_backend
from netvlad_deploy.spec.graph_options import INPUT_KINDS, GraphOptions
from netvlad_deploy.spec.images import CHANNELS, IMAGES, NO_CHANGES, ImageChanges, ImageInput, Resize
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.support.files import check_apart, check_suffix, check_targets, stage_files
from netvlad_deploy.support.formats import naming
from netvlad_deploy.support.limits import check_choice
from netvlad_deploy.support.require import require
from netvlad_deploy.support.scratch import scratch_folder

if TYPE_CHECKING:
    from netvlad_deploy.export.foreign.read import ForeignModel
    from netvlad_deploy.models.aggregators.base import Aggregator
    from netvlad_deploy.models.netvlad import NetVLAD
    from netvlad_deploy.models.pipeline import Pipeline
    from netvlad_deploy.parity.adoption import ForeignHead

COPY_BLOCK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class AdoptOptions:
    """How a file is adopted.

    Args:
        graph: precision, inputs and outputs of the new graph.
        head: the name of the softmax of its NetVLAD, or of the output that it leads to, where there are several; of a
            file as it is, that of its output.
        whole: take the file as it is, whatever it computes.
        takes: `features` to take the head of a file of images alone; None for all of a file.
        mean: mean of R, G and B from 0 to 255 that is subtracted from images before the old graph; None for ImageNet's.
        std: deviation of R, G and B from 0 to 255; None for ImageNet's.
        changes: preparation of images that differs from the usual one.

    Raises: UsageError if it takes something else.
    """

    graph: GraphOptions = field(default_factory=GraphOptions)
    head: str | None = None
    whole: bool = False
    takes: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    changes: ImageChanges = NO_CHANGES

    def __post_init__(self) -> None:
        if self.takes is not None:
            check_choice("input", self.takes, INPUT_KINDS)
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"the deviation of pixels is {self.std}, expected positive numbers")

    @property
    def of_images(self) -> bool:
        """Return True if an option was given that is for images."""
        return self.takes == IMAGES or self.mean is not None or self.std is not None or bool(self.changes)


def adopt(source: Path, target: Path, options: AdoptOptions, *, force: bool = False) -> Adoption:
    """Find the NetVLAD in an ONNX file, and write the same network as an artifact, with the head in its usual form.

    What was recovered is believed only because it computes the same: the head of the file, run in FP32, passes the
    cases of `validate` against the oracle with the recovered parameters, and so does the new file against the old. A
    file that takes images is compared with the new one on the golden images.

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
    from netvlad_deploy.export.onnx_model import export_onnx
    from netvlad_deploy.parity.adoption import prove_head

    model = read_foreign(source)
    parent = FileReference(name=source.name, sha256=model.sha256)
    if options.whole:
        return _whole(model, source, target, options, parent, force=force)
    with naming(source):
        found = prove_head(model, find_site(model, name=options.head))
        module, notes = _module(model, found, options, source.stem)
    with _kept_if_proven(target, force=force) as trial:
        artifact = export_onnx(module, trial, options.graph, origin=parent.name, parent=parent)
        with naming(source):
            against = _against(artifact, model, found)
        adopted = _count(trial)
    return Adoption(
        artifact=replace(artifact, path=target),
        head=found.site.name,
        nodes=len(model.proto.graph.node),
        adopted_nodes=adopted,
        notes=(*model.notes, *found.notes, *notes),
        proofs=(
            replace(found.proof, candidate=f"the head of {source.name}"),
            replace(against, candidate=target.name, reference=source.name),
        ),
    )


def _whole(
    model: "ForeignModel",
    source: Path,
    target: Path,
    options: AdoptOptions,
    parent: FileReference,
    *,
    force: bool,
) -> Adoption:
    """Return the adoption of a file as it is, without a look at its head."""
    from netvlad_deploy.export.foreign.wrap import takes_images
    from netvlad_deploy.workflow.adopt_whole import adopt_whole

    with naming(source):
        images, notes = _images(model.source_shape, options) if takes_images(model) else (None, ())
    if images is None and options.of_images:
        raise UsageError(f"{source} takes features: leave the options for images out")
    with _kept_if_proven(target, force=force) as trial, naming(source):
        adoption = adopt_whole(model, trial, parent, options.graph, output=options.head, images=images, notes=notes)
    report = replace(adoption.proofs[0], candidate=target.name, reference=source.name)
    return replace(adoption, artifact=replace(adoption.artifact, path=target), proofs=(report,))


def _module(
    model: "ForeignModel", found: "ForeignHead", options: AdoptOptions, name: str
) -> tuple["NetVLAD | Aggregator | Pipeline", tuple[str, ...]]:
    """Return the recovered head, under the backbone of the file if it has one, and what was assumed of its input.

    Raises: InputError if something stands before the head that is no backbone of images; UsageError for an option of
        images where none are taken.
    """
    from netvlad_deploy.export.foreign.paths import REARRANGED
    from netvlad_deploy.models.head import Head

    torch = require("torch", extra="export")
    tensors = {key: torch.from_numpy(value.copy()) for key, value in found.layer.tensors.items()}
    head = Head(spec=found.layer.spec, tensors=tensors).module(found.site.name)
    before = {node.op_type for node in found.site.paths.between(model.source, found.start.tensor)}
    if before <= REARRANGED or options.takes == FEATURES:
        if options.of_images:
            raise UsageError("only its head is taken, on features: leave the options for images out")
        shape = "x".join("?" if length is None else str(length) for length in model.source_shape)
        width = found.site.feature_size
        notes = [f"the file takes {shape}, the new one features (batch, num_features, {width})"]
        if found.start != found.site.starts[0]:
            notes.append("the file L2-normalises what enters its head, and the new one expects it so")
        return head, tuple(notes)
    return _pipeline(model, found, options, head, name)


def _pipeline(
    model: "ForeignModel", found: "ForeignHead", options: AdoptOptions, head: "NetVLAD | Aggregator", name: str
) -> tuple["Pipeline", tuple[str, ...]]:
    """Return the head under the backbone of the file, and what was assumed of its images."""
    from netvlad_deploy.export.foreign.backbone import ForeignBackbone
    from netvlad_deploy.models.pipeline import Pipeline

    images, notes = _images(model.source_shape, options)
    channels_last = model.source_shape[1] != CHANNELS
    backbone = ForeignBackbone(found.site.paths, found.start.tensor, found.layout, channels_last=channels_last)
    return Pipeline(backbone.eval(), head, images, name=name), notes


def _images(shape: tuple[int | None, ...], options: AdoptOptions) -> tuple[ImageInput, tuple[str, ...]]:
    """Return the preparation of the images of a file whose input has this shape, and what was assumed of it.

    Raises: InputError if these are no images; UsageError if they are resized to another size than the file takes.
    """
    words = "x".join("?" if length is None else str(length) for length in shape)
    if len(shape) != 4 or CHANNELS not in (shape[1], shape[3]):
        raise InputError(
            f"it takes {words}, expected images of 3 channels: its head alone is to be had with --input features"
        )
    height, width = shape[2:] if shape[1] == CHANNELS else shape[1:3]
    fixed = None if height is None or width is None else (height, width)
    usual = ImageInput(resize=Resize(size=fixed))
    images = options.changes.on(replace(usual, mean=options.mean or usual.mean, std=options.std or usual.std))
    notes = []
    if fixed is not None:
        if images.size != fixed:
            raise UsageError(f"the file takes images of {height}x{width}: leave --resize and --crop out, or end in it")
        images = replace(images, fixed=True)
        notes.append(f"the file takes images of {height}x{width} alone, and so does the new one")
    if options.mean is None or options.std is None:
        notes.append(f"assumed: its images are RGB, {images}; say otherwise with --mean, --std and --resize")
    return images, tuple(notes)


def _against(artifact: OnnxArtifact, model: "ForeignModel", found: "ForeignHead") -> ParityReport:
    """Return the comparison of a new file with the old one, on golden images, or with its head on features.

    Raises: InputError if they differ.
    """
    from netvlad_deploy.parity.adoption import check_passed
    from netvlad_deploy.runtime.foreign_runner import ForeignImageRunner

    with artifact.keep(), Candidate.of(artifact, backend=parity_backend(artifact)).open() as runner:
        if artifact.images is None:
            report = compare(runner, found.layer.parameters(), against=found.runner, cases=found.cases)
        else:
            goldens = load_goldens(artifact.reference_path)
            output = found.site.paths.output
            with ForeignImageRunner(model, output, artifact.spec, artifact.images) as old:
                report = compare_goldens(runner, goldens, found.layer.parameters(), against=old)
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
                    with path.open("rb") as stream:
                        staging.write(target.with_name(path.name), iter(partial(stream.read, COPY_BLOCK_BYTES), b""))
