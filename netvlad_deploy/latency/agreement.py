"""Whether two candidates for the same weights compute the same: what computes something else must not be timed."""

from typing import Final

from netvlad_deploy.support.arrays import Array, cosines

MOST_APART: Final = 1e-3
"""Largest 1 - cosine of two descriptors of one image: far above what FP16 costs, far below what another image gives."""


def disagreement(own: Array, other: Array, name: str) -> str:
    """Return in words how far a descriptor is from that of the candidate `name`, empty if they agree.

    >>> import numpy as np
    >>> disagreement(np.array([3.0, 4.0]), np.array([4.0, 3.0]), "m.onnx")
    'computes something else than m.onnx, so it was not timed: 1 - cosine of their descriptors is 0.04'
    >>> disagreement(np.array([3.0, 4.0]), np.array([6.0, 8.0]), "m.onnx")
    ''
    """
    what = f"computes something else than {name}, so it was not timed"
    if own.shape != other.shape:
        return f"{what}: {own.size} values, not {other.size}"
    if own.any() != other.any():
        return f"{what}: one of their descriptors is zero"
    apart = 1 - float(cosines(own[None], other[None])[0]) if own.any() else 0.0
    return "" if apart <= MOST_APART else f"{what}: 1 - cosine of their descriptors is {apart:.2g}"
