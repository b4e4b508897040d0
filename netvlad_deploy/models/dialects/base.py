"""Dialects: the key names and conventions under which other code saves a NetVLAD."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.head import PREPROCESSING, BackboneState, Head
from netvlad_deploy.models.tensor_names import names
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import CLAMP, AggregatorSpec, NetVLADSpec

NORMALIZES = "the layer L2-normalises them itself"

BACKBONE_PREFIXES = ("encoder.", "backbone.", "base_model.", "point_net.")
PROJECTION_NAME = re.compile(
    r"(^|\.)(WPCA|pca_layer|whiten|hidden1_weights|out_projection|bn2|context_gating|gating_\w+|aggregation\.1)(\.|$)"
)
"""Part of the names of a projection after a head: a linear map of its descriptor, its BatchNorm and gating."""

LOSS_PREFIXES = ("criterion.", "loss.", "loss_fn.", "losses.")
"""Prefixes of the parameters of a training loss, such as class centres, which change no descriptor."""

AS_STORED = ImageInput(orient=False)
"""ImageNet's normalisation of images in their own size, without EXIF's rotation: `Image.open`, then `ToTensor`."""


@dataclass(frozen=True, kw_only=True)
class BackboneKeys:
    """The names under which a dialect saves its image backbone.

    Args:
        roots: possible prefixes of its names; the longest that fits counts.
        candidates: the names in `models.backbones` of the networks that it may be.
        images: the image input of the dialect's own code.
        mean: the name of a tensor (3,) that takes the place of the mean of `images`, if the file has one.
        assumed: the part of the image input that the keys leave open, in words; empty if there is none.
    """

    roots: tuple[str, ...]
    candidates: tuple[str, ...]
    images: ImageInput = AS_STORED
    mean: str = ""
    assumed: str = ""

    def find(self, state: Mapping[str, Tensor]) -> "BackboneState | None":
        """Return the backbone in a checkpoint, None if there is none."""
        root = max((each for each in self.roots if any(name.startswith(each) for name in state)), key=len, default="")
        if not root:
            return None
        tensors = {name.removeprefix(root): tensor for name, tensor in state.items() if name.startswith(root)}
        images = self.images
        if self.mean in state:
            red, green, blue = state[self.mean].tolist()
            images = replace(images, mean=(red, green, blue))
        return BackboneState(
            root=root, tensors=tensors, candidates=self.candidates, images=images, assumed=self.assumed
        )


@dataclass(frozen=True, kw_only=True)
class Dialect(ABC):
    """One way to save a NetVLAD.

    Args:
        name: its name for `--dialect`.
        needs: names that must be there, after one of the roots; the first identifies a layer.
        lacks: names that must not be there, after the same root.
        roots: prefixes of the layer in its own code; empty for a layer that was saved alone.
        present: names beside the layer that must be there too, for the keys to be this dialect's.
        absent: names beside the layer that must not be there.
        beside: prefixes of names beside the layer that tell this dialect from others with the same root.
        unused: prefixes of tensors that change no descriptor: a classifier, or tensors that its code never applies.
        upstream: prefixes beside the layer of the network before it, whose widths are no sign of a projection.
        after: prefixes beside the layer of what its code does to the descriptor, and no graph here has.
        lone: the name to give to the tensor of a file that holds one tensor and no name; empty to refuse such a file.
        explicit: its keys are also those of a far more usual dialect, so it is chosen with `--dialect` alone.
        preprocessing: the required local descriptors, in words.
        backbone: the names of its image backbone, None if it has none.
    """

    name: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    roots: tuple[str, ...] = ("",)
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    upstream: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    lone: str = ""
    explicit: bool = False
    preprocessing: str = PREPROCESSING
    backbone: BackboneKeys | None = None

    @abstractmethod
    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head under one of the roots: tensors are renamed, cut and transposed, their values kept.

        Raises: InputError if a tensor is missing, of another shape or unknown.
        """

    def places(self, state: Mapping[str, Tensor]) -> "Iterator[Place]":
        """Yield the places of the names in `needs`; of several roots that fit a layer the longest counts."""
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
        """Return the names in `needs` that a state lacks, under the root that lacks fewest."""
        lists = [tuple(root + name for name in self.needs if root + name not in state) for root in self.roots]
        return min(lists, key=len)

    def others(self, state: Mapping[str, Tensor], root: str, used: Iterable[str]) -> tuple[str, ...]:
        """Return the names that the head does not use.

        Raises: InputError if one of them, an unknown part of the layer, stands under the head's root.
        """
        others = tuple(sorted(set(state) - set(used)))
        lacking = {root + name for name in self.lacks}
        strange = [
            name for name in others if name.startswith(root) and (name in lacking or not PROJECTION_NAME.search(name))
        ]
        if strange:
            raise InputError(f"holds {names(strange)} in the layer, which {self.name} does not have")
        return others

    def matrix(self, state: Mapping[str, Tensor], name: str, inputs: int, *, by_column: bool = False) -> Tensor:
        """Return a projection's matrix as (P, inputs), from a linear layer, a 1x1 convolution, or (inputs, P).

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
        """Return the vector of this name with `length` values, as many as the rows of the weight called `beside`.

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
    """The place of a layer in a file: its dialect, the prefix before the dialect's names, and the dialect's root."""

    dialect: Dialect
    before: str
    root: str

    @property
    def start(self) -> str:
        """Return the whole prefix of the layer's names."""
        return self.before + self.root

    @property
    def layer(self) -> str:
        """Return the full name of the layer's first tensor, which identifies it."""
        return self.start + self.dialect.needs[0]

    def below(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under the prefix by the dialect's names."""
        return {name.removeprefix(self.before): value for name, value in state.items() if name.startswith(self.before)}

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Return True if the names in and beside the layer are those that the dialect demands and allows."""
        dialect = self.dialect
        return (
            all(self.before + name in state for name in dialect.present)
            and not any(self.before + name in state for name in dialect.absent)
            and not any(self.start + name in state for name in dialect.lacks)
        )

    def is_named(self, state: Mapping[str, Tensor]) -> bool:
        """Return True if the file shows the dialect: by names in `beside`, or else by a root that is not empty."""
        if self.dialect.beside:
            return any(name.startswith(tuple(self.before + each for each in self.dialect.beside)) for name in state)
        return bool(self.root)

    def head(self, state: Mapping[str, Tensor]) -> Head:
        """Return the head at this place; its fields have the names of the file.

        Raises: InputError as `Dialect.convert`.
        """
        head = self.dialect.convert(self.below(state), self.root)
        outside = (name for name in state if not name.startswith(self.before))
        return replace(
            head,
            dialect=self.dialect.name,
            preprocessing=self.dialect.preprocessing,
            ignored=tuple(sorted((*(self.before + name for name in head.ignored), *outside))),
            projected=tuple(self.before + name for name in head.projected),
        )

    def backbone(self, state: Mapping[str, Tensor], ignored: Iterable[str]) -> BackboneState | None:
        """Return the image backbone beside the head: the dialect's, an unknown one with a usual prefix, or None."""
        keys = self.dialect.backbone
        if keys is not None and (found := keys.find(self.below(state))) is not None:
            return replace(found, root=self.before + found.root)
        for root in (start + each for start in (self.before, "") for each in BACKBONE_PREFIXES):
            tensors = {name.removeprefix(root): state[name] for name in ignored if name.startswith(root)}
            if tensors:
                return BackboneState(root=root, tensors=tensors, candidates=(), images=ImageInput())
        return None


def in_words(spec: NetVLADSpec | AggregatorSpec) -> str:
    """Return the conventions of a layer in one line."""
    return ", ".join(f"{subject} {said}" for subject, said in conventions(spec).items())


def conventions(spec: NetVLADSpec | AggregatorSpec) -> dict[str, str]:
    """Return the conventions of a layer, by subject, in words: they need not show in names and shapes."""
    if not isinstance(spec, NetVLADSpec):
        return {"layer": spec.name, **{name: str(value) for name, value in spec.settings.items()}}
    said = {
        "local descriptors": "L2-normalised first" if spec.normalize_input else "as they come",
        "logits": "with BatchNorm" if spec.batch_norm else "with a bias" if spec.assignment_bias else "without a bias",
        "residual": "x - c",
        "order": spec.flatten,
    }
    if spec.num_ghost_clusters:
        said["ghost clusters"] = str(spec.num_ghost_clusters)
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


def cluster_sizes(
    clusters: str, clusters2: str, state: Mapping[str, Tensor], *, ghosts: bool = True
) -> tuple[int, int, int]:
    """Return K, D and G of the tensors of these names, (D,K+G) and (1,D,K).

    Raises: InputError if they have other shapes, or ghost clusters that the dialect does not have.
    """
    first, second = tuple(state[clusters].shape), tuple(state[clusters2].shape)
    if len(first) != 2 or len(second) != 3 or second[:2] != (1, first[0]):
        raise InputError(f"{clusters} {first} and {clusters2} {second} are not (D, K+G) and (1, D, K)")
    if first[1] != second[2] and not ghosts:
        raise InputError(f"{clusters} {first} and {clusters2} {second} are not (D, K) and (1, D, K)")
    return second[2], first[0], first[1] - second[2]
