"""Turn local descriptors in memory into descriptors: an array (B,N,D), or sequences of any lengths with a mask."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from netvlad_deploy.errors import InputError
from netvlad_deploy.retrieval.loading import takes_mask
from netvlad_deploy.retrieval.stream import describe
from netvlad_deploy.runner import Runner, check_features
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.support.arrays import Array, Arrays, Float32
from netvlad_deploy.support.progress import Progress


def embed_array(runner: Runner, features: Array, *, batch: int) -> Float32:
    """Return the descriptors (B, D*K) of features (B,N,D), computed `batch` at a time.

    Raises: InputError naming the first item that is wrong.
    """
    check_features(features, runner.spec.feature_size, dtype=features.dtype)
    named = ((f"batch item {index}", item) for index, item in enumerate(features))
    return np.stack(list(_described(runner, named, len(features), batch)))


def embed_sequences(runner: Runner, sequences: Mapping[str, Array], *, batch: int) -> Arrays:
    """Return a descriptor (D*K,) for each sequence (N_i,D), in their order: padded with zeros, and masked.

    Raises: InputError if the artifact takes no mask, there is no sequence, or naming the first sequence that is wrong.
    """
    if not takes_mask(runner):
        raise InputError(
            f"sequences of different length need a mask, which {runner.name} does not take: export with --masked"
        )
    if not sequences:
        raise InputError("no sequence to embed")
    named = ((f"sequence {name}", sequence) for name, sequence in sequences.items())
    return dict(zip(sequences, _described(runner, named, len(sequences), batch), strict=True))


def _described(runner: Runner, named: Iterable[tuple[str, Array]], count: int, batch: int) -> Iterator[Float32]:
    progress = Progress("embedding", count, "items")
    contents = (
        (Item(name=name, path=Path(name), size_bytes=array.nbytes, modified_ns=0), partial(np.asarray, array))
        for name, array in named
    )
    for item, descriptor in describe(runner, None, contents, batch=batch):
        if isinstance(descriptor, Skipped):
            raise InputError(f"{item.name}: {descriptor.detail or descriptor.reason}")
        yield descriptor
        progress.advance()
