"""Images from the command line: `embed` into one file, `evaluate` into a folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact, stage_artifact
from netvlad_deploy.spec.images import ImageInput, Resize
from netvlad_deploy.support.files import stage_files
from tests.colour_graphs import BANDS, band_pipeline, bands
from tests.command import Command, error_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

PLACES = 6


@pytest.fixture
def pipeline(tmp_path: Path) -> OnnxArtifact:
    """Return a pipeline in the test's folder that makes any image 16 x 12."""
    return band_pipeline(tmp_path / "m.onnx", Resize(size=(16, 12)))


@pytest.fixture
def walk(tmp_path: Path) -> Path:
    """Write photos of some places and, in another folder under other names, the same places a little darker."""
    random = np.random.default_rng(0)
    for index in range(PLACES):
        place = np.kron(random.integers(60, 256, (4, 1, 3)), np.ones((4, 12, 1))).astype(np.uint8)
        for folder, name, darker in (("asked", f"q{index}.png", 5), ("known", f"sub/d{index}.png", 0)):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(place - np.uint8(darker)).save(path)
    return tmp_path


def truth(folder: Path) -> Path:
    positives = {f"q{index}.png": [f"sub/d{index}.png"] for index in range(PLACES)}
    (folder / "truth.json").write_text(json.dumps({"positives": positives}))
    return folder / "truth.json"


def test_embed_writes_names_and_descriptors(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    outcome = command("embed", pipeline.path, walk / "known", "-o", "y.npz", "--batch", 4)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"y.npz  {PLACES} x {BANDS * 3}\n"
    with np.load("y.npz", allow_pickle=False) as written:
        assert sorted(written) == ["descriptors", "header", "names"]
        assert written["names"].tolist() == [f"sub/d{index}.png" for index in range(PLACES)]
        assert written["descriptors"].dtype == np.float32
        for name, got in zip(written["names"], written["descriptors"], strict=True):
            with Image.open(walk / "known" / str(name)) as image:
                assert np.abs(got - bands(np.asarray(image))).max() < 1e-6


def test_embed_skips_bad_files_and_says_so(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    (walk / "asked" / "q2.png").write_bytes(b"")
    (walk / "asked" / "q4.png").write_bytes((walk / "asked" / "q4.png").read_bytes()[:60])
    (walk / "asked" / "notes.txt").write_text("notes")
    (walk / "asked" / ".hidden").write_text("hidden")
    outcome = command("embed", pipeline.path, walk / "asked", "-o", "y.npz", "--json")
    assert outcome.code == 1
    record = json.loads(outcome.out)
    assert record["schema"] == "netvlad-deploy/embed/2"
    assert record["descriptors"] == PLACES - 2
    assert [(Path(one["path"]).name, one["reason"]) for one in record["skipped"]] == [
        ("q2.png", "an empty file"), ("q4.png", "damaged or not supported"),
    ]  # fmt: skip
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == [
        "left out as no image (1)",
        *(f"skipped {walk / 'asked' / name}" for name in ("q2.png", "q4.png")),
    ]
    with np.load("y.npz") as written:
        assert written["names"].tolist() == ["q0.png", "q1.png", "q3.png", "q5.png"]
    outcome = command("embed", pipeline.path, walk / "asked", "-o", "y.npz", "--force")
    assert "4 x 12, 2 skipped: 1 an empty file, 1 damaged" in outcome.out


def test_a_file_that_is_plainly_no_image_is_no_failure_unless_it_was_named(
    command: Command, pipeline: OnnxArtifact, walk: Path
) -> None:
    """A file in the folder that holds a photo under another name is one, and so is a damaged photo."""
    (walk / "asked" / "README.txt").write_text("about these photos")
    outcome = command("embed", pipeline.path, walk / "asked", "-o", "y.npz")
    assert (outcome.code, outcome.out) == (0, f"y.npz  {PLACES} x 12\n")
    assert outcome.err == f"left out as no image (1): {walk / 'asked' / 'README.txt'}\n"
    named = command("embed", pipeline.path, walk / "asked", walk / "asked" / "README.txt", "-o", "z.npz")
    assert (named.code, "1 skipped: 1 without the suffix of a format that is read" in named.out) == (1, True)
    (walk / "asked" / "photo").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert command("embed", pipeline.path, walk / "asked", "-o", "h.npz").code == 1
    (walk / "asked" / "photo").write_bytes(b"not at all")
    assert command("embed", pipeline.path, walk / "asked", "-o", "n.npz").code == 0


def test_embed_refuses_inputs_that_do_not_fit(
    command: Command, pipeline: OnnxArtifact, exported: OnnxArtifact, walk: Path
) -> None:
    np.save("x.npy", np.ones((1, 5, 16), np.float32))
    (walk / "none").mkdir()
    for arguments, code, said in (
        ((pipeline.path, "x.npy"), 2, "x.npy holds local descriptors, not images"),
        ((exported.path, walk / "asked"), 65, "nothing to embed: none was found"),
        ((exported.path, walk / "asked" / "q1.png"), 2, "--input images"),
        ((exported.path, "x.npy", "x.npy"), 2, "have the same name"),
        ((pipeline.path, walk / "none"), 65, "nothing to embed: none was found"),
        ((pipeline.path, "nowhere"), 65, "nowhere does not exist"),
    ):
        outcome = command("embed", *arguments, "-o", "y.npz")
        assert (outcome.code, said in error_of(outcome.err)) == (code, True), outcome.err
        assert not Path("y.npz").exists()
    assert "y.txt does not end in .npz" in command("embed", pipeline.path, walk / "asked", "-o", "y.txt").err
    for name in (".npz", "-"):  # an empty variable before the suffix, and standard output
        outcome = command("embed", pipeline.path, walk / "asked", "-o", name)
        assert (outcome.code, f"{name} is not the name of a file" in error_of(outcome.err)) == (2, True)
    assert "name folders or files" in command("embed", pipeline.path, "-o", "y.npz").err
    Path("y.npz").touch()
    assert command("embed", pipeline.path, walk / "asked", "-o", "y.npz").code == 2


def test_evaluate_two_artifacts(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    band_pipeline(walk / "small.onnx", Resize(size=(8, 4)))
    arguments = ("--queries", walk / "asked", "--database", walk / "known", "-o", "out", "--json")
    outcome = command("evaluate", pipeline.path, walk / "small.onnx", *arguments, "--ground-truth", truth(walk))
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["schema"] == "netvlad-deploy/evaluate/1"
    assert (record["num_queries"], record["num_images"], record["without_right"]) == (PLACES, PLACES, [])
    assert [one["found"]["recall"] for one in record["candidates"]] == [{"1": 1.0, "5": 1.0, "10": 1.0}] * 2
    (agreement,) = record["agreements"]
    assert (agreement["candidate"], agreement["reference"], agreement["top1"]) == ("small.onnx", "m.onnx", 1.0)
    assert 0 <= agreement["distance"] < 0.1
    assert json.loads(Path("out/report.json").read_text()) == record
    assert "| m.onnx | fp32 | 12 | 100.0% |" in Path("out/report.md").read_text()
    with Image.open("out/matches.png") as picture:
        assert picture.width > 1000
    assert command("evaluate", pipeline.path, *arguments, "--within", 0).code == 2, "the folder holds a report"
    outcome = command("evaluate", pipeline.path, *arguments, "--within", 0, "--force", "--min-recall", 1)
    assert (outcome.code, json.loads(outcome.out)["verdict"]) == (0, "PASS")
    assert json.loads(outcome.out)["candidates"][0]["found"]["mean_average_precision"] == 1.0
    outcome = command("evaluate", pipeline.path, walk / "m.onnx", *arguments, "--within", 0, "--force")
    assert json.loads(outcome.out)["agreements"][0]["differing"] == []


def test_evaluate_notices_that_right_images_are_others(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    positives = {f"q{index}.png": [f"sub/d{(index + 1) % PLACES}.png"] for index in range(PLACES)}
    (walk / "truth.json").write_text(json.dumps(positives))
    folders = ("--queries", walk / "asked", "--database", walk / "known", "-o", "out", "--json")
    outcome = command("evaluate", pipeline.path, *folders, "--ground-truth", walk / "truth.json", "--min-recall", 0.001)
    assert json.loads(outcome.out)["candidates"][0]["found"]["recall"]["1"] == 0
    assert (outcome.code, json.loads(outcome.out)["verdict"]) == (1, "FAIL")
    assert "FAIL: recall@1" in Path("out/report.md").read_text()


def test_evaluate_by_places_as_published(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    along = np.stack([50.0 * np.arange(PLACES), np.zeros(PLACES)], axis=1)
    np.savez(walk / "truth.npz", utmQ=along + 3, utmDb=along, posDistThr=25)
    folders = ("--queries", walk / "asked", "--database", walk / "known", "-o", "out", "--json")
    outcome = command("evaluate", pipeline.path, *folders, "--ground-truth", walk / "truth.npz")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert (record["num_queries"], record["candidates"][0]["found"]["recall"]["1"]) == (PLACES, 1.0)
    assert "truth.npz names no images: the rows of utmDb are taken in the order of the sorted folder" in outcome.err


def test_evaluate_a_folder_against_itself(command: Command, pipeline: OnnxArtifact, walk: Path) -> None:
    folders = ("--queries", walk / "known", "--database", walk / "known" / "sub" / "..", "-o", "out", "--json")
    record = json.loads(command("evaluate", pipeline.path, *folders, "--within", 1).out)
    assert record["alone"] is True
    for query in record["candidates"][0]["found"]["queries"]:
        assert query["query"] not in [match["name"] for match in query["matches"]]
    outcome = command("evaluate", pipeline.path, *folders, "--within", 0, "--force")
    assert outcome.code == 65
    assert "no query has a right image" in error_of(outcome.err)
    assert "embed with" not in outcome.err, "said before minutes go into images"


def test_evaluate_counts_damaged_images_and_queries_without_a_right_one(
    command: Command, pipeline: OnnxArtifact, walk: Path
) -> None:
    (walk / "known" / "sub" / "d3.png").write_bytes(b"")
    (walk / "asked" / "q0.png").write_bytes(b"no image")
    folders = ("--queries", walk / "asked", "--database", walk / "known", "-o", "out", "--json")
    outcome = command("evaluate", pipeline.path, *folders, "--ground-truth", truth(walk))
    assert outcome.code == 1
    record = json.loads(outcome.out)
    assert (record["num_queries"], record["num_images"]) == (PLACES - 1, PLACES - 1), (
        "two that are damaged, one of each"
    )
    assert record["without_right"] == ["q3.png"]
    found = record["candidates"][0]["found"]
    assert (found["recall"]["1"], found["recall_answerable"]["1"]) == ((PLACES - 2) / (PLACES - 1), 1.0)
    assert sorted(Path(one["path"]).name for one in record["skipped"]) == ["d3.png", "q0.png"]
    assert "2 files skipped: 1 an empty file, 1 not recognised as an image" in Path("out/report.md").read_text()


def test_evaluate_refuses_options_that_do_not_fit(
    command: Command, pipeline: OnnxArtifact, exported: OnnxArtifact, walk: Path
) -> None:
    folders = ("--queries", walk / "asked", "--database", walk / "known", "-o", "out")
    for arguments, said in (
        ((pipeline.path,), "--ground-truth or from --within"),
        ((pipeline.path, "--within", 1, "--ground-truth", truth(walk)), "give one of them"),
        ((exported.path, "--within", 1), "takes local descriptors"),
    ):
        outcome = command("evaluate", *arguments, *folders)
        assert (outcome.code, said in error_of(outcome.err)) == (2, True), outcome.err
    assert not Path("out").exists()


def test_an_fp16_file_is_emulated_strictly_unless_told_otherwise(
    command: Command, pipeline: OnnxArtifact, walk: Path
) -> None:
    with stage_files(force=True) as staging:
        content = pipeline.path.read_bytes()
        stage_artifact(staging, replace(pipeline, path=walk / "half.onnx", precision="fp16"), content)
    folders = ("--queries", walk / "asked", "--database", walk / "known", "--within", 0, "-o", "out", "--force")
    outcome = command("evaluate", pipeline.path, walk / "half.onnx", *folders, "--json")
    assert [one["backend"] for one in json.loads(outcome.out)["candidates"]] == [None, "strict"]
    assert "FP16 by strict emulation on a CPU" in Path("out/report.md").read_text()
    outcome = command("evaluate", walk / "half.onnx", *folders, "--json", "--backend", "onnxruntime")
    assert [one["backend"] for one in json.loads(outcome.out)["candidates"]] == ["onnxruntime"]
    assert "strict" not in Path("out/report.md").read_text()


@pytest.mark.parametrize("orient", [True, False])
def test_embed_prepares_images_as_the_sidecar_says(
    command: Command, pipeline: OnnxArtifact, tmp_path: Path, orient: bool
) -> None:
    """A photo as phones save it, and 8 bits of grey in 16: turned or not, and cut out after the resize."""
    prepared = ImageInput(resize=Resize(size=(20, 24), filter="nearest"), crop=(16, 12), orient=orient, depth=8)
    with stage_files(force=True) as staging:
        staged = replace(pipeline, images=prepared)
        stage_artifact(staging, staged, pipeline.path.read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    random = np.random.default_rng(0)
    colours, grey = random.integers(0, 256, (20, 24, 3), dtype=np.uint8), random.integers(0, 256, (20, 24))
    (tmp_path / "photos").mkdir()
    Image.fromarray(colours).save(tmp_path / "photos" / "a.png", exif=exif)
    Image.fromarray(grey.astype(np.uint16)).save(tmp_path / "photos" / "b.png")
    assert command("embed", pipeline.path, tmp_path / "photos", "-o", "y.npz").code == 0
    upright = np.rot90(colours, -1)[np.arange(20) * 24 // 20][:, np.arange(24) * 20 // 24]
    shown = [upright if orient else colours, np.stack([grey.astype(np.uint8)] * 3, axis=2)]
    with np.load("y.npz") as written:
        for got, image in zip(written["descriptors"], shown, strict=True):
            assert np.abs(got - bands(image[2:18, 6:18])).max() < 1e-6
