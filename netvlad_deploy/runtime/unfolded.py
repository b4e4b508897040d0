"""The unfolded torch module of an artifact, read again from where its weights came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, Union

from netvlad_deploy.artifact import AnyArtifact, OnnxArtifact, check_file, copied
from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.images import ImageChanges
from netvlad_deploy.spec.layer import AggregatorSpec, HeadsSpec, NetVLADSpec
from netvlad_deploy.support.require import require

if TYPE_CHECKING:
    from netvlad_deploy.models.aggregators.base import Aggregator
    from netvlad_deploy.models.heads import Heads
    from netvlad_deploy.models.netvlad import NetVLAD
    from netvlad_deploy.models.pipeline import Pipeline

Module: TypeAlias = Union["NetVLAD", "Aggregator", "Pipeline", "Heads"]


@dataclass(frozen=True, kw_only=True)
class Unfolded:
    """The checkpoint of an artifact, and how it was read.

    Args:
        checkpoint: the file, None for the parent that the artifact names, beside it.
        prefix: the text before the layer's names in it.
        dialect: the dialect of its names, None to recognise it by them.
        backbone: the name of its backbone, None for the one that it holds.
    """

    checkpoint: Path | None = None
    prefix: str = ""
    dialect: str | None = None
    backbone: str | None = None

    def file_of(self, artifact: AnyArtifact) -> Path | None:
        """Return the checkpoint to read, None where the artifact's reference file has all the weights: of a NetVLAD.

        Raises: ArtifactError if the checkpoint that the artifact names is another file now; InputError if there is
            none.
        """
        if self.checkpoint is not None:
            return self.checkpoint
        if artifact.images is None and isinstance(artifact.spec, NetVLADSpec):
            return None
        named = artifact.parent if isinstance(artifact, OnnxArtifact) else None
        if named is None or not (artifact.path.parent / named.name).is_file():
            wanted = "its checkpoint" if named is None else f"its checkpoint {named.name}, which is not beside it"
            raise InputError(f"{artifact.path.name} is unfolded from {wanted}: pass --checkpoint FILE")
        check_file(artifact.path.parent, named)
        return artifact.path.parent / named.name


def unfolded_module(artifact: AnyArtifact, source: Unfolded) -> Module:
    """Return the torch module, in eval mode, that an artifact was folded from: the same part with the same images.

    Raises: as `Unfolded.file_of`; InputError or UsageError if the checkpoint cannot be read so;
        MissingDependencyError.
    """
    require("torch", extra="export")
    from netvlad_deploy.models.assembly import pipeline_of
    from netvlad_deploy.models.checkpoints import load_checkpoint, read_head, read_heads
    from netvlad_deploy.models.heads import Heads

    file, spec = source.file_of(artifact), artifact.spec
    if file is None:
        with copied(artifact.path.parent, artifact.reference) as reference:
            return load_checkpoint(reference)
    settings = spec.settings if isinstance(spec, AggregatorSpec) else {}
    head_only = spec.projection is None and not settings.get("projected")
    if isinstance(spec, HeadsSpec):
        heads = read_heads(file, dialect=source.dialect, head_only=head_only)
        return Heads({name: head.netvlad(file) for name, head in heads.items()})
    images = artifact.images
    head = read_head(
        file,
        prefix=source.prefix,
        dialect=source.dialect,
        head_only=head_only,
        with_backbone=images is not None,
        resized=images is not None,
    )
    if images is None:
        return head.module(file)
    return pipeline_of(head, file, backbone=source.backbone, changes=ImageChanges.to(images))
