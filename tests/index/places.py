"""Descriptors that lie as those of photos do: near to each other around places, and places far apart."""

from pathlib import Path

import numpy as np

from netvlad_deploy.support.arrays import Float32, unit_rows

SIZE = 24


def descriptors(count: int, *, seed: int = 0, places: int = 60, spread: float = 0.6) -> Float32:
    """Return unit descriptors (count,SIZE)."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((places, SIZE))
    rows = centres[rng.integers(0, places, count)] + spread * rng.standard_normal((count, SIZE))
    unit: Float32 = unit_rows(rows).astype(np.float32)
    return unit


def write(path: Path, rows: Float32, names: list[str] | None = None) -> Path:
    """Write descriptors and their names as `numpy.savez` does."""
    np.savez(path, names=names or [f"walk/{place:05}.jpg" for place in range(len(rows))], descriptors=rows)
    return path
