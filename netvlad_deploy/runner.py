"""The one way to run anything: feeds in, arrays out.

A runner does not check that features are finite: this is checked where they enter (`check_finite`), since otherwise it
would be timed, too. Padded rows are the exception: with a mask they must be finite, since 0 * NaN is NaN.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError, RunError, UsageError
from netvlad_deploy.spec.build_options import fitting_profile
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.images import CHANNELS, IMAGES, AnyProfile
from netvlad_deploy.spec.layer import FEATURES, MASK, AggregatorSpec, AnySpec, HeadsSpec, input_shape, of_head
from netvlad_deploy.spec.layouts import Layout
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.tensors import ImageTensors, LaidOut
from netvlad_deploy.support.arrays import Array, Arrays

Feeds = Mapping[str, Array]
Found = TypeVar("Found")
RunnerType = TypeVar("RunnerType", bound="Runner")
FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class EventTimes:
    """One run by the GPU's own clock: copies in, the work, copies out; `enqueue_ms` by the host's: its start."""

    h2d_ms: float
    compute_ms: float
    d2h_ms: float
    enqueue_ms: float


class OnDevice(Protocol):
    """An output that stays on a GPU: DLPack hands it to torch, CuPy and JAX without a copy."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's kind of the device, and its number."""

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        """Return a capsule that shares the memory and keeps it."""


@dataclass(eq=False, repr=False)
class Runner(ABC):
    """Compute the outputs of one artifact, checkpoint or oracle.

    Feeds: `features` (B,N,D) and, if the artifact takes one, `mask` (B,N) bool, True where a row is valid; the other
    inputs of an aggregator that is no NetVLAD, by the names of its spec; of several heads the features of each,
    `features.NAME`; or, for a pipeline, `images` (B,H,W,3) uint8.
    Outputs: `descriptor` (B, D*K); with probes also `soft_assignment` (B,N,K) and `residual_sum` (B,K,D).
    `dtype` is that of the features or images; `range` is the range of features for which the artifact is accurate.
    `tensors` are those of a pipeline whose images or names are not these: then `inputs`, `outputs` and `dtype` are
    still these, and what is fed and found is changed into the graph's own and back.
    `concurrent` is True where several threads may run it at once; `lanes` is how many runs at once are of use: on a GPU
    the next batch is copied there while one is computed.
    """

    name: str
    spec: AnySpec
    _: KW_ONLY
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional_inputs: tuple[str, ...] = ()
    dtype: np.dtype[Any] = FLOAT32
    profiles: tuple[AnyProfile, ...] = ()
    precision: str = "fp32"
    range: FeatureRange | None = None
    tensors: ImageTensors | None = None
    concurrent: bool = field(default=False, init=False)
    lanes: int = field(default=1, init=False)
    _open: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.tensors is not None:
            self.inputs, self.dtype = (IMAGES,), np.dtype(np.uint8)
            self.outputs = tuple(map(self.tensors.named, self.outputs))

    @property
    def half(self) -> bool:
        """Return True if it computes in FP16: then features must be rounded to FP16 before a fair comparison."""
        return self.precision.startswith("fp16")

    @property
    def largest_feature(self) -> float | None:
        """Return the largest absolute value that features may have, None if any that FP32 can say."""
        return None if self.range is None else self.range.largest

    @property
    def feature_profiles(self) -> tuple[Profile, ...]:
        """Return the optimization profiles of a head, none for a pipeline."""
        return tuple(profile for profile in self.profiles if isinstance(profile, Profile))

    @property
    def conditions(self) -> str:
        """Return the runner's means of being fast, such as CUDA graphs, in words for a latency report."""
        return ""

    @property
    def hidden(self) -> str:
        """Return in words why `tapped` does not show the stages inside, where it does not."""
        return f"{self.name} gives its outputs alone"

    def tapped(self, *, instead: bool = False) -> "Runner":  # noqa: ARG002  # nothing to close here
        """Return a runner of the same thing that also gives the stages inside, as far as they can be seen.

        `instead` closes this one, where the runner returned is another, before that is opened: a large network would
        stand in memory twice.
        """
        return self

    @overload
    def run(self, feeds: Feeds, *, on_device: Literal[False] = False) -> Arrays: ...
    @overload
    def run(self, feeds: Feeds, *, on_device: Literal[True]) -> Mapping[str, OnDevice]: ...
    def run(self, feeds: Feeds, *, on_device: bool = False) -> Arrays | Mapping[str, OnDevice]:
        """Return a fresh array for each output, on the host, or with `on_device` left on the GPU of an engine.

        Raises: InputError if the runner does not take these feeds; UsageError for `on_device` where outputs are on the
            host; RunError if it was closed or failed.
        """
        if on_device:
            raise UsageError(
                f"{self.name} has its outputs on the host, only an engine's stay on a GPU: leave on_device out"
            )
        if not self._open:
            raise RunError(f"{self.name} is closed: open it again before running it")
        return self.named(self._run(self.check_feeds(feeds)))

    def named(self, found: Mapping[str, Found]) -> dict[str, Found]:
        """Return what a graph gave under this package's names."""
        return {name if self.tensors is None else self.tensors.named(name): each for name, each in found.items()}

    def time(self, feeds: Feeds) -> EventTimes | None:
        """Run once and return the times by the device's own clock, None where there is no such clock."""
        self.run(feeds)
        return None

    def check_feeds(self, feeds: Mapping[str, Any]) -> Arrays:
        """Return the feeds after checking names, rank, width, dtype and padding, those on the host contiguous.

        Images are returned as the graph takes them; as `LaidOut` they are taken as they are when they come again.

        Raises: InputError naming got, expected and a remedy.
        """
        if isinstance(feeds, LaidOut):
            return feeds
        if not set(self.inputs) <= set(feeds) <= {*self.inputs, *self.optional_inputs}:
            hint = ": export with --masked" if MASK in feeds else ""
            raise InputError(f"{self.name} takes {', '.join(self.inputs)}, got {', '.join(feeds) or 'nothing'}{hint}")
        main = feeds[self.inputs[0]]
        shapes = profiled_shapes(feeds, self.inputs, self.spec)
        if IMAGES in feeds:
            axes = ("batch", "height", "width")
            _check_array("images", main, axes, CHANNELS, np.uint8, hint="RGB from 0 to 255")
        elif isinstance(self.spec, HeadsSpec):
            check_heads_feeds(self.spec, feeds, self.dtype)
        else:
            check_features(main, self.spec.feature_size, dtype=self.dtype)
        if isinstance(self.spec, AggregatorSpec) and IMAGES not in feeds:
            check_aggregator_feeds(self.spec, feeds, self.dtype)
        if self.profiles:
            fitting_profile(self.profiles, *shapes[0], others=shapes[1:])
        if MASK in feeds:
            check_mask(feeds[MASK], main)
        if self.tensors is not None:
            if not isinstance(main, np.ndarray):
                raise InputError(f"{self.name} takes images on the host alone, since they are laid out there")
            return self.tensors.feeds(main)
        return {
            name: np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array
            for name, array in feeds.items()
        }

    def close(self) -> None:
        """Release memory and files; closing twice is fine."""
        self._open = False

    def __enter__(self: RunnerType) -> RunnerType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _run(self, feeds: Arrays) -> Arrays:
        """Compute the outputs of checked feeds."""


def profiled_shapes(
    feeds: Mapping[str, Any], inputs: Sequence[str], spec: AnySpec, layout: Layout | None = None
) -> list[tuple[int, ...]]:
    """Return the lengths (B,N) or (B,H,W) that one optimization profile must hold: of every head, or of the input."""
    names = inputs if isinstance(spec, HeadsSpec) else inputs[:1]
    if layout is not None:
        return [tuple(feeds[names[0]].shape[axis] for axis in layout.axes)]
    return [tuple(feeds[name].shape[:-1]) for name in names]


def check_features(
    features: Array, feature_size: int, *, dtype: npt.DTypeLike = np.float32, name: str = FEATURES
) -> None:
    """Raise InputError unless `features` is a (B, N, feature_size) array of `dtype` with B and N at least 1."""
    axes = ("batch", "num_features")
    _check_array(name, features, axes, feature_size, dtype, hint="convert with features.astype")


def check_heads_feeds(spec: HeadsSpec, feeds: Mapping[str, Any], dtype: npt.DTypeLike) -> None:
    """Raise InputError unless the features of each head fit it, and all have one batch size."""
    for head, each in spec.heads.items():
        name = of_head(FEATURES, head)
        check_features(feeds[name], each.feature_size, dtype=dtype, name=name)
    if len({feeds[name].shape[0] for name in spec.inputs}) > 1:
        batches = ", ".join(f"{name} {feeds[name].shape[0]}" for name in spec.inputs)
        raise InputError(f"all heads take one batch size, got {batches}")


def check_aggregator_feeds(spec: AggregatorSpec, feeds: Mapping[str, Any], dtype: npt.DTypeLike) -> None:
    """Raise InputError unless the inputs beside `features` fit those, and there are as many as the layer needs."""
    batch, num_features, _ = feeds[FEATURES].shape
    if num_features < spec.least_features:
        raise InputError(f"{num_features} features for each image, {spec.name} needs at least {spec.least_features}")
    for name in spec.inputs:
        array, shape = feeds[name], input_shape(spec, name, (batch, num_features))
        if tuple(array.shape) != shape or array.dtype != dtype:
            raise InputError(f"{name} is {array.dtype} {tuple(array.shape)}, expected {np.dtype(dtype)} {shape}")


def _check_array(
    name: str, array: Array, axes: tuple[str, ...], width: int, dtype: npt.DTypeLike, *, hint: str
) -> None:
    """Raise InputError unless an array has these axes, none of them empty, then one of `width`, and the dtype."""
    if array.ndim != len(axes) + 1 or array.shape[-1] != width:
        raise InputError(f"{name} have shape {array.shape}, expected ({', '.join(axes)}, {width})")
    if 0 in array.shape:
        lengths = f"{', '.join(axes[:-1])} and {axes[-1]}"
        raise InputError(f"{name} have shape {array.shape}: {lengths} must be at least 1")
    if array.dtype != dtype:
        raise InputError(f"{name} are {array.dtype}, expected {np.dtype(dtype)}: {hint}")


def check_mask(mask: Any, features: Any) -> None:
    """Raise InputError unless `mask` is a bool (B,N) array and the rows it pads are finite."""
    if mask.dtype != np.bool_ or mask.shape != features.shape[:2]:
        raise InputError(
            f"mask is {mask.dtype} {mask.shape}, expected bool {features.shape[:2]}: True marks valid rows"
        )
    if not (isinstance(mask, np.ndarray) and isinstance(features, np.ndarray)):
        return  # on a GPU: whoever put them there must know
    padded = ~mask
    if padded.any():
        finite = np.isfinite(features[padded]).all(axis=-1)
        if not finite.all():
            batch, row = (int(index[np.argmin(finite)]) for index in np.nonzero(padded))
            raise InputError(f"padded row {row} of batch item {batch} is not finite: pad with zeros (0 * NaN is NaN)")


def check_finite(features: Array, *, first_item: int | None = 0, limits: FeatureRange | None = None) -> None:
    """Raise InputError naming the first local descriptor of (B,N,D) that is not finite or outside the limits.

    A local descriptor of zeros is inside any. `first_item` is the number of the first item, None for a lone one.
    """
    peaks = np.abs(features).max(axis=-1)  # NaN stays NaN
    largest = limits.largest if limits is not None and limits.largest is not None else np.finfo(np.float32).max
    bad = ~(peaks <= largest)
    smallest = limits.smallest if limits is not None else None
    if smallest is not None and not bad.any():
        bad = (peaks > 0) & (peaks < smallest)  # a norm is no less than its largest value
        if bad.any():
            bad &= np.linalg.norm(features.astype(np.float64), axis=-1) < smallest
    spread = limits.spread if limits is not None else None
    if spread is not None and not bad.any():
        _check_spread(features, peaks, spread, first_item)
    if not bad.any():
        return
    item, row = (int(index[0]) for index in np.nonzero(bad))
    where = f"first at {_row_words(first_item, item, row)}"
    if not np.isfinite(peaks[item, row]):
        raise InputError(f"features are not finite: {where}")
    if peaks[item, row] > largest:
        over = f"{peaks[item, row]:g} is over {largest:g}"
        raise InputError(f"features are too large for this artifact: {where}, {over}: scale them down")
    norm = float(np.linalg.norm(features[item, row].astype(np.float64)))
    raise InputError(
        f"features are too small for this artifact: {where}, its norm {norm:.3g} is under {smallest:.3g}: scale them "
        "up, or set the row to zero"
    )


def _row_words(first_item: int | None, item: int, row: int) -> str:
    return f"row {row}" if first_item is None else f"batch item {first_item + item}, row {row}"


def _check_spread(features: Array, peaks: Array, spread: float, first_item: int | None) -> None:
    """Raise InputError if a local descriptor of (B,N,D) is over `spread` times shorter than the mean one of its image.

    `peaks` (B,N) are the largest absolute values; a norm is no less, and no more than sqrt(D) times as much.
    """
    longest = math.sqrt(features.shape[-1]) * peaks.astype(np.float64).mean(axis=1, keepdims=True)
    if not ((peaks > 0) & (peaks * spread < longest)).any():
        return
    norms = np.linalg.norm(features.astype(np.float64), axis=-1)
    mean = norms.mean(axis=1, keepdims=True)
    short = (norms > 0) & (norms * spread < mean)
    if short.any():
        item, row = (int(index[0]) for index in np.nonzero(short))
        raise InputError(
            f"features differ too much in length for this artifact: {_row_words(first_item, item, row)} has "
            f"norm {norms[item, row]:.3g}, over {spread:g} times less than the mean {mean[item, 0]:.3g} of its image: "
            "set the row to zero, or export in fp32"
        )
