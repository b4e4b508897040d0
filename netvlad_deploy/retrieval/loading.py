"""One item at a time, in a decoder thread: read, decoded or checked, or skipped with its reason."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from netvlad_deploy.errors import ArtifactError, InputError, UnfitError
from netvlad_deploy.retrieval.batches import smallest_shape
from netvlad_deploy.retrieval.decoding import NO_MEMORY, check_decoder, decode_image, without_warnings
from netvlad_deploy.retrieval.in_order import InOrder
from netvlad_deploy.runner import Runner, check_features, check_finite
from netvlad_deploy.sources.source import read_image_file
from netvlad_deploy.spec.graph_options import COARSE_STEP
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import UNREADABLE, Content, Item, Load, Skipped
from netvlad_deploy.spec.layer import MASK
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.machine import available_cores

LOG = logging.getLogger(__name__)

OUTSIDE: Final = "of a size outside every profile"
NO_FEATURES, UNFIT_FEATURES = "no local descriptors", "local descriptors that do not fit"

WAITING_BYTES: Final = 2**27
"""Decoded items that wait for the runner: 140 photos of 480x640, over a second of any GPU's work at the usual sizes."""


class Loaded(NamedTuple):
    """An item with its pixels (H,W,3) or local descriptors (N,D), or why there are none; and what to warn of."""

    item: Item
    values: Array | Skipped
    warning: str = ""


Prepare: TypeAlias = Callable[[Content, Item], tuple[Array, str]]
"""Returns what a runner is fed for an item, and a warning or nothing. Raises UnfitError."""


def loading(
    contents: Iterable[tuple[Item, Load]], prepare: Prepare, *, decoders: int
) -> InOrder[tuple[Item, Load], Loaded]:
    """Return the contents in their order, loaded in `decoders` threads, about WAITING_BYTES of them ahead."""

    def load(given: tuple[Item, Load]) -> Loaded:
        item, read = given
        try:
            return Loaded(item, *prepare(read(), item))
        except UnfitError as error:
            reason, detail = error.reason, error.detail
        except (InputError, ArtifactError) as error:
            reason, detail = UNREADABLE, str(error)
        except OSError as error:
            reason, detail = UNREADABLE, error.strerror or str(error)
        except MemoryError:
            reason, detail = NO_MEMORY, ""
        return Loaded(item, Skipped(path=item.place, reason=reason, detail=detail))

    return InOrder(load, contents, name="decode", width=decoders, most_bytes=WAITING_BYTES, size_of=_size)


def contents_of(files: Iterable[Item]) -> Iterator[tuple[Item, Load]]:
    """Yield image files with the functions that read them."""
    return ((file, partial(read_image_file, file.path)) for file in files)


@contextlib.contextmanager
def load_images(files: Sequence[Item], images: ImageInput) -> Iterator[Iterator[tuple[Item, Array | Skipped]]]:
    """Load images in other threads, in order: each becomes uint8 RGB (H,W,3), prepared by the rule, or is skipped.

    Raises: MissingDependencyError without Pillow.
    """
    check_decoder()
    loaded = loading(contents_of(files), image_preparer(images), decoders=usual_decoders())
    with without_warnings(), loaded:
        yield ((one.item, one.values) for one in loaded)


def usable(loaded: Iterable[tuple[Item, Array | Skipped]], lost: list[Skipped]) -> Iterator[tuple[Item, Array]]:
    """Yield the images that could be loaded; the others are named in the log and join `lost`."""
    for file, image in loaded:
        if isinstance(image, Skipped):
            LOG.warning("skipped %s", image)
            lost.append(image)
        else:
            yield file, image


def usual_decoders() -> int:
    """Return the number of decoder threads to begin with: half the cores, since the CPU computes, too."""
    return max(1, available_cores() // 2)


def first_warning(loaded: Iterable[Loaded]) -> Iterator[Loaded]:
    """Yield what is loaded, and say the first warning: the next items are likely to be the same."""
    said = False
    for one in loaded:
        if one.warning and not said:
            LOG.warning("%s", one.warning)
            said = True
        yield one


def _size(loaded: Loaded) -> int:
    return 0 if isinstance(loaded.values, Skipped) else loaded.values.nbytes


def image_preparer(images: ImageInput, runner: Runner | None = None) -> Prepare:
    """Return the function that decodes an image, and checks that a profile of the runner takes its size."""

    def prepare(content: Content, item: Item) -> tuple[Array, str]:
        pixels = decode_image(content, images, name=item.place)
        height, width = pixels.shape[:2]
        if runner is not None and smallest_shape(runner.profiles, (1, height, width)) is None:
            raise UnfitError(OUTSIDE, _outside(runner, f"height {height}, width {width}"))
        return pixels, ""

    return prepare


def feature_preparer(runner: Runner) -> Prepare:
    """Return the function that checks local descriptors (N,D) of float32 or float16 for a runner.

    FP16 numbers become float32, which says each of them exactly.
    """
    grows = 2 if takes_mask(runner) else 1

    def prepare(content: Content, item: Item) -> tuple[Array, str]:
        if not isinstance(content, np.ndarray):
            raise UnfitError(NO_FEATURES, f"got {len(content)} bytes of an image, the artifact takes local descriptors")
        features = content.astype(np.float32) if content.dtype == np.float16 else content
        try:
            check_features(features[None], runner.spec.feature_size)
            check_finite(features[None], first_item=None, limits=runner.range)
        except InputError as error:
            raise UnfitError(UNFIT_FEATURES, str(error)) from error
        if smallest_shape(runner.profiles, (1, len(features)), grows=grows) is None:
            raise UnfitError(OUTSIDE, _outside(runner, f"num_features is {len(features)}"))
        return features, _coarse_logits(runner, features, item)

    return prepare


def takes_mask(runner: Runner) -> bool:
    """Return True if a runner takes local descriptors of different number together, filled up."""
    return MASK in (*runner.inputs, *runner.optional_inputs)


def _outside(runner: Runner, size: str) -> str:
    profiles = "; ".join(str(profile) for profile in runner.profiles)
    return f"{size}, where the engine takes {profiles}: rebuild it with a wider --profile"


def _coarse_logits(runner: Runner, features: Array, item: Item) -> str:
    """Say which local descriptor of (N,D) is so long that its logits are too coarse, nothing if none is."""
    norms = np.linalg.norm(features.astype(np.float64), axis=-1)
    row = int(norms.argmax())
    step = runner.range.step_at(float(norms[row])) if runner.range else 0.0
    if step <= COARSE_STEP:
        return ""
    cure = "L2-normalise it" + (" or export with --wide-logits" if runner.precision == "fp16" else "")
    where = f"{item.name}, row {row} has norm {norms[row]:.4g}"
    return f"{where}: {runner.precision} logits are {step:g} apart there, {cure}"
