"""The source of an export's weights: a checkpoint, or a seed; a head alone, or one under its backbone.

Nothing heavy is imported until a module is made.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netvlad_deploy.artifact import FileReference
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.graph_options import INPUT_KINDS
from netvlad_deploy.spec.images import IMAGES, NO_CHANGES, ImageChanges
from netvlad_deploy.spec.layer import FEATURES, NetVLADSpec
from netvlad_deploy.support.files import sha256_file
from netvlad_deploy.support.limits import check_choice
from netvlad_deploy.support.require import require

if TYPE_CHECKING:
    from netvlad_deploy.models.aggregators.base import Aggregator
    from netvlad_deploy.models.heads import Heads
    from netvlad_deploy.models.netvlad import NetVLAD
    from netvlad_deploy.models.pipeline import Pipeline

LOG = logging.getLogger(__name__)

DEFAULT_SPEC = NetVLADSpec(num_clusters=64, feature_size=512)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of weights: a checkpoint, or a seed. Sizes left None come from the checkpoint.

    Args:
        all_heads: take every head of the checkpoint, not one.
        takes: `images` or `features`, None for images where there is a backbone.
        backbone: a name of `models.backbones`, or `package.module:callable`; None for the checkpoint's own.
        changes: preparation of images that differs from that of the checkpoint's or the backbone's own code.

    Raises: UsageError if two of them contradict each other.
    """

    checkpoint: Path | None = None
    prefix: str = ""
    dialect: str | None = None
    head_only: bool = False
    all_heads: bool = False
    num_clusters: int | None = None
    feature_size: int | None = None
    num_ghost_clusters: int | None = None
    batch_norm: bool | None = None
    seed: int = 0
    takes: str | None = None
    backbone: str | None = None
    changes: ImageChanges = NO_CHANGES

    def __post_init__(self) -> None:
        if self.takes is not None:
            check_choice("input", self.takes, INPUT_KINDS)
        if self.takes == FEATURES and (self.backbone is not None or self.changes):
            raise UsageError(
                "a backbone, a resize, a crop, orient and depth are for images: leave them out with --input features"
            )
        if self.all_heads and self.checkpoint is None:
            raise UsageError("--all-heads needs a checkpoint")
        if self.all_heads and any((self.prefix, self.sizes, self.backbone, self.changes, self.takes == IMAGES)):
            raise UsageError(
                "--all-heads takes every head of a checkpoint on its local descriptors: leave --prefix, sizes, "
                "--backbone and the options for images out"
            )

    @property
    def sizes(self) -> dict[str, Any]:
        """Return the sizes that were given."""
        names = ("num_clusters", "feature_size", "num_ghost_clusters", "batch_norm")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def load_module(source: Source) -> tuple["NetVLAD | Aggregator | Pipeline | Heads", str, FileReference | None, str]:
    """Return the torch module, its origin in words, the file it came from, and what local descriptors a head takes.

    It is a pipeline if the source takes images, which it does by default where there is a backbone; with `all_heads` it
    has every head of the checkpoint.

    >>> module, origin, parent, preprocessing = load_module(Source(num_clusters=2, feature_size=4, seed=7))
    >>> module.spec.descriptor_size, origin, parent
    (8, 'untrained, seed 7', None)

    Raises: InputError for an unusable checkpoint; UsageError if an option contradicts it.
    """
    require("torch", extra="export")
    from netvlad_deploy.models.assembly import pipeline_of
    from netvlad_deploy.models.checkpoints import check_options, read_head

    if source.checkpoint is None:
        module, preprocessing = _untrained(source)
        return module, f"untrained, seed {source.seed}", None, preprocessing
    sha256 = sha256_file(source.checkpoint) if source.checkpoint.is_file() else ""
    if source.all_heads:
        heads, preprocessing = _all_heads(source, source.checkpoint)
        return heads, source.checkpoint.name, _unchanged(source.checkpoint, sha256), preprocessing
    head = read_head(
        source.checkpoint,
        prefix=source.prefix,
        dialect=source.dialect,
        head_only=source.head_only,
        with_backbone=source.takes != FEATURES,
        resized=source.changes.resize is not None,
    )
    check_options(head.spec, source.checkpoint, **source.sizes)
    parent = _unchanged(source.checkpoint, sha256)
    if source.takes == IMAGES or source.backbone or (source.takes is None and head.backbone is not None):
        pipeline = pipeline_of(head, source.checkpoint, backbone=source.backbone, changes=source.changes)
        return pipeline, source.checkpoint.name, parent, head.preprocessing
    if source.changes:
        raise UsageError(
            f"{source.checkpoint} has no image backbone: leave --resize and the other options for images out, or pass "
            "--backbone"
        )
    return head.module(source.checkpoint), source.checkpoint.name, parent, head.preprocessing


def _unchanged(checkpoint: Path, sha256: str) -> FileReference:
    """Return a reference to a checkpoint that had this hash before it was read.

    Raises: InputError if it has another one now.
    """
    parent = FileReference(name=checkpoint.name, sha256=sha256_file(checkpoint))
    if parent.sha256 != sha256:
        raise InputError(f"{checkpoint} changed while it was read: export it again when it is complete")
    return parent


def _all_heads(source: Source, checkpoint: Path) -> tuple["Heads", str]:
    """Return every head of a checkpoint, and the preparation of their inputs in words."""
    from netvlad_deploy.models.checkpoints import read_heads
    from netvlad_deploy.models.heads import Heads

    heads = read_heads(checkpoint, dialect=source.dialect, head_only=source.head_only)
    said = {name: head.preprocessing for name, head in sorted(heads.items())}
    words = sorted(set(said.values()))
    prepared = words[0] if len(words) == 1 else "; ".join(f"head {name}: {each}" for name, each in said.items())
    return Heads({name: head.netvlad(checkpoint) for name, head in heads.items()}), prepared


def _untrained(source: Source) -> tuple["NetVLAD | Pipeline", str]:
    """Return a module initialised from the seed, and what local descriptors a head takes."""
    from netvlad_deploy.models.assembly import read_backbone
    from netvlad_deploy.models.head import PREPROCESSING
    from netvlad_deploy.models.netvlad import initialize

    LOG.info("no checkpoint given: the weights are initialised from seed %d, untrained", source.seed)
    if source.backbone is None:
        if source.takes == IMAGES or source.changes:
            raise UsageError("there is no checkpoint and no backbone to take images: pass --backbone")
        return initialize(replace(DEFAULT_SPEC, **source.sizes), source.seed), PREPROCESSING
    ready = read_backbone(source.backbone, changes=source.changes, seed=source.seed)
    sizes = {"feature_size": ready.width, **source.sizes}
    pipeline = ready.under(initialize(replace(DEFAULT_SPEC, normalize_input=True, **sizes), source.seed))
    return pipeline, PREPROCESSING


def load_head(source: Source) -> tuple["NetVLAD", str]:
    """Return the reference module of the head alone, and its origin in words.

    >>> load_head(Source(num_clusters=2, feature_size=4))[1]
    'untrained, seed 0'

    Raises: as `load_module`; UsageError if the source takes images, or is another aggregator.
    """
    if source.takes == IMAGES or source.backbone is not None:
        raise UsageError("this measures the head alone, on local descriptors: leave --input images and --backbone out")
    module, origin, _, _ = load_module(replace(source, takes=FEATURES))
    from netvlad_deploy.models.netvlad import NetVLAD

    if not isinstance(module, NetVLAD):
        raise UsageError(f"{origin} is no NetVLAD, whose precisions alone are measured: export and validate it")
    return module, origin
