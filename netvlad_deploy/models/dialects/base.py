"""What a dialect is: the key names and conventions under which other code saves a NetVLAD."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.images import ImageInput
from netvlad_deploy.projection import Projection
from netvlad_deploy.spec import NetVLADSpec

PREPROCESSING = "none: local descriptors (batch, num_features, D) as the layer was trained on"
NORMALIZES = "the layer L2-normalises them itself"

BACKBONES = ("encoder.", "backbone.", "base_model.", "point_net.")
PROJECTION = re.compile(
    r"(^|\.)(WPCA|pca_layer|whiten|hidden1_weights|out_projection|bn2|context_gating|gating_\w+)(\.|$)|^aggregation\.1\."
)
"""Names of what comes after a head: a linear map of its descriptor, with its BatchNorm and gating."""

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
    """

    roots: tuple[str, ...]
    candidates: tuple[str, ...]
    images: ImageInput = AS_STORED

    def find(self, state: Mapping[str, Tensor]) -> "BackboneState | None":
        """Return the backbone in a checkpoint, None if there is none."""
        root = max((each for each in self.roots if any(name.startswith(each) for name in state)), key=len, default="")
        tensors = {name.removeprefix(root): tensor for name, tensor in state.items() if name.startswith(root)}
        if not root:
            return None
        return BackboneState(root=root, tensors=tensors, candidates=self.candidates, images=self.images)


@dataclass(frozen=True, kw_only=True)
class BackboneState:
    """An image backbone as a checkpoint holds it.

    Args:
        root: what stood before its names.
        tensors: its tensors, without the root.
        candidates: what it may be, by the names of `models.backbones`.
        images: what it takes.
        recorded: the file itself says what it is and takes, not only its dialect.
    """

    root: str
    tensors: Mapping[str, Tensor]
    candidates: tuple[str, ...]
    images: ImageInput
    recorded: bool = False


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
        backbone: the image backbone among the ignored names, None if there is none.
    """

    spec: NetVLADSpec
    tensors: Mapping[str, Tensor]
    ignored: tuple[str, ...] = ()
    preprocessing: str = PREPROCESSING
    dialect: str = ""
    projected: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
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
        roots: what may stand before them.
        present: whole names that must be there too, for the keys to be this dialect's.
        absent: whole names that must not be there.
        classifiers: starts of names that only classify descriptors, so that nothing is lost without them.
        explicit: its keys are also another dialect's, so it is never detected.
        preprocessing: what the local descriptors must be, in words.
        backbone: where it saves its image backbone, None if it has none.
    """

    name: str
    keys: str
    needs: tuple[str, ...]
    roots: tuple[str, ...] = ("",)
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()
    explicit: bool = False
    preprocessing: str = PREPROCESSING
    backbone: BackboneKeys | None = None

    @abstractmethod
    def convert(self, state: Mapping[str, Tensor]) -> Head:
        """Return the head of a checkpoint in this dialect: tensors are renamed, cut and transposed, no value changes.

        Raises: InputError if a tensor is missing, of another shape or unknown.
        """

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether these keys are this dialect's."""
        return (
            not self.missing(state)
            and all(name in state for name in self.present)
            and not any(name in state for name in self.absent)
        )

    def missing(self, state: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return the names that are not there, after the root of which fewest are missing."""
        lists = [tuple(root + name for name in self.needs if root + name not in state) for root in self.roots]
        return min(lists, key=len)

    def root(self, state: Mapping[str, Tensor]) -> str:
        """Return the root of which nothing is missing.

        Raises: InputError if there is none.
        """
        for root in self.roots:
            if all(root + name in state for name in self.needs):
                return root
        raise InputError(f"lacks {', '.join(self.missing(state))} of {self.name}, found {names(state)}")

    def others(self, state: Mapping[str, Tensor], root: str, used: Iterable[str]) -> tuple[str, ...]:
        """Return the names that are not the head.

        Raises: InputError if one stands after the head's root, so that it is a part of the layer nobody knows.
        """
        others = tuple(sorted(set(state) - set(used)))
        strange = [name for name in others if name.startswith(root) and not PROJECTION.search(name)]
        if strange:
            raise InputError(f"holds {names(strange)} in the layer, which {self.name} does not have")
        return others

    def projections(self, state: Mapping[str, Tensor], head: Head) -> tuple[str, ...]:
        """Return the ignored names that map the descriptor on: by their names, and any matrix of its length."""
        outside = [name for name in head.ignored if not name.startswith((*BACKBONES, *self.classifiers))]
        size = head.spec.aggregate_size
        return tuple(
            name
            for name in outside
            if PROJECTION.search(name) or (state[name].ndim >= 2 and size in state[name].shape[:2])
        )

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
