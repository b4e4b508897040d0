"""`fit` makes a checkpoint from a folder of images, and the other verbs take it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.vocabulary import METADATA_KEY, descriptors
from netvlad_deploy.spec.images import IMAGENET_MEAN, IMAGENET_STD, ImageChanges, ImageInput, Resize
from netvlad_deploy.workflow.fit import FitOptions, fit
from tests.command import Command, error_of
from tests.pipelines import read_pipeline

pytestmark = pytest.mark.export

COUNT, SIDES = 9, (40, 56)


class Colours(nn.Module):
    """A small backbone of 8 channels with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Conv2d(3, 8, 5, stride=4)
        self.layer.weight.data = 0.2 * torch.randn(8, 3, 5, 5, generator=generator)
        self.layer.bias.data.zero_()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x).tanh()
        return result


COLOURS = f"{__name__}:Colours"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of nine photos, one of them below."""
    random = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number in range(COUNT):
        pixels = random.integers(0, 255, (6, 8, 3)).repeat(9, axis=0).repeat(9, axis=1).astype(np.uint8)
        where = tmp_path / "photos" / ("more" if number == 4 else "") / f"{number}.png"
        Image.fromarray(pixels).save(where)
    return tmp_path / "photos"


def options(**changed: object) -> FitOptions:
    given = {"backbone": COLOURS, "clusters": 3, "changes": ImageChanges(resize=Resize(size=SIDES)), **changed}
    return FitOptions(**given)  # type: ignore[arg-type]


def pixels_of(folder: Path) -> np.ndarray:
    images = []
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            images.append(np.asarray(image.resize(SIDES[::-1], Image.Resampling.BILINEAR)))
    return np.stack(images)


def expected_descriptors(path: Path, images: np.ndarray) -> np.ndarray:
    """Return the descriptors of a vocabulary file from its tensors, in float64."""
    from safetensors.numpy import load_file

    state = {name: tensor.astype(np.float64) for name, tensor in load_file(path).items()}
    x = (images.astype(np.float64) - IMAGENET_MEAN) / IMAGENET_STD
    weight = torch.from_numpy(state["backbone.layer.weight"])
    maps = torch.nn.functional.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2), weight, stride=4).tanh().numpy()
    rows = maps.reshape(len(maps), 8, -1).swapaxes(1, 2)
    rows = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    logits = rows @ state["clusters"] + state["assignment_bias"]
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    assignment = powers / powers.sum(axis=2, keepdims=True)
    vlad = np.einsum("bnk,bnd->bdk", assignment, rows) - assignment.sum(axis=1)[:, None] * state["clusters2"]
    vlad /= np.maximum(np.linalg.norm(vlad, axis=1, keepdims=True), 1e-12)
    flat = vlad.reshape(len(vlad), -1)
    result: np.ndarray = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return result


def test_a_vocabulary_is_a_checkpoint_of_backbone_and_head(command: Command, folder: Path, tmp_path: Path) -> None:
    outcome = command("fit", folder, "--backbone", COLOURS, "--clusters", 3, "--resize", "40x56", "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert (record["schema"], record["clusters"]) == ("netvlad-deploy/fit/1", 3)
    assert (record["record"]["num_images"], record["record"]["backbone"]) == (COUNT, COLOURS)
    assert f"of {COUNT} images, 3 clusters" in outcome.err
    pipeline = read_pipeline(tmp_path / "vocabulary.safetensors", backbone=COLOURS)
    assert pipeline.images.resize == Resize(size=SIDES)
    images = pixels_of(folder)
    expected = expected_descriptors(tmp_path / "vocabulary.safetensors", images)
    assert np.abs(descriptors(pipeline, images) - expected).max() < 1e-4
    assert np.abs(descriptors(pipeline, images[..., ::-1].copy()) - expected).max() > 1e-2
    inspected = command("inspect", "vocabulary.safetensors")
    prepared = "upright by EXIF, to 40x56 (bilinear)"
    assert f"backbone: {COLOURS}; images: {prepared}, then (rgb - (123.675, 116.28, 103.53))" in inspected.out
    assert "a bias on the assignments, input L2-normalised" in inspected.out


def test_the_same_seed_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "other"))
    for path, seed in ((first, 1), (again, 1), (other, 2)):
        fit([folder], path, options(seed=seed, samples=5))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_whitening_is_written_and_decorrelates(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = fit([folder], tmp_path / "white.safetensors", options(whitening=4))
    assert found.descriptor_size == 4
    state = load_file(found.output)
    images = pixels_of(folder)
    white = expected_descriptors(found.output, images) @ state["projection.weight"].T + state["projection.bias"]
    assert np.abs(np.cov(white.T) - np.eye(4)).max() < 1e-2
    with pytest.raises(InputError, match="whitening to 9 values needs more than 9 images, got 9: ask for fewer"):
        fit([folder], tmp_path / "too_white.safetensors", options(whitening=9))
    assert not (tmp_path / "too_white.safetensors").exists()


def test_a_broken_image_is_skipped_counted_and_in_the_exit_code(command: Command, folder: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    outcome = command("fit", folder, "--backbone", COLOURS, "--clusters", 3, "--resize", "40x56")
    assert outcome.code == 1
    counts = "2 skipped: 1 damaged or not supported, 1 not recognised as an image"
    assert counts in outcome.out
    assert "broken.png: damaged or not supported" in outcome.err
    assert f"{COUNT} images" in outcome.out
    for path in folder.rglob("*.png"):
        path.unlink()
    outcome = command("fit", folder, "--backbone", COLOURS, "-o", "none.safetensors")
    assert (
        outcome.code,
        "no image to fit a vocabulary on: 1 not recognised" in error_of(outcome.err),
    ) == (65, True)


def test_images_of_several_sizes_are_taken_as_they_are(folder: Path, tmp_path: Path) -> None:
    with Image.open(folder / "3.png") as image:
        image.crop((0, 0, 31, 25)).save(folder / "3.png")
    own = options(changes=ImageChanges(resize=Resize()))
    assert fit([folder], tmp_path / "v.safetensors", own).record.num_images == COUNT


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["photos"], 2, "nothing says which backbone: pass --backbone"),
        (["photos", "--backbone", "vgg16"], 2, "the backbone vgg16 brings no weights: pass a checkpoint"),
        (["nowhere", "--backbone", COLOURS], 65, "nowhere does not exist: name folders or images"),
        (["photos/more/none", "--backbone", COLOURS], 65, "no image in photos/more/none: none was found"),
        (["photos", "--backbone", COLOURS, "--clusters", "1"], 2, "clusters is 1, expected at least 2"),
        (["photos", "--backbone", COLOURS, "--resize", "big"], 2, "resize 'big' is not HxW"),
        (["photos", "--backbone", COLOURS, "-o", "v.pt"], 2, "v.pt does not end in .safetensors"),
        (["photos", "--backbone", COLOURS, "--clusters", "5000"], 65, "are too few for 5000 clusters"),
    ],
)
def test_bad_options(command: Command, folder: Path, arguments: list[str], code: int, message: str) -> None:
    (folder / "more" / "none").mkdir()
    outcome = command("fit", *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in error_of(outcome.err)
    assert not list(folder.parent.glob("*.safetensors"))


def test_nothing_is_imported_because_a_file_says_so(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_backbone_of_a_file.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\nfrom tests.commands.test_cli_fit import Colours"
    )
    found = fit([folder], tmp_path / "v.safetensors", options(backbone="my_backbone_of_a_file:Colours"))
    (tmp_path / "imported").unlink()
    monkeypatch.delitem(__import__("sys").modules, "my_backbone_of_a_file")
    outcome = command("export", found.output)
    assert outcome.code == 2
    said = error_of(outcome.err)
    assert "fitted on a backbone from elsewhere: pass --backbone my_backbone_of_a_file:Colours again" in said
    assert command("inspect", found.output).code == 0
    assert not (tmp_path / "imported").exists()
    assert read_pipeline(found.output, backbone="my_backbone_of_a_file:Colours").name.endswith(":Colours")
    assert (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "text", ["no json", "[]", "{}", '{"backbone": "vgg16", "images": {"mean": [1, 2], "std": [1, 1, 1]}}']
)
def test_a_damaged_record_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    from safetensors.numpy import load_file, save_file

    found = fit([folder], tmp_path / "v.safetensors", options())
    save_file(load_file(found.output), found.output, metadata={METADATA_KEY: text})
    with pytest.raises(InputError, match=r"v.safetensors: the record of its vocabulary is damaged .*: fit it again"):
        read_pipeline(found.output)


def test_without_a_record_the_backbone_must_be_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    found = fit([folder], tmp_path / "v.safetensors", options())
    save_file(load_file(found.output), found.output)
    with pytest.raises(InputError, match="none that this dialect has: pass --backbone with its name"):
        read_pipeline(found.output)
    assert read_pipeline(found.output, backbone=COLOURS).images.resize == Resize()


def test_an_unknown_backbone_in_a_record_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    found = fit([folder], tmp_path / "v.safetensors", options())
    with safe_open(found.output, framework="np") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
    tensors = load_file(found.output)
    save_file(tensors, found.output, metadata={METADATA_KEY: json.dumps({**record, "backbone": "os"})})
    with pytest.raises(UsageError, match="backbone 'os' is unknown"):
        read_pipeline(found.output)


def test_the_options_of_images_reach_the_record_and_the_pipeline(command: Command, folder: Path) -> None:
    images = ("--resize", "shorter:40,bilinear-aliased", "--crop", "32x32", "--no-orient", "--depth", 8)
    outcome = command("fit", folder, "--backbone", COLOURS, "--clusters", 3, *images, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)["record"]["images"]
    assert (record["crop"], record["orient"], record["depth"]) == ([32, 32], False, 8)
    expected = ImageInput(resize=Resize(shortest=40, filter="bilinear-aliased"), crop=(32, 32), orient=False, depth=8)
    assert read_pipeline(Path("vocabulary.safetensors"), backbone=COLOURS).images == expected
    said = "grey values of 8 bits, pixels as stored, shorter side to 40 (bilinear-aliased), the middle 32x32, then"
    assert f"images: {said}" in command("inspect", "vocabulary.safetensors").out


def test_a_record_of_before_keeps_its_meaning(folder: Path, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    found = fit([folder], tmp_path / "v.safetensors", options())
    with safe_open(found.output, framework="np") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
    old = {name: record["images"][name] for name in ("mean", "std")}
    old["resize"] = {"size": list(SIDES), "longest": None, "filter": "box"}
    save_file(load_file(found.output), found.output, metadata={METADATA_KEY: json.dumps({**record, "images": old})})
    images = read_pipeline(found.output, backbone=COLOURS).images
    assert images == ImageInput(resize=Resize(size=SIDES, filter="box"), orient=True)
