"""What may follow the head: a linear map of its descriptor, such as whitening, and context gating.

    v (B,D*K)  ->  y = v P^T + p, or BatchNorm(v P^T)  ->  y / |y| if `l2`  ->  z = y * sigmoid(y G^T + g) if `gating`
               ->  z / |z| if `final_l2`

Standard library only, like `spec`.
"""

from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import InputError

BIAS: Final = "bias"
BATCH_NORM: Final = "batch_norm"
GATINGS: Final = (None, BIAS, BATCH_NORM)


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Shape and conventions of what follows a head.

    Args:
        size: P, how many values come out.
        bias: add a bias (P,) to the product.
        batch_norm: normalise the product instead.
        l2: L2-normalise the result.
        gating: multiply each value by a sigmoid of a square map of all; the map has a `bias` or `batch_norm`.
        final_l2: L2-normalise what the gating gives.

    Raises: InputError if the size is out of range, the gating is unknown, both a bias and BatchNorm are asked for, or
        nothing is gated and `final_l2` is asked for.

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
        """Return whether no value that comes out is larger than 1."""
        return self.l2 or self.final_l2

    @property
    def unit_length(self) -> bool:
        """Return whether what comes out has the length 1."""
        return self.final_l2 or (self.l2 and self.gating is None)
