"""The formulas of aggregators other than NetVLAD, in float64, by the name in their spec.

Each reads the unfolded parameters by the names of the torch module's state, and shares no code with that module, its
fold or its graph.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.support.arrays import Array, Float64

Formula: TypeAlias = Callable[[AggregatorSpec, Mapping[str, Array], Mapping[str, Array]], Float64]
"""A function of the spec, the parameters and the feeds (B,...), all in float64, that returns descriptors (B,P)."""

FORMULAS: Final[dict[str, Formula]] = {}
