"""The result of `inspect`: the content of an artifact or a checkpoint, and the state of the files it refers to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact
from netvlad_deploy.report.text import artifact_lines, mebibytes, shape_words
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import CLAMP, AnySpec, NetVLADSpec, Projection
from netvlad_deploy.tensorrt.loader import EngineTensor


@dataclass(frozen=True, kw_only=True)
class Relative:
    """A file that an artifact refers to, with its recorded hash; `state` is unchanged, changed, or not here."""

    role: str
    name: str
    sha256: str
    state: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An artifact and the files that it refers to.

    Args:
        tensors: inputs and outputs of an engine, as TensorRT reports them.
        memory_bytes: memory of an engine's execution context in each profile.
        reason: why TensorRT reports neither here.
    """

    artifact: AnyArtifact
    relatives: tuple[Relative, ...]
    rebuild_command: str | None = None
    tensors: tuple[EngineTensor, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointInspection:
    """The head of a checkpoint, and the tensors that are no part of it.

    Args:
        preprocessing: how local descriptors must be prepared, in words.
        ignored: tensors that are no part of the head.
        projections: those of them that look like a projection after the head, which the dialect does not have.
        unplaced: those of them that may stand before the head or after it.
        assumed: conventions that the file does not settle, as they are assumed, in words.
        backbone: name of its image backbone, or why `export` refuses it; empty without one.
        images: how images become the backbone's input.
    """

    path: Path
    dialect: str
    spec: AnySpec
    preprocessing: str
    ignored: tuple[str, ...]
    projections: tuple[str, ...]
    unplaced: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    backbone: str = ""
    images: ImageInput | None = None


def checkpoint_lines(found: CheckpointInspection) -> list[str]:
    """Return the lines that `inspect` prints of a checkpoint."""
    spec = found.spec
    lines = [
        f"{found.path}  a checkpoint in the dialect {found.dialect}",
        f"  {shape_words(spec)}{_conventions(spec) if isinstance(spec, NetVLADSpec) else ''}",
        f"  input: {found.preprocessing}",
    ]
    if spec.projection is not None:
        lines.append(f"  then {_projection_words(spec.projection)}")
    if found.backbone:
        lines.append(f"  backbone: {found.backbone}" + (f"; images: {found.images}" if found.images else ""))
    if found.projections:
        unknown = ", ".join(found.projections)
        lines.append(
            f"  a projection after the head that {found.dialect} does not have, which is not exported: {unknown}"
        )
    if found.unplaced:
        somewhere = ", ".join(found.unplaced)
        lines.append(f"  before the head or after it, left out by --input features or --head-only: {somewhere}")
    lines += [f"  assumed: {each}" for each in found.assumed]
    others = [name for name in found.ignored if name not in (*found.projections, *found.unplaced)]
    return lines + ([f"  beside it: {', '.join(others)}"] if others else [])


def _conventions(spec: NetVLADSpec) -> str:
    """Return the conventions of a NetVLAD that are not the usual ones, in words behind a colon."""
    conventions = {
        "BatchNorm on the assignments": spec.batch_norm,
        "a bias on the assignments": spec.assignment_bias,
        "input L2-normalised": spec.normalize_input,
        f"norms kept from 0 by {spec.epsilon}": spec.epsilon != CLAMP,
    }
    return f": {', '.join(word for word, true in conventions.items() if true) or 'no bias'}"


def _projection_words(projection: Projection) -> str:
    """Return a projection and all after it in words."""
    offset = "BatchNorm" if projection.batch_norm else "a bias" if projection.bias else "no bias"
    words = [f"a projection to {projection.size} values with {offset}"]
    words += ["L2-normalised"] if projection.l2 else []
    words += ["context gating"] if projection.gating else []
    words += ["L2-normalised at last"] if projection.final_l2 else []
    return ", ".join(words)


def inspection_lines(inspection: Inspection) -> list[str]:
    """Return the lines that `inspect` prints of an artifact."""
    artifact = inspection.artifact
    lines = artifact_lines(artifact)
    lines += [f"  SHA-256 {artifact.sha256}", f"  preprocessing {artifact.preprocessing}"]
    lines += [f"  {one.role} {one.name}, SHA-256 {one.sha256[:16]}: {one.state}" for one in inspection.relatives]
    lines += ["  versions " + ", ".join(f"{name} {version}" for name, version in sorted(artifact.versions.items()))]
    if isinstance(artifact, EngineArtifact):
        lines += list(_engine_lines(artifact, inspection))
    return lines


def _engine_lines(artifact: EngineArtifact, inspection: Inspection) -> Iterator[str]:
    if (gpu := artifact.gpu) is not None:
        yield f"  built on {gpu.name} ({gpu.compute_capability}), driver for CUDA {gpu.driver}"
    yield "  built with " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in artifact.machine.items())
    for kernel in artifact.figures.kernels:
        yield f"  kernel {kernel.name} ({kernel.kind}): {', '.join(kernel.inputs)} -> {', '.join(kernel.outputs)}"
    if inspection.reason:
        yield f"  tensors: {inspection.reason}"
    for tensor in inspection.tensors:
        profiles = "; ".join(" / ".join("x".join(map(str, shape)) for shape in profile) for profile in tensor.profiles)
        shape = "x".join(map(str, tensor.shape))
        yield f"  {tensor.mode} {tensor.name} {tensor.dtype} {shape}, {tensor.format}" + (profiles and f": {profiles}")
    for number, size_bytes in enumerate(inspection.memory_bytes):
        yield f"  an execution context takes {mebibytes(size_bytes)} in profile {number}"
    yield f"  build it again: {inspection.rebuild_command}"
