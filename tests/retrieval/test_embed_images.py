"""Images become descriptors: in order, in batches that the runner takes, and none goes missing unsaid."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.retrieval import decoding as images
from netvlad_deploy.retrieval import loading
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.sources import image_folders
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import IMAGES, ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.items import Item, Skipped
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Array, Arrays
from tests.colour_graphs import band_pipeline, bands
from tests.processes import HANG_S


class Averages(Runner):
    """Give each image's mean colour, and note the shapes of its batches."""

    def __init__(self, *profiles: str) -> None:
        spec = NetVLADSpec(num_clusters=1, feature_size=3)
        parsed = tuple(ImageProfile.parse(text) for text in profiles)
        super().__init__(
            "averages", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8), profiles=parsed
        )
        self.shapes: list[tuple[int, ...]] = []

    def _run(self, feeds: Arrays) -> Arrays:
        self.shapes.append(feeds[IMAGES].shape[:3])
        return {DESCRIPTOR: feeds[IMAGES].mean(axis=(1, 2))}


def write(folder: Path, *sizes: tuple[int, int]) -> list[Item]:
    """Write an image of one colour for each size (height, width): the first channel is its number."""
    for index, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height), (index, 50, 7)).save(folder / f"{index:02}.png")
    return find_images([folder])[0]


def numbers(descriptors: Array) -> list[int]:
    return [round(float(value)) for value in descriptors[:, 0]]


def test_equal_sizes_near_each_other_share_a_batch(tmp_path: Path) -> None:
    files = write(tmp_path, (4, 4), (4, 4), (4, 4), (6, 4), (4, 4), (4, 6))
    runner = Averages()
    done = embed_images(runner, ImageInput(), files, batch=2)
    assert runner.shapes == [(2, 4, 4), (1, 6, 4), (1, 4, 6), (2, 4, 4)]
    assert numbers(done.descriptors) == [0, 1, 2, 3, 4, 5]
    assert done.descriptors.dtype == np.float32
    assert done.names == tuple(file.name for file in files)
    assert done.skipped == ()


def test_a_rule_of_size_makes_all_of_them_one_batch(tmp_path: Path) -> None:
    runner = Averages()
    embed_images(runner, ImageInput(resize=Resize(size=(5, 3))), write(tmp_path, (4, 4), (9, 2), (6, 4)), batch=8)
    assert runner.shapes == [(3, 5, 3)]


def test_a_bad_image_in_the_middle_moves_no_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write(tmp_path, *[(4, 4)] * 5)
    files[1].path.write_bytes(b"")
    files[3].path.write_bytes(files[3].path.read_bytes()[:50])
    runner = Averages()
    before = Skipped(path="notes.txt", reason=image_folders.NO_SUFFIX)
    done = embed_images(runner, ImageInput(), files, batch=8, skipped=[before])
    assert runner.shapes == [(3, 4, 4)], "a bad image breaks no batch"
    assert numbers(done.descriptors) == [0, 2, 4] == [int(name[:2]) for name in done.names]
    assert [one.reason for one in done.skipped] == [image_folders.NO_SUFFIX, images.EMPTY, images.DAMAGED]
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [
        f"skipped {files[1].path}", f"skipped {files[3].path}",
    ]  # fmt: skip


def test_profiles_bound_batches_and_their_minimum_is_filled_up(tmp_path: Path) -> None:
    files = write(tmp_path, *[(4, 4)] * 5, (8, 8), (8, 8))
    runner = Averages("1x4x4,2x4x4,3x4x6", "4x8x8")
    done = embed_images(runner, ImageInput(), files, batch=8)
    assert runner.shapes == [(3, 4, 4), (4, 8, 8), (2, 4, 4)]
    assert numbers(done.descriptors) == list(range(7))


def test_a_size_outside_every_profile_is_skipped_with_the_cure(tmp_path: Path) -> None:
    files = write(tmp_path, (4, 4), (9, 4), (4, 4))
    done = embed_images(Averages("1x4x4,2x4x4,3x4x6", "1x9x9"), ImageInput(), files, batch=8)
    assert numbers(done.descriptors) == [0, 2]
    (lost,) = done.skipped
    assert lost.reason == loading.OUTSIDE
    assert "height 9, width 4" in lost.detail
    assert "rebuild" in lost.detail


def test_nothing_left_is_an_error_that_counts(tmp_path: Path) -> None:
    files = write(tmp_path, (4, 4))
    files[0].path.write_bytes(b"")
    before = [Skipped(path=name, reason=image_folders.NO_SUFFIX) for name in "ab"]
    with pytest.raises(InputError, match=f"2 {image_folders.NO_SUFFIX}, 1 {images.EMPTY}"):
        embed_images(Averages(), ImageInput(), files, skipped=before)
    with pytest.raises(InputError, match="none was found"):
        embed_images(Averages(), ImageInput(), [])


def test_a_descriptor_that_is_not_finite_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Runner, feeds: Feeds) -> Arrays:
        values = feeds[IMAGES].mean(axis=(1, 2))
        return {DESCRIPTOR: np.where(values[:, :1] == 1, np.nan, values)}

    monkeypatch.setattr(Averages, "_run", run)
    with pytest.raises(RunError, match=r"not finite for 01\.png"):
        embed_images(Averages(), ImageInput(), write(tmp_path, *[(4, 4)] * 3))


def test_an_error_of_the_runner_ends_the_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: Runner, feeds: Feeds) -> Arrays:
        raise RunError("broken")

    monkeypatch.setattr(Averages, "_run", run)
    with pytest.raises(RunError, match="broken"):
        embed_images(Averages(), ImageInput(), write(tmp_path, *[(4, 4)] * 9), batch=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_decoding_overlaps_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch ends only when an image of the second has been decoded."""
    decoded = threading.Event()

    def decode(content: bytes, prepared: ImageInput, name: str) -> Array:
        if name.endswith("3"):
            decoded.set()
        return np.zeros((4, 4, 3), np.uint8)

    def run(self: Runner, feeds: Feeds) -> Arrays:
        assert decoded.wait(HANG_S)
        return {DESCRIPTOR: np.ones((len(feeds[IMAGES]), 3), np.float32)}

    monkeypatch.setattr(loading, "decode_image", decode)
    monkeypatch.setattr(loading, "read_image_file", lambda _: b"")
    monkeypatch.setattr(Averages, "_run", run)
    files = [Item(path=tmp_path / f"{index}", name=f"{index}", size_bytes=0, modified_ns=0) for index in range(4)]
    assert len(embed_images(Averages(), ImageInput(), files, batch=2).names) == 4


@pytest.mark.export
@pytest.mark.ort
def test_a_real_session_gives_the_descriptors_of_the_formula(tmp_path: Path) -> None:
    from netvlad_deploy.runtime.open_runner import open_runner

    pixels = np.random.default_rng(1).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "photos" / f"{index}.png")
    artifact = band_pipeline(tmp_path / "m.onnx")
    assert artifact.images is not None
    with open_runner(artifact) as runner:
        done = embed_images(runner, artifact.images, find_images([tmp_path / "photos"])[0], batch=2)
    assert np.abs(done.descriptors - np.stack([bands(image) for image in pixels])).max() < 1e-6
