"""The verb `inspect`: what a file is, by its sidecar, and by TensorRT if that is wanted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from netvlad_deploy.artifact import (
    Artifact,
    EngineArtifact,
    FileReference,
    OnnxArtifact,
    check_file,
    load_artifact,
)
from netvlad_deploy.errors import UNAVAILABLE, ArtifactError, UsageError
from netvlad_deploy.report.inspect import CheckpointInspection, Inspection, Relative
from netvlad_deploy.support.require import require
from netvlad_deploy.tensorrt.api import stdout_to_stderr


def inspect(path: Path, *, load: bool = False, expect_sha256: str | None = None) -> Inspection:
    """Return what an ONNX file or an engine is.

    With `load` an engine is loaded, which runs code that it brings, and described as TensorRT shows it, where TensorRT
    and a GPU are there.

    Raises: ArtifactError if the file or its sidecar is damaged, or an engine to load is not what its sidecar says, or
        was built for another TensorRT or GPU; UsageError if there is nothing to load.
    """
    artifact = load_artifact(path, expect_sha256=expect_sha256, hold=load)
    relatives = tuple(_relatives(artifact))
    if not isinstance(artifact, EngineArtifact):
        if load:
            raise UsageError(f"{path} is no engine: leave --load out")
        return Inspection(artifact=artifact, relatives=relatives)
    inspection = Inspection(artifact=artifact, relatives=relatives, rebuild_command=artifact.rebuild_command)
    if not load:
        return replace(inspection, reason="only read; --load asks TensorRT, which runs code that the engine brings")
    from netvlad_deploy.tensorrt.loader import LoadedEngine

    try:
        with stdout_to_stderr():
            loaded = LoadedEngine(artifact)
    except UNAVAILABLE as error:
        return replace(inspection, reason=str(error))
    finally:
        artifact.release()
    return replace(inspection, tensors=tuple(loaded.tensors()), memory_bytes=loaded.memory_bytes())


def inspect_checkpoint(path: Path, *, prefix: str = "", dialect: str | None = None) -> CheckpointInspection:
    """Return what a checkpoint holds, without exporting it.

    Raises: InputError if it is no checkpoint of a NetVLAD; UsageError if there is no such dialect.
    """
    require("torch", extra="export")
    from netvlad_deploy.models.assembly import inspect_backbone
    from netvlad_deploy.models.checkpoints import find_head

    head = find_head(path, prefix=prefix, dialect=dialect)
    backbone = head.backbone
    name, images = inspect_backbone(backbone) if backbone is not None else ("", None)
    return CheckpointInspection(
        path=path,
        dialect=head.dialect,
        spec=head.spec,
        preprocessing=head.preprocessing,
        ignored=tuple(name for name in head.ignored if backbone is None or not name.startswith(backbone.root)),
        projections=head.projections,
        unplaced=head.unplaced,
        assumed=tuple(each for each in (head.assumed, backbone.assumed if backbone is not None else "") if each),
        backbone=name,
        images=images,
    )


def _relatives(artifact: Artifact) -> Iterator[Relative]:
    external = artifact.external_data if isinstance(artifact, OnnxArtifact) else None
    for role, file in (("parent", artifact.parent), ("reference", artifact.reference), ("weights", external)):
        if file is not None:
            state = "unchanged" if file is external else _state(artifact.path.parent, file)  # else it had not loaded
            yield Relative(role=role, name=file.name, sha256=file.sha256, state=state)


def _state(folder: Path, file: FileReference) -> str:
    if not (folder / file.name).exists():
        return "not here"
    try:
        check_file(folder, file)
    except ArtifactError:
        return "changed"
    return "unchanged"
