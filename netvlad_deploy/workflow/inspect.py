"""The verb `inspect`: the description of a file by its sidecar, and by TensorRT if that is wanted."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from netvlad_deploy.artifact import Artifact, EngineArtifact, FileReference, OnnxArtifact, check_file, load_artifact
from netvlad_deploy.errors import UNAVAILABLE, ArtifactError, UsageError
from netvlad_deploy.report.inspect import CheckpointInspection, Inspection, Relative
from netvlad_deploy.support.require import require
from netvlad_deploy.support.streams import stdout_to_stderr


def inspect(path: Path, *, load: bool = False, expect_sha256: str | None = None) -> Inspection:
    """Return the description of an ONNX file or an engine: its sidecar's, and that of its relatives.

    With `load` an engine is loaded, which runs code that it brings, and described as TensorRT shows it, where TensorRT
    and a GPU are there.

    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> artifact = export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions())
    >>> inspection = inspect(artifact.path)
    >>> inspection.artifact == artifact
    True
    >>> [(each.role, each.name, each.state) for each in inspection.relatives]
    [('reference', 'm.reference.npz', 'unchanged')]

    Raises: ArtifactError if the file or its sidecar is damaged, or an engine to load differs from its sidecar, or
        was built for another TensorRT or GPU; UsageError if there is nothing to load.
    """
    artifact = load_artifact(path, expect_sha256=expect_sha256, hold=load)
    relatives = tuple(_relatives(artifact))
    if not isinstance(artifact, EngineArtifact):
        if load:
            raise UsageError(f"{path} is no engine: leave --load out")
        return Inspection(artifact=artifact, relatives=relatives)
    inspection = Inspection(artifact=artifact, relatives=relatives, rebuild_command=artifact.cure)
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
    """Return the description of a checkpoint: its dialect, its sizes, its backbone and all that is left out.

    >>> import torch
    >>> from netvlad_deploy.models.netvlad import initialize
    >>> from netvlad_deploy.spec.layer import NetVLADSpec
    >>> torch.save(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0).state_dict(), "m.pth")
    >>> inspect_checkpoint(Path("m.pth")).spec.descriptor_size
    8

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
