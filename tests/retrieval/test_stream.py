"""The stream from contents to descriptors: in order, the same for any threads, a bad item in its place."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import InputError, RunError, UnfitError, UsageError
from netvlad_deploy.retrieval import decoding, loading, stream
from netvlad_deploy.retrieval.stream import Result, describe
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES, ImageInput
from netvlad_deploy.spec.items import UNREADABLE, Content, Item, Load, Skipped
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, NetVLADSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.arrays import Array, Arrays
from tests.modules import RANGE
from tests.processes import HANG_S


class Means(Runner):
    """Give each image's mean colour, or the mean local descriptor that is no padding, and note the batches."""

    concurrent = True

    def __init__(self, *, images: bool = True, masked: bool = False, before: Callable[[], object] = int) -> None:
        super().__init__(
            "means",
            NetVLADSpec(num_clusters=1, feature_size=3),
            inputs=(IMAGES if images else FEATURES,),
            optional_inputs=(MASK,) if masked else (),
            outputs=(DESCRIPTOR,),
            dtype=np.dtype(np.uint8 if images else np.float32),
            range=None if images else RANGE,
        )
        self.before = before
        self.batches: list[tuple[int, ...]] = []

    def _run(self, feeds: Arrays) -> Arrays:
        self.before()
        values = feeds[self.inputs[0]]
        self.batches.append((*values.shape, round(float(values.sum()))))
        if self.inputs[0] == IMAGES:
            return {DESCRIPTOR: values.mean(axis=(1, 2), dtype=np.float32)}
        mask = feeds.get(MASK, np.ones(values.shape[:2], np.bool_))
        return {DESCRIPTOR: values.sum(axis=1) / mask.sum(axis=1, keepdims=True)}


def item(name: str) -> Item:
    return Item(name=name, path=Path(name), size_bytes=1, modified_ns=0)


def of(*contents: Content | Exception) -> Iterator[tuple[Item, Load]]:
    def load(content: Content | Exception) -> Content:
        if isinstance(content, Exception):
            raise content
        return content

    for number, content in enumerate(contents):
        yield item(f"{number}"), partial(load, content)


def pixels(*sizes: tuple[int, int]) -> list[Array]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def local(*lengths: int) -> list[Array]:
    random = np.random.default_rng(1)
    return [random.standard_normal((length, 3), dtype=np.float32) for length in lengths]


def reasons(results: Sequence[Result]) -> list[str]:
    return [value.reason if isinstance(value, Skipped) else "" for _, value in results]


IMAGES_OF_TWO_SIZES = pixels(*[(4, 6), (4, 6), (6, 4)] * 15)
SEQUENCES = local(*[5, 1, 9, 9, 30, 2, 2] * 9)


@pytest.mark.parametrize("kind", ["images", "features", "masked features"])
def test_no_batch_reaches_from_one_part_into_the_next(kind: str) -> None:
    """The results and batches are those of streams of their own, also where an item is skipped."""
    contents: list[Content | Exception] = list(IMAGES_OF_TWO_SIZES if kind == "images" else SEQUENCES)
    contents[6] = OSError(5, "Input/output error")
    images = ImageInput() if kind == "images" else None

    def runner() -> Means:
        return Means(images=kind == "images", masked=kind == "masked features")

    together, alone = runner(), runner()
    got = list(describe(together, images, of(*contents), batch=4, apart=7, decoders=3, lanes=1))
    parts = [contents[start : start + 7] for start in range(0, len(contents), 7)]
    expected = [value for part in parts for _, value in describe(alone, images, of(*part), batch=4, lanes=1)]
    assert together.batches == alone.batches
    for (_, one), other in zip(got, expected, strict=True):
        assert isinstance(one, Skipped) == isinstance(other, Skipped)
        assert isinstance(one, Skipped) or np.array_equal(one, other)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["images", "features", "masked features"])
def test_threads_change_neither_results_nor_batches(kind: str) -> None:
    contents: list[Content | Exception] = list(IMAGES_OF_TWO_SIZES if kind == "images" else SEQUENCES)
    expected = [np.atleast_2d(each.reshape(-1, 3).mean(axis=0, dtype=np.float64)) for each in contents]  # type: ignore[union-attr]
    contents[7] = OSError(5, "Input/output error")
    seen = []
    for decoders, lanes in ((1, 1), (None, None), (8, 3)):
        runner = Means(images=kind == "images", masked=kind == "masked features")
        images = ImageInput() if kind == "images" else None
        results = list(describe(runner, images, of(*contents), batch=4, decoders=decoders, lanes=lanes))
        assert [one.name for one, _ in results] == [f"{number}" for number in range(len(contents))]
        assert results.pop(7)[1] == Skipped(path="7", reason=UNREADABLE, detail="Input/output error")
        values = np.stack([value for _, value in results if not isinstance(value, Skipped)])
        assert values.dtype == np.float32
        assert np.abs(values - np.concatenate(expected[:7] + expected[8:])).max() < 1e-3
        seen.append((values.tobytes(), sorted(runner.batches)))
    assert seen[0] == seen[1] == seen[2]


def test_sizes_that_alternate_share_batches_within_a_portion() -> None:
    runner = Means()
    list(describe(runner, ImageInput(), of(*pixels(*[(4, 6), (6, 4)] * 32)), batch=4, lanes=1))
    assert [each[:3] for each in runner.batches] == ([(4, 6, 4)] * 4 + [(4, 4, 6)] * 4) * 2


def test_sequences_share_a_batch_with_those_of_like_length() -> None:
    runner = Means(images=False, masked=True)
    list(describe(runner, None, of(*local(1, 9, 2, 8, 5)), batch=2))
    assert [each[:2] for each in runner.batches] == [(2, 9), (2, 5), (1, 1)]
    runner.profiles = (Profile.parse("1x4,2x4,2x16"),)
    runner.batches.clear()
    assert reasons(list(describe(runner, None, of(*local(1, 17, 3)), batch=8))) == ["", loading.OUTSIDE, ""]
    assert [each[:2] for each in runner.batches] == [(2, 4)], "filled up to what the profile takes"


def test_a_portion_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PORTION_BYTES", 4 * 4 * 6 * 3)
    runner = Means()
    list(describe(runner, ImageInput(), of(*pixels(*[(4, 6), (6, 4)] * 4)), batch=4, lanes=1))
    assert [each[:3] for each in runner.batches] == [(2, 6, 4), (2, 4, 6)] * 2


BAD: dict[str, tuple[Content | Exception, str]] = {
    "no image": (b"text", decoding.NO_IMAGE),
    "empty": (b"", decoding.EMPTY),
    "grey pixels": (np.zeros((4, 4), np.uint8), decoding.NO_PIXELS),
    "unfit": (UnfitError("of another kind", "detail"), "of another kind"),
    "refused by its source": (InputError("row 7 holds no image"), UNREADABLE),
    "gone": (FileNotFoundError(2, "No such file or directory"), UNREADABLE),
    "too large": (MemoryError(), decoding.NO_MEMORY),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_image_is_skipped_in_its_place(what: str) -> None:
    bad, reason = BAD[what]
    good = pixels((4, 4), (4, 4))
    runner = Means()
    results = list(describe(runner, ImageInput(), of(good[0], bad, good[1]), batch=8))
    assert reasons(results) == ["", reason, ""]
    assert [each[0] for each in runner.batches] == [2], "a bad image breaks no batch"


BAD_FEATURES: dict[str, tuple[Content, str]] = {
    "bytes": (b"image", "got 5 bytes of an image"),
    "width": (np.ones((4, 2), np.float32), "expected (batch, num_features, 3)"),
    "none": (np.ones((0, 3), np.float32), "num_features must be at least 1"),
    "float64": (np.ones((4, 3)), "convert with features.astype"),
    "NaN": (np.full((4, 3), np.nan, np.float32), "features are not finite: first at row 0"),
    "large": (np.full((4, 3), 1e30, np.float32), "too large for this artifact"),
}


@pytest.mark.parametrize("what", BAD_FEATURES)
def test_bad_local_descriptors_are_skipped_in_their_place(what: str) -> None:
    bad, words = BAD_FEATURES[what]
    first, last = local(4, 4)
    runner = Means(images=False)
    runner.range = replace(RANGE, largest=100)
    results = list(describe(runner, None, of(first, bad, last.astype(np.float16)), batch=8))
    lost = results[1][1]
    assert isinstance(lost, Skipped)
    assert words in lost.detail
    assert reasons(results)[::2] == ["", ""]


def test_an_error_of_the_code_that_reads_is_no_bad_item() -> None:
    with pytest.raises(ZeroDivisionError):
        list(describe(Means(), ImageInput(), of(*pixels((4, 4)), ZeroDivisionError()), batch=1))
    assert_no_thread()


def test_what_a_runner_cannot_do_is_refused_before_anything_is_read() -> None:
    runner = Means()
    runner.concurrent = False
    with pytest.raises(UsageError, match="means runs one batch at a time, got 2 lanes"):
        describe(runner, ImageInput(), of(), batch=1, lanes=2)
    with pytest.raises(UsageError, match="means takes features too"):
        describe(Means(images=False), ImageInput(), of(), batch=1)


def test_long_local_descriptors_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    long = [each * np.float32(1e7) for each in local(4, 4, 4)]
    list(describe(Means(images=False), None, of(local(4)[0], *long), batch=2))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("1, row ")
    assert "L2-normalise it" in message


def test_a_descriptor_that_is_not_finite_ends_the_stream_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Runner, feeds: Arrays) -> Arrays:
        return {DESCRIPTOR: np.where(feeds[FEATURES][:, 0] == 9, np.inf, 1)}

    monkeypatch.setattr(Means, "_run", run)
    contents = [np.full((2, 3), number, np.float32) for number in range(30)]
    with pytest.raises(RunError, match="not finite for 9: scale its features down"):
        list(describe(Means(images=False), None, of(*contents), batch=4))
    assert_no_thread()


def test_batches_are_in_flight_at_once_on_as_many_lanes() -> None:
    together = threading.Barrier(3)
    runner = Means(before=partial(together.wait, HANG_S))  # passed only by three runs at once
    assert len(list(describe(runner, ImageInput(), of(*pixels(*[(4, 4)] * 12)), batch=2, lanes=3))) == 12


def test_a_slow_sink_does_not_stop_the_runner() -> None:
    """While it holds the first result, the last batch is run."""
    last = threading.Event()
    runner = Means()
    runner.before = lambda: last.set() if len(runner.batches) == 19 else None
    results = describe(runner, ImageInput(), of(*pixels(*[(4, 4)] * 40)), batch=2)
    assert next(results)[0].name == "0"
    assert last.wait(HANG_S)
    assert len(list(results)) == 39


def test_a_stream_that_is_closed_early_leaves_no_thread() -> None:
    results = describe(Means(), ImageInput(), of(*pixels(*[(4, 4)] * 400)), batch=2, decoders=4, lanes=2)
    next(results)
    results.close()
    assert_no_thread()
    describe(Means(), ImageInput(), of(), batch=2).close()


def assert_no_thread() -> None:
    assert not [one.name for one in threading.enumerate() if one.name.startswith(("decode-", "run-"))]
