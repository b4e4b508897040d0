"""What a dialect is: the key names and conventions under which other code saves a NetVLAD."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import CLAMP, NetVLADSpec, Projection

PREPROCESSING = "none: local descriptors (batch, num_features, D) as the layer was trained on"
NORMALIZES = "the layer L2-normalises them itself"

BACKBONE_PREFIXES = ("encoder.", "backbone.", "base_model.", "point_net.")
PROJECTION_KEY = re.compile(
    r"(^|\.)(WPCA|pca_layer|whiten|hidden1_weights|out_projection|bn2|context_gating|gating_\w+|aggregation\.1)(\.|$)"
)
"""Names of what comes after a head: a linear map of its descriptor, with its BatchNorm and gating."""

LOSSES = ("criterion.", "loss.", "loss_fn.", "losses.")
"""What stands before the parameters of a training loss, such as its class centres: it changes no descriptor."""

FOLLOWING = ("projection.", "gating.")
"""Starts of the reference's own names of it."""

MOST_NAMES = 12

AS_STORED = ImageInput(orient=False)
"""ImageNet's normalisation, images as large as they are and as stored: `Image.open` and `ToTensor` in other code."""


@dataclass(frozen=True, kw_only=True)
class BackboneKeys:
    """Where a dialect saves its image backbone.

    Args:
        roots: what may stand before its names; the longest that fits counts.
        candidates: what it may be, by the names of `models.backbones`.
        images: what its own code does to an image.
        assumed: what of that the keys leave open, in words, empty if nothing.
    """

    roots: tuple[str, ...]
    candidates: tuple[str, ...]
    images: ImageInput = AS_STORED
    assumed: str = ""

    def find(self, state: Mapping[str, Tensor]) -> "BackboneState | None":
        """Return the backbone in a checkpoint, None if there is none."""
        root = max((each for each in self.roots if any(name.startswith(each) for name in state)), key=len, default="")
        tensors = {name.removeprefix(root): tensor for name, tensor in state.items() if name.startswith(root)}
        if not root:
            return None
        return BackboneState(
            root=root, tensors=tensors, candidates=self.candidates, images=self.images, assumed=self.assumed
        )


@dataclass(frozen=True, kw_only=True)
class BackboneState:
    """An image backbone as a checkpoint holds it.

    Args:
        root: what stood before its names.
        tensors: its tensors, without the root.
        candidates: what it may be, by the names of `models.backbones`.
        images: what it takes.
        recorded: the file itself says what it is and takes, not only its dialect.
        assumed: what of its images the file leaves open and was assumed, in words.
    """

    root: str
    tensors: Mapping[str, Tensor]
    candidates: tuple[str, ...]
    images: ImageInput
    recorded: bool = False
    assumed: str = ""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A NetVLAD as a checkpoint holds it, brought to the form of the reference.

    Args:
        tensors: the state of the reference module, and `batch_norm.eps` where the checkpoint brings its own.
        ignored: names in the checkpoint that are not the head.
        preprocessing: what the local descriptors must be, in words.
        dialect: the name of the dialect it was saved in.
        projected: names in the checkpoint of what follows the head, which `tensors` has.
        projections: those of the ignored names that would map its descriptor on in a way the dialect does not know.
        unplaced: those of the ignored names that have several values, and are neither the backbone's, nor another
            head's, nor known to change no descriptor: they may stand before the head or after it.
        assumed: what the keys leave open and was assumed, in words, empty if they leave nothing open.
        backbone: the image backbone among the ignored names, None if there is none.
    """

    spec: NetVLADSpec
    tensors: Mapping[str, Tensor]
    ignored: tuple[str, ...] = ()
    preprocessing: str = PREPROCESSING
    dialect: str = ""
    projected: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    assumed: str = ""
    backbone: BackboneState | None = None

    def followed_by(self, projection: Projection, tensors: Mapping[str, Tensor], names: Iterable[str]) -> "Head":
        """Return the head with a projection: tensors by the reference's names, and their names in the checkpoint."""
        projected = tuple(sorted(names))
        return replace(
            self,
            spec=replace(self.spec, projection=projection),
            tensors={**self.tensors, **tensors},
            ignored=tuple(name for name in self.ignored if name not in projected),
            projected=projected,
        )

    def alone(self) -> "Head":
        """Return the head without what follows it."""
        return replace(
            self,
            spec=replace(self.spec, projection=None),
            tensors={name: tensor for name, tensor in self.tensors.items() if not name.startswith(FOLLOWING)},
            ignored=tuple(sorted((*self.ignored, *self.projected))),
            projected=(),
            projections=(),
        )


@dataclass(frozen=True, kw_only=True)
class Dialect(ABC):
    """One way to save a NetVLAD.

    Args:
        name: what `--dialect` calls it.
        keys: the key names in words.
        needs: names that must be there, after one of the roots.
        lacks: names that must not be there, after the same root.
        roots: what its own code calls the layer; empty for a layer that was saved alone.
        present: names beside the layer that must be there too, for the keys to be this dialect's.
        absent: names beside the layer that must not be there.
        beside: starts of names beside the layer that only this dialect's files have, where others name the layer alike.
        unused: starts of names that change no descriptor: a classifier, or what its code saves and never applies.
        explicit: its keys are also another dialect's, which is far more usual, so it is never detected.
        preprocessing: what the local descriptors must be, in words.
        backbone: where it saves its image backbone, None if it has none.
    """

    name: str
    keys: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    roots: tuple[str, ...] = ("",)
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    explicit: bool = False
    preprocessing: str = PREPROCESSING
    backbone: BackboneKeys | None = None

    @abstractmethod
    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head after one of the roots: tensors are renamed, cut and transposed, no value changes.

        Raises: InputError if a tensor is missing, of another shape or unknown.
        """

    def places(self, state: Mapping[str, Tensor]) -> "Iterator[Place]":
        """Yield where the names that it needs stand, each layer by the longest root that fits."""
        roots = sorted(self.roots, key=len, reverse=True)
        first, *others = self.needs
        for name in state:
            start = name.removesuffix(first)
            if start == name or not f".{start}".endswith("."):
                continue
            root = next((each for each in roots if not each or f".{start}".endswith(f".{each}")), None)
            if root is not None and all(start + each in state for each in others):
                yield Place(dialect=self, before=start.removesuffix(root), root=root)

    def missing(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the names that are not there, after the root of which fewest are missing."""
        lists = [tuple(root + name for name in self.needs if root + name not in state) for root in self.roots]
        return min(lists, key=len)

    def nearness(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return how much of what it needs is there, and how little is missing."""
        missing = len(self.missing(state))
        return len(self.needs) - missing, -missing

    def others(self, state: Mapping[str, Tensor], root: str, used: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are not the head.

        Raises: InputError if one stands after the head's root, so that it is a part of the layer nobody knows.
        """
        others = tuple(sorted(set(state) - set(used)))
        lacking = {root + name for name in self.lacks}
        strange = [
            name for name in others if name.startswith(root) and (name in lacking or not PROJECTION_KEY.search(name))
        ]
        if strange:
            raise InputError(f"holds {names(strange)} in the layer, which {self.name} does not have")
        return others

    def matrix(self, state: Mapping[str, Tensor], name: str, inputs: int, *, by_column: bool = False) -> Tensor:
        """Return a projection's matrix as (P, inputs), of a linear layer or of a 1x1 convolution, or from (inputs, P).

        Raises: InputError if it is missing or has another shape.
        """
        if name not in state:
            raise InputError(f"lacks {name} of {self.name}")
        weight = state[name]
        shape = tuple(weight.shape)
        wanted = f"({inputs}, P)" if by_column else f"(P, {inputs})"
        if by_column and weight.ndim == 2:
            weight = weight.T
        elif not by_column and weight.ndim == 4 and shape[2:] == (1, 1):
            weight = weight[:, :, 0, 0]
        if weight.ndim != 2 or weight.shape[1] != inputs:
            raise InputError(f"{name} has shape {shape}, expected {wanted} for {inputs} values")
        return weight

    def vector(self, state: Mapping[str, Tensor], name: str, length: int, beside: str) -> Tensor:
        """Return a vector of as many values as a weight gives; `beside` is the weight's name.

        Raises: InputError if it is missing or has another shape.
        """
        if name not in state:
            raise InputError(f"lacks {name} of {self.name}")
        if state[name].shape != (length,):
            shapes = f"{beside} {tuple(state[beside].shape)} and {name} {tuple(state[name].shape)}"
            raise InputError(f"{shapes} do not fit: expected {name} ({length},)")
        return state[name]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a layer with the keys of a dialect stands in a file; `before` is what stands before the dialect's names."""

    dialect: Dialect
    before: str
    root: str

    @property
    def start(self) -> str:
        """Return what stands before the layer's own names."""
        return self.before + self.root

    @property
    def layer(self) -> str:
        """Return the name of its first tensor, which no other layer has."""
        return self.start + self.dialect.needs[0]

    def below(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors by the names that the dialect knows."""
        return {name.removeprefix(self.before): value for name, value in state.items() if name.startswith(self.before)}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether nothing stands in or beside the layer that this dialect does not have."""
        dialect = self.dialect
        return (
            all(self.before + name in state for name in dialect.present)
            and not any(self.before + name in state for name in dialect.absent)
            and not any(self.start + name in state for name in dialect.lacks)
        )

    def is_named(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether names show the dialect: the layer's, or what stands beside it where others name it alike."""
        if self.dialect.beside:
            return any(name.startswith(tuple(self.before + each for each in self.dialect.beside)) for name in state)
        return bool(self.root)

    def head(self, state: Mapping[str, Tensor]) -> Head:
        """Return the head that stands here, by the names that the file has.

        Raises: InputError as `Dialect.convert`.
        """
        head = self.dialect.convert(self.below(state), self.root)
        outside = (name for name in state if not name.startswith(self.before))
        return replace(
            head,
            dialect=self.dialect.name,
            ignored=tuple(sorted((*(self.before + name for name in head.ignored), *outside))),
            projected=tuple(self.before + name for name in head.projected),
        )

    def backbone(self, state: Mapping[str, Tensor], ignored: Iterable[str]) -> BackboneState | None:
        """Return the image backbone beside the head: the dialect's own, or one of which only the place is known."""
        keys = self.dialect.backbone
        if keys is not None and (found := keys.find(self.below(state))) is not None:
            return replace(found, root=self.before + found.root)
        for root in (start + each for start in (self.before, "") for each in BACKBONE_PREFIXES):
            tensors = {name.removeprefix(root): state[name] for name in ignored if name.startswith(root)}
            if tensors:
                return BackboneState(root=root, tensors=tensors, candidates=(), images=ImageInput())
        return None


def conventions(spec: NetVLADSpec) -> dict[str, str]:
    """Return what the layer does to its values, in words by subject: all that names and shapes need not show."""
    said = {
        "local descriptors": "L2-normalised first" if spec.normalize_input else "as they come",
        "logits": "with BatchNorm" if spec.batch_norm else "with a bias" if spec.assignment_bias else "without a bias",
        "residual": "x - c",
        "order": spec.flatten,
    }
    if spec.epsilon != CLAMP:
        said["norms"] = f"kept from 0 by {spec.epsilon}"
    following = spec.projection
    if following is not None:
        said["projection"] = "with BatchNorm" if following.batch_norm else "with a bias" if following.bias else "alone"
        said["gating"] = f"with {following.gating}" if following.gating else "none"
        if following.gating is not None:
            said["before the gating"] = "L2-normalised" if following.l2 else "as it is projected"
    said["descriptor"] = "L2-normalised" if spec.unit_length else "not L2-normalised"
    return said


def convention_words(said: Mapping[str, str]) -> str:
    """Return conventions in one line."""
    return ", ".join(f"{subject} {words}" for subject, words in said.items())


def names(found: Iterable[str]) -> str:
    """Return names in one line, twelve at most."""
    ordered = sorted(found)
    more = ", ..." if len(ordered) > MOST_NAMES else ""
    return ", ".join(ordered[:MOST_NAMES]) + more or "no tensor"


def columns(clusters: str, clusters2: str, state: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return K, D and G of tensors of these names, (D,K+G) and (1,D,K).

    Raises: InputError if they have other shapes.
    """
    first, second = tuple(state[clusters].shape), tuple(state[clusters2].shape)
    if len(first) != 2 or len(second) != 3 or second[:2] != (1, first[0]):
        raise InputError(f"{clusters} {first} and {clusters2} {second} are not (D, K+G) and (1, D, K)")
    return second[2], first[0], first[1] - second[2]
