"""Folders of the library transformers: weights, image input, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import find_backbone
from netvlad_deploy.models.backbones.model_folder import MOST_BYTES, image_input
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.images import ImageChanges, Resize
from tests.models.backbones import transformers as tiny

pytestmark = pytest.mark.export

IMAGES = torch.randn(1, 3, *tiny.SIZE, generator=torch.Generator().manual_seed(6))


def folder(path: Path, **changed: Any) -> Path:
    return tiny.write_folder(path / "model", "dinov2", tiny.old_names(tiny.hub_state("dinov2"), "dinov2"), **changed)


def test_a_folder_is_a_backbone_with_its_own_images(tmp_path: Path) -> None:
    ready = read_backbone(f"hf:{folder(tmp_path)}")
    assert ready.images.mean == pytest.approx((127.5, 102.0, 76.5))
    assert ready.images.std == pytest.approx((51.0, 63.75, 76.5))
    assert (ready.images.size, ready.width, ready.images.fixed) == (tiny.SIZE, tiny.WIDTH, True)
    expected = tiny.tokens(tiny.hub_state("dinov2"), IMAGES, offset=0.0, antialias=False)
    with torch.inference_mode():
        feature_map, token = ready.module(IMAGES)
    assert float((feature_map.flatten(2).transpose(1, 2) - expected[:, 1:]).abs().max()) < 2e-5
    assert float((token - expected[:, 0]).abs().max()) < 2e-5
    with pytest.raises(InputError, match=r"gives 32 channels, the head takes 9: name another with --backbone"):
        ready.under(NetVLAD(2, 9).eval())


def test_weights_in_parts_are_read_by_their_index(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder(tmp_path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(state)
    for part, own in (("one", names[::2]), ("two", names[1::2])):
        save_file({name: state[name] for name in own}, path / f"{part}.safetensors")
    places = {name: f"{'two' if index % 2 else 'one'}.safetensors" for index, name in enumerate(names)}
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert read_backbone(f"hf:{path}").width == tiny.WIDTH
    for outside in ("../one.safetensors", "/one.safetensors", "one.bin", 3):
        index.write_text(json.dumps({"weight_map": {**places, names[0]: outside}}))
        with pytest.raises(InputError, match=r"names no \.safetensors file of this folder"):
            read_backbone(f"hf:{path}")


def test_a_resize_of_the_user_takes_the_place_of_resize_and_crop(tmp_path: Path) -> None:
    path = folder(tmp_path, size={"shortest_edge": 40}, do_center_crop=True, crop_size={"height": 32, "width": 32})
    ready = read_backbone(f"hf:{path}")
    assert ready.images.preparation == "upright by EXIF, shorter side to 40 (bilinear), the middle 32x32"
    ready = read_backbone(f"hf:{path}", changes=ImageChanges(resize=Resize.parse("24x48")))
    assert ready.images.preparation == "upright by EXIF, to 24x48 (bilinear)"


@pytest.mark.parametrize(
    ("changed", "preparation"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 210}, "resample": 3},
         "shorter side to 256 (bicubic), the middle 224x210"),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": False},
         "shorter side to 256 (bilinear)"),
        ({"size": 224, "image_processor_type": "ViTImageProcessor"}, "to 224x224 (bilinear)"),
        ({"size": 224, "feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "resample": 3},
         "shorter side to 256 (bicubic), the middle 224x224"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 1}, "to 384x384 (lanczos)"),
        ({"size": {"height": 64, "width": 96}, "resample": 0}, "to 64x96 (nearest-centre)"),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 96}, "no resize, the middle 96x96"),
    ],
)  # fmt: skip
def test_a_preprocessor_is_followed(changed: dict[str, Any], preparation: str) -> None:
    assert image_input({**tiny.PREPROCESSOR, **changed}).preparation == f"upright by EXIF, {preparation}"


def test_a_deviation_that_is_applied_twice_is_squared() -> None:
    """As EfficientNet's preprocessor does it: (0.485, ...) of mean, then sqrt(0.229) twice."""
    images = image_input({**tiny.PREPROCESSOR, "include_top": True, "image_std": [0.5, 0.25, 0.1]})
    assert images.std == pytest.approx((255 * 0.25, 255 * 0.0625, 255 * 0.01))
    plain = image_input({**tiny.PREPROCESSOR, "do_normalize": False})
    assert (plain.mean, plain.std) == ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"do_pad": True}, "do_pad is asked for, which cannot be followed"),
        ({"rescale_offset": True}, "rescale_offset is asked for"),
        ({"do_rescale": False}, "values are not rescaled by 1/255"),
        ({"rescale_factor": 1 / 127.5}, "values are not rescaled by 1/255"),
        ({"resample": 5}, "resample is 5, expected 0, 1, 2, 3, 4"),
        ({"resample": [2]}, r"resample is \[2\], expected 0, 1, 2, 3, 4"),
        ({"image_mean": [10**400, 0.5, 0.5]}, "expected three numbers"),
        ({"image_mean": [float("nan"), 0.5, 0.5]}, "expected three numbers"),
        ({"image_std": [0.5, 0.5, True]}, "expected three numbers"),
        ({"rescale_factor": 10**400}, "rescale_factor is 10{40}"),
        ({"crop_size": list(range(999)), "do_center_crop": True}, "crop_size is"),
        ({"size": {"longest_edge": 224}}, "expected height and width, or shortest_edge alone"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "expected height and width, or shortest_edge alone"),
        ({"size": None}, "size is null, expected height and width"),
        ({"size": {"height": 0, "width": 5}}, "size holds 0, expected pixels from 1 to 16384"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\], expected three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "expected numbers above 0"),
        ({"do_center_crop": True}, "crop_size is null"),
    ],
)
def test_a_preprocessor_that_cannot_be_followed_is_refused(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = folder(tmp_path, **changed)
    with pytest.raises(InputError, match=rf"preprocessor_config\.json: .*{said}") as refused:
        find_backbone(f"hf:{path}")
    assert "\n" not in str(refused.value)


def set_config(path: Path, **changed: Any) -> None:
    record = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**record, **changed}))


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: (path / "config.json").unlink(), r"config\.json is missing"),
        (lambda path: (path / "preprocessor_config.json").unlink(), r"preprocessor_config\.json is missing"),
        (lambda path: (path / "model.safetensors").unlink(), r"lacks model\.safetensors$"),
        (pickled, r"lacks model\.safetensors beside pytorch_model\.bin, whose pickle is not read"),
        (lambda path: set_config(path, model_type="bert"), "model_type is 'bert', expected dinov2, "),
        (lambda path: set_config(path, model_type=["vit"]), r"model_type is \['vit'\]"),
        (lambda path: set_config(path, quantization_config={}), "the weights are quantized"),
        (lambda path: set_config(path, patch_size="wide"), "transformers refuses the config"),
        (lambda path: set_config(path, num_hidden_layers=3), "lacks network.encoder.layer.2."),
        (lambda path: set_config(path, image_size=80), "position_embeddings is .*, expected .*1, 101, 32"),
        (
            lambda path: set_config(path, num_hidden_layers=10**9),
            r"asks for \[1000000000\] layers, expected 512 at most",
        ),
        (lambda path: set_config(path, hidden_size=-4), "transformers refuses the config"),
        (lambda path: set_config(path, hidden_size="x"), "transformers refuses the config"),
        (lambda path: set_config(path, hidden_act="none"), "transformers refuses the config"),
        (lambda path: (path / "config.json").write_text("{"), r"config\.json is no JSON"),
        (lambda path: (path / "config.json").write_text("[]"), "holds no settings by name"),
        (lambda path: (path / "config.json").write_text(" " * (MOST_BYTES + 1)), "which no settings are"),
        (lambda path: (path / "model.safetensors").write_bytes(b"\0" * 99), r"model\.safetensors"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    path = folder(tmp_path)
    damage(path)
    with pytest.raises(InputError, match=said) as refused:
        read_backbone(f"hf:{path}")
    assert "\n" not in str(refused.value)


def test_nothing_of_a_folder_is_code(tmp_path: Path) -> None:
    """A config may name code in the folder, which the library would run if it were asked to trust it."""
    path = folder(tmp_path)
    (path / "evil.py").write_text("raise SystemExit('run')")
    set_config(path, auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    assert read_backbone(f"hf:{path}").width == tiny.WIDTH


def test_a_folder_that_is_not_there_and_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"nowhere is no folder: --backbone hf:FOLDER names one with config\.json"):
        find_backbone("hf:nowhere")
    with pytest.raises(UsageError, match=r"hf:FOLDER, timm:NAME or package\.module:callable"):
        find_backbone("dinov3")


def test_a_convolutional_network_is_cut_at_its_last_map(tmp_path: Path) -> None:
    """ResNet, against the library's own last hidden state; its size stays open."""
    import transformers
    from safetensors.torch import save_file

    record: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(3)
    network: Any = transformers.ResNetForImageClassification(transformers.ResNetConfig(**record))
    network.eval()
    path = tmp_path / "resnet"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "resnet", **record}))
    (path / "preprocessor_config.json").write_text(json.dumps(tiny.PREPROCESSOR))
    save_file({name: each.contiguous() for name, each in network.state_dict().items()}, path / "model.safetensors")
    ready = read_backbone(f"hf:{path}")
    assert (ready.width, ready.images.fixed) == (16, False)
    with torch.inference_mode():
        images = torch.randn(1, 3, 37, 50)
        assert torch.equal(ready.module(images), network.resnet(images).last_hidden_state)
