"""The verb `inspect`: what a file is, read from its sidecar, and from TensorRT where a GPU is."""

from collections.abc import Iterator
from pathlib import Path

from netvlad_deploy.artifact import Artifact, EngineArtifact, FileReference, check_file, load_artifact
from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.report.inspection import Inspection, Relative
from netvlad_deploy.workflow import UNAVAILABLE


def inspect(path: Path, *, expect_sha256: str | None = None) -> Inspection:
    """Return what an ONNX file or an engine is; an engine is loaded where TensorRT and a GPU are there.

    An engine of another TensorRT or GPU is described by its sidecar alone, with the reason.

    Raises: ArtifactError if the file or its sidecar is damaged.
    """
    artifact = load_artifact(path, expect_sha256=expect_sha256)
    relatives = tuple(_relatives(artifact))
    if not isinstance(artifact, EngineArtifact):
        return Inspection(artifact=artifact, relatives=relatives)
    from netvlad_deploy.runtime.engine_loader import LoadedEngine

    command = artifact.rebuild_command
    try:
        loaded = LoadedEngine(artifact)
    except (*UNAVAILABLE, ArtifactError) as error:
        return Inspection(artifact=artifact, relatives=relatives, rebuild_command=command, reason=str(error))
    return Inspection(
        artifact=artifact,
        relatives=relatives,
        rebuild_command=command,
        tensors=tuple(loaded.tensors()),
        memory_bytes=loaded.memory_bytes(),
    )


def _relatives(artifact: Artifact) -> Iterator[Relative]:
    for role, file in (("parent", artifact.parent), ("reference", artifact.reference)):
        if file is not None:
            yield Relative(role=role, name=file.name, sha256=file.sha256, state=_state(artifact.path.parent, file))


def _state(folder: Path, file: FileReference) -> str:
    if not (folder / file.name).exists():
        return "not here"
    try:
        check_file(folder, file)
    except ArtifactError:
        return "changed"
    return "unchanged"
