"""Turn feature files into descriptors: one (B,N,D) array, or ragged sequences through the mask."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.retrieval.batches import batches, largest_batch, run_batch, smallest_shape
from netvlad_deploy.runner import Runner, check_features, check_finite
from netvlad_deploy.spec.graph_options import COARSE_STEP
from netvlad_deploy.spec.layer import FEATURES, MASK
from netvlad_deploy.support.arrays import Array, Arrays, Float64, read_arrays
from netvlad_deploy.support.progress import Progress

LOG = logging.getLogger(__name__)

FEATURE_SUFFIXES = (".npy", ".npz")
DESCRIPTOR_NOT_FINITE = "{runner} gave a descriptor that is not finite for {name}: scale its features down"


def load_features(path: Path) -> Array | Arrays:
    """Read one array (B,N,D) from `.npy`, or named sequences (N_i,D) from `.npz`; pickles are refused.

    Raises: InputError if the file is missing, unreadable or holds something else.
    """
    if path.suffix not in FEATURE_SUFFIXES:
        raise InputError(f"{path} is no feature file: expected {' or '.join(FEATURE_SUFFIXES)}")
    return read_arrays(path)


def check_target(source: Path, target: Path) -> None:
    """Raise UsageError unless the target is another file of the source's kind: array to array, or sequences to them."""
    if source.suffix != target.suffix:
        raise UsageError(f"{source.name} becomes a {source.suffix} file, the target is {target.name}")
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"{target} holds the features, it cannot be the target too: name another file")


def embed_array(runner: Runner, features: Array, *, batch: int) -> Array:
    """Return the descriptors (B, D*K) of features (B,N,D), computed `batch` at a time.

    Raises: InputError naming the first item that is wrong.
    """
    features = _readable(features, runner)
    parts, warned = [], False
    progress = Progress("embedding", len(features), "items")
    for group in batches(enumerate(features), lambda shape: largest_batch(runner, batch, shape[:1], grows=2)):
        part, start = np.stack([item for _, item in group]), group[0][0]
        check_finite(part, first_item=start, limits=runner.range)
        warned = warned or _warn_of_coarse_logits(runner, part, start)
        items = [f"batch item {index}" for index, _ in group]
        parts.append(_run(runner, part, np.ones(part.shape[:2], dtype=np.bool_), items))
        progress.advance(len(group))
    return np.concatenate(parts)


def embed_sequences(runner: Runner, sequences: Mapping[str, Array], *, batch: int) -> Arrays:
    """Return a descriptor (D*K,) for each sequence (N_i,D): sorted by length, padded with zeros, masked.

    Raises: InputError if the artifact takes no mask, there is no sequence, or naming the sequence that is wrong.
    """
    if MASK not in (*runner.inputs, *runner.optional_inputs):
        raise InputError(
            f"sequences of different length need a mask, which {runner.name} does not take: export with --masked"
        )
    if not sequences:
        raise InputError("no sequence to embed")
    for name, sequence in sequences.items():
        try:
            check_finite(_readable(sequence[None], runner), limits=runner.range)
        except InputError as error:
            raise InputError(f"sequence {name}: {error}") from error
    longest = max(sequences, key=lambda name: float(_norms(sequences[name]).max()))
    _warn_of_coarse_logits(runner, sequences[longest][None], longest)
    by_length = sorted(sequences.items(), key=lambda item: len(item[1]), reverse=True)
    results: Arrays = {}
    progress = Progress("embedding", len(sequences), "sequences")
    for group in batches(by_length, lambda shape: largest_batch(runner, batch, shape[:1], grows=2), padded=True):
        names, rows = [name for name, _ in group], [row for _, row in group]
        shape = len(rows), len(rows[0])
        padded, mask = pad(rows, shortest=(smallest_shape(runner.profiles, shape, grows=2) or shape)[1])
        results.update(zip(names, _run(runner, padded, mask, names), strict=True))
        progress.advance(len(group))
    return {name: results[name] for name in sequences}


def _readable(features: Array, runner: Runner) -> Array:
    """Return features (B,N,D) of a file as float32, which says every FP16 number exactly.

    Raises: InputError if they are no features of this runner's width, or neither float32 nor float16.
    """
    if features.dtype == np.float16:
        features = features.astype(np.float32)
    check_features(features, runner.spec.feature_size)
    return features


def _warn_of_coarse_logits(runner: Runner, features: Array, first: int | str) -> bool:
    """Say which local descriptor of (B,N,D) is so long that its logits are too coarse; return whether one is."""
    norms = _norms(features)
    item, row = np.unravel_index(int(norms.argmax()), norms.shape)
    step = runner.range.step_at(float(norms[item, row])) if runner.range else 0.0
    if step <= COARSE_STEP:
        return False
    where = f"batch item {first + int(item)}" if isinstance(first, int) else f"sequence {first}"
    cure = "L2-normalise it" + (" or export with --wide-logits" if runner.precision == "fp16" else "")
    LOG.warning(
        "%s, row %d has norm %.4g: %s logits are %g apart there, %s",
        where, row, norms[item, row], runner.precision, step, cure,
    )  # fmt: skip
    return True


def _norms(features: Array) -> Float64:
    norms: Float64 = np.linalg.norm(features.astype(np.float64), axis=-1)
    return norms


def pad(sequences: list[Array], *, shortest: int = 1) -> tuple[Array, Array]:
    """Return sequences (N_i,D) as one zero-padded array (B,N,D) and its mask (B,N), N at least `shortest`."""
    lengths = np.array([len(sequence) for sequence in sequences])
    longest = max(int(lengths.max()), shortest)
    padded = np.zeros((len(sequences), longest, sequences[0].shape[1]), dtype=sequences[0].dtype)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, np.arange(longest) < lengths[:, None]


def _run(runner: Runner, features: Array, mask: Array, names: Sequence[str]) -> Array:
    """Return the descriptors (B,P) of named features (B,N,D); the mask (B,N) goes along where the runner needs it."""
    feeds = {FEATURES: features.astype(runner.dtype, copy=False)}
    if MASK in runner.inputs or (MASK in runner.optional_inputs and not mask.all()):
        feeds[MASK] = mask
    return run_batch(runner, feeds, names, DESCRIPTOR_NOT_FINITE)
