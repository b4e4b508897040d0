"""The exact nearest descriptors of some queries, and how many of them an index finds."""

from typing import Final

import numpy as np
import numpy.typing as npt

from netvlad_deploy.retrieval.recall import nearness
from netvlad_deploy.support.arrays import Float32

DEPTH: Final = 10
"""Recall is of so many nearest descriptors."""

KEPT: Final = 64
"""Nearest descriptors of a query that are kept: more than DEPTH, for those that are as near as the last one."""

TIE: Final = 1e-6
"""Two descriptors are as near if they differ by less, relative to 1 or to the nearness: the rounding of FP32 sums."""


class ExactNearest:
    """The KEPT nearest descriptors of each query, of all that were seen.

    Args:
        queries: (Q,P).
        unit: whether every descriptor has length 1; the nearest is then that of the largest dot product, otherwise that
            of the smallest Euclidean distance.

    >>> exact = ExactNearest(np.array([[1.0, 0.0]], np.float32), unit=True)
    >>> exact.see(np.eye(2, dtype=np.float32), 0)
    >>> exact.recall(np.array([[0, 1]])), exact.recall(np.array([[0, -1]]))
    (1.0, 0.5)
    """

    def __init__(self, queries: Float32, *, unit: bool) -> None:
        self.queries, self.unit = queries, unit
        self._near = np.empty((len(queries), 0), np.float32)
        self._places = np.empty((len(queries), 0), np.int64)

    def see(self, rows: Float32, first: int) -> None:
        """Look at more descriptors (n,P), which stand in the index from the place `first` on."""
        parts = [near for _, near in nearness(self.queries, rows, alone=False, unit=self.unit)]
        if not parts:
            return
        places = np.broadcast_to(np.arange(first, first + len(rows)), (len(self.queries), len(rows)))
        near, places = np.hstack([self._near, *[np.vstack(parts)]]), np.hstack([self._places, places])
        best = np.argsort(-near, axis=1, kind="stable")[:, :KEPT]
        self._near, self._places = np.take_along_axis(near, best, 1), np.take_along_axis(places, best, 1)

    def recall(self, found: npt.NDArray[np.int64]) -> float:
        """Return the share of the DEPTH nearest that is among the places (Q,DEPTH) that an index found.

        One that is as near as the last of them counts as well as that one. Where fewer were seen, all of them count.
        """
        depth = min(DEPTH, self._near.shape[1])
        last = self._near[:, depth - 1 : depth]
        right = self._near >= last - TIE * np.maximum(1, np.abs(last))
        hits = [
            min(depth, len(np.intersect1d(places[near], answer)))
            for places, near, answer in zip(self._places, right, found, strict=True)
        ]
        return float(np.mean(hits)) / depth
