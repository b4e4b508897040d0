"""Shape and conventions of a NetVLAD layer, or of another aggregator, and the names of the tensors in its graph."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final, TypeAlias

from netvlad_deploy.errors import InputError

BIAS: Final = "bias"
BATCH_NORM: Final = "batch_norm"
GATINGS: Final = (None, BIAS, BATCH_NORM)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Shape and conventions of the projection after a head, and of its gating.

    Args:
        size: P, the number of values in the result.
        bias: add a bias (P,) to the product.
        batch_norm: apply BatchNorm to the product; excludes `bias`.
        l2: L2-normalise the result.
        gating: multiply the result by the sigmoid of a linear map of it (P,P), which has a `bias` or `batch_norm`; or
            None.
        final_l2: L2-normalise after the gating.

    Raises: InputError if the size is out of range, the gating is unknown, both a bias and BatchNorm are asked for, or
        `final_l2` is asked for without gating.

    Source of the gating: Miech et al. 2017, "Learnable pooling with Context Gating for video classification".
    """

    size: int
    bias: bool = True
    batch_norm: bool = False
    l2: bool = True
    gating: str | None = None
    final_l2: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"the projection's size is {self.size}, expected at least 1")
        if self.gating not in GATINGS:
            raise InputError(f"gating is {self.gating!r}, expected {BIAS}, {BATCH_NORM} or None")
        if self.bias and self.batch_norm:
            raise InputError("a projection has BatchNorm or a bias, not both")
        if self.final_l2 and self.gating is None:
            raise InputError("a projection without gating has no final_l2: l2 normalises its result")

    @property
    def bounded(self) -> bool:
        """Return True if no value of the result can exceed 1."""
        return self.l2 or self.final_l2

    @property
    def unit_length(self) -> bool:
        """Return True if the result has Euclidean norm 1."""
        return self.final_l2 or (self.l2 and self.gating is None)


FEATURES: Final = "features"
MASK: Final = "mask"
TOKEN: Final = "token"
ASSIGNMENT_FEATURES: Final = "assignment_features"
DESCRIPTOR: Final = "descriptor"
SOFT_ASSIGNMENT: Final = "soft_assignment"
RESIDUAL_SUM: Final = "residual_sum"
PROBES: Final = (SOFT_ASSIGNMENT, RESIDUAL_SUM)
ASSIGNMENT_LOGITS: Final = "assignment_logits"
MEAN_RESIDUAL: Final = "mean_residual"
STAGES: Final = (ASSIGNMENT_LOGITS, SOFT_ASSIGNMENT, MEAN_RESIDUAL, RESIDUAL_SUM, DESCRIPTOR)
"""Names of tensors in an exported graph, in the order in which they are computed."""

AGGREGATE: Final = "aggregate"
"""Name of the flattened, L2-normalised vector before a projection: the last but one stage of a layer that has one."""

CLAMP: Final = "clamp"
RSQRT: Final = "rsqrt"
ADD: Final = "add"
NORM_FLOORS: Final = MappingProxyType({CLAMP: 1e-12, RSQRT: 1e-6, ADD: 1e-6})
"""Constant that keeps a division by a norm finite, by convention: `clamp`, torch's, takes every norm as at least 1e-12;
`rsqrt`, TensorFlow's, takes its square as at least 1e-12; `add`, MatConvNet's, adds 1e-12 to its square.
"""

CLUSTERS_LAST: Final = "d*K+k"
CLUSTERS_FIRST: Final = "k*D+d"
FLATTENINGS: Final = (CLUSTERS_LAST, CLUSTERS_FIRST)
"""Conventions for the index of value d of cluster k in a descriptor."""


NOTHING: Final = MappingProxyType[str, int]({})
"""What a layer has none of that another kind of layer has: lengths of axes that are fixed, settings."""


@dataclass(frozen=True, kw_only=True)
class NetVLADSpec:
    """Shape and conventions of a NetVLAD layer.

    Args:
        num_clusters: K.
        feature_size: D, the number of values in a local descriptor.
        num_ghost_clusters: G, clusters that take assignments and have no part in the descriptor.
        batch_norm: apply BatchNorm to the assignment logits.
        assignment_bias: add a bias to the logits; excludes `batch_norm`.
        normalize_input: L2-normalise every local descriptor first.
        flatten: index of value d of cluster k in a descriptor, `d*K+k` or `k*D+d`.
        normalization: the normalisations of the residuals, in their order.
        epsilon: how a division by a norm is kept finite, one of NORM_FLOORS.
        projection: the projection of the flattened, L2-normalised vector; None if that vector is the descriptor.

    Raises: InputError if a size is out of range, or the conventions are unknown or contradict each other.
    """

    num_clusters: int
    feature_size: int
    num_ghost_clusters: int = 0
    batch_norm: bool = True
    assignment_bias: bool = False
    normalize_input: bool = False
    flatten: str = CLUSTERS_LAST
    normalization: tuple[str, ...] = ("intra", "l2")
    epsilon: str = CLAMP
    projection: Projection | None = None

    least_features: ClassVar[int] = 1
    fixed_lengths: ClassVar[Mapping[str, int]] = NOTHING

    def __post_init__(self) -> None:
        for name, least in (("num_clusters", 1), ("feature_size", 1), ("num_ghost_clusters", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.flatten not in FLATTENINGS:
            raise InputError(f"flatten is {self.flatten!r}, expected one of {', '.join(FLATTENINGS)}")
        if self.batch_norm and self.assignment_bias:
            raise InputError("a layer has BatchNorm on its assignments or a bias, not both")
        if self.epsilon not in NORM_FLOORS:
            raise InputError(f"epsilon is {self.epsilon!r}, expected one of {', '.join(NORM_FLOORS)}")

    @property
    def aggregate_size(self) -> int:
        """Return D*K, the number of values in the flattened vector."""
        return self.num_clusters * self.feature_size

    @property
    def descriptor_size(self) -> int:
        """Return the number of values in a descriptor: that of the projection, or D*K without one."""
        return self.aggregate_size if self.projection is None else self.projection.size

    @property
    def unit_length(self) -> bool:
        """Return True if descriptors have Euclidean norm 1."""
        return self.projection is None or self.projection.unit_length

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the named tensors of the layer's graph, in the order in which they are computed."""
        return STAGES if self.projection is None else (*STAGES[:-1], AGGREGATE, DESCRIPTOR)


AXES: Final = ("batch", "num_features", "height", "width")
"""Names of the axes of features and images that are dynamic, unless a foreign file has fixed them."""


@dataclass(frozen=True, kw_only=True)
class AggregatorSpec:
    """Shape of a layer other than NetVLAD that turns local descriptors, or images, into one descriptor.

    The oracle's equations and the error model are NetVLAD's. Such a layer is proved by golden inputs instead, whose
    descriptors stand in its reference file.

    Args:
        name: its name, such as `salad`; FOREIGN for a network of which nothing but its file is known.
        descriptor_size: P, the number of values in a descriptor.
        unit_length: descriptors have Euclidean norm 1.
        feature_size: D, the number of values in a local descriptor; 0 if it takes images alone.
        token_size: number of values of the input `token` (B,T), such as a class token; 0 without one.
        assignment_feature_size: width of the input `assignment_features` (B,N,A), of which the assignments are
            computed where they are not those of the local descriptors; 0 without one.
        least_features: the smallest N for which it is defined.
        takes_map: it takes the feature map (B,D,h,w) beside its local descriptors, so that it needs a backbone.
        settings: its other sizes and constants, by name.

    Raises: InputError if a size is out of range.

    >>> spec = AggregatorSpec(name="salad", descriptor_size=8448, unit_length=True, feature_size=768, token_size=768)
    >>> spec.inputs
    ('features', 'token')
    """

    name: str
    descriptor_size: int
    unit_length: bool
    feature_size: int = 0
    token_size: int = 0
    assignment_feature_size: int = 0
    least_features: int = 1
    takes_map: bool = False
    settings: Mapping[str, str | int | float] = field(default_factory=dict)

    projection: ClassVar[None] = None  # what follows such a layer is a part of it

    def __post_init__(self) -> None:
        sizes = {"descriptor_size": 1, "feature_size": 0, "token_size": 0, "assignment_feature_size": 0}
        for name, least in (sizes | {"least_features": 1}).items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of its inputs beside images."""
        sizes = {FEATURES: self.feature_size, TOKEN: self.token_size, ASSIGNMENT_FEATURES: self.assignment_feature_size}
        return tuple(name for name, size in sizes.items() if size)

    @property
    def fixed_lengths(self) -> dict[str, int]:
        """Return the lengths of the axes of its inputs that are fixed, by their names in `settings`."""
        return {name: int(value) for name, value in self.settings.items() if name in AXES}

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the named tensors of the layer's graph."""
        return (DESCRIPTOR,)


@dataclass(frozen=True, kw_only=True)
class HeadsSpec:
    """Several NetVLADs in one graph by name, each with an input and an output of its own.

    Each is proved by its own oracle. All of them take one batch, and each its own number of local descriptors.

    Raises: InputError if there is none.

    >>> heads = HeadsSpec(heads={"after": NetVLADSpec(num_clusters=2, feature_size=4)})
    >>> heads.inputs, heads.outputs
    (('features.after',), ('descriptor.after',))
    """

    heads: Mapping[str, NetVLADSpec]

    feature_size: ClassVar[int] = 0  # every head has a width and conventions of its own
    least_features: ClassVar[int] = 1
    fixed_lengths: ClassVar[Mapping[str, int]] = NOTHING
    settings: ClassVar[Mapping[str, int]] = NOTHING

    def __post_init__(self) -> None:
        if not self.heads:
            raise InputError("there is no head")

    @property
    def name(self) -> str:
        """Return the kind of layer in words."""
        return f"{len(self.heads)} heads"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs, one for each head."""
        return tuple(of_head(FEATURES, name) for name in self.heads)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs, one for each head."""
        return tuple(of_head(DESCRIPTOR, name) for name in self.heads)

    @property
    def stages(self) -> tuple[str, ...]:
        """Return the named tensors of the graph, head by head in the order in which they are computed."""
        return tuple(of_head(stage, name) for name, spec in self.heads.items() for stage in spec.stages)

    @property
    def descriptor_size(self) -> int:
        """Return the number of values in all descriptors together."""
        return sum(spec.descriptor_size for spec in self.heads.values())

    @property
    def unit_length(self) -> bool:
        """Return True if every descriptor has Euclidean norm 1."""
        return all(spec.unit_length for spec in self.heads.values())

    @property
    def projection(self) -> Projection | None:
        """Return the projection of the first head that has one, None if none has."""
        return next((spec.projection for spec in self.heads.values() if spec.projection is not None), None)


def of_head(tensor: str, head: str) -> str:
    """Return the name of one head's tensor in a graph of several heads, such as `features.before`."""
    return f"{tensor}.{head}"


FOREIGN: Final = "foreign"
"""Name of the layer of a network of which nothing but its file is known."""

AnySpec: TypeAlias = NetVLADSpec | AggregatorSpec | HeadsSpec


def is_gated(spec: AnySpec) -> bool:
    """Return True if a layer, or one of several, has a gating after its projection."""
    specs = spec.heads.values() if isinstance(spec, HeadsSpec) else (spec,)
    return any(each.projection is not None and each.projection.gating is not None for each in specs)


def input_shape(spec: AnySpec, name: str, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an input of a layer for the lengths of its dynamic axes, (B,N).

    >>> input_shape(NetVLADSpec(num_clusters=2, feature_size=4), "features", (1, 300))
    (1, 300, 4)
    """
    if isinstance(spec, HeadsSpec):
        return (*lengths, spec.heads[name.removeprefix(of_head(FEATURES, ""))].feature_size)
    if name == MASK:
        return lengths
    if isinstance(spec, NetVLADSpec) or name == FEATURES:
        return (*lengths, spec.feature_size)
    return (lengths[0], spec.token_size) if name == TOKEN else (*lengths, spec.assignment_feature_size)
