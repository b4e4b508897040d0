"""Networks of timm, on a double of the package that has the members used, as its source has them."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, MissingDependencyError, UsageError
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import find_backbone
from netvlad_deploy.models.backbones.timm_networks import image_input
from netvlad_deploy.spec.images import ImageChanges, Resize

pytestmark = pytest.mark.export

CONFIG: dict[str, Any] = {
    "input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25),
    "crop_pct": 1.0, "crop_mode": "squash", "classifier": "head",
}  # fmt: skip


class Conv2dSame(nn.Conv2d):
    """A convolution whose padding depends on the size, by its name."""


class Network(nn.Module):
    """What timm's networks have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg, self.num_features, self.head = CONFIG, 6, nn.Identity()


class Convolutional(Network):
    """A network that gives a feature map, with its channels last if `last` is set."""

    def __init__(self, kind: type[nn.Conv2d] = nn.Conv2d, *, last: bool = False) -> None:
        super().__init__()
        self.conv, self.last = kind(3, 6, 4, stride=4), last

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.permute(0, 2, 3, 1) if self.last else x


class Tokens(Network):
    """A vision transformer of patches of 8 with a class token and two registers, its blocks left out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 6, 8, stride=8)
        self.patch_embed.patch_size = (8, 8)  # type: ignore[assignment]
        self.cls_token, self.reg_token = nn.Parameter(torch.randn(1, 1, 6)), nn.Parameter(torch.randn(1, 2, 6))
        self.pos_embed = nn.Parameter(torch.randn(1, 19, 6))
        self.num_prefix_tokens, self.sizes = 3, list[tuple[int, int]]()

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        self.sizes.append(img_size)
        count = 3 + img_size[0] // 8 * (img_size[1] // 8)
        self.pos_embed = nn.Parameter(self.pos_embed[:, torch.arange(count) % 19])

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        first = torch.cat([self.cls_token, self.reg_token], 1).expand(len(x), -1, -1)
        return torch.cat([first, x], 1) + self.pos_embed


NETWORKS = {
    "resnet10": Convolutional, "resnet11": Convolutional, "swin": lambda: Convolutional(last=True),
    "tf_net": lambda: Convolutional(Conv2dSame), "vit_tiny": Tokens,
}  # fmt: skip


@pytest.fixture(autouse=True)
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    double, data = ModuleType("timm"), ModuleType("timm.data")

    def create_model(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert (pretrained, num_classes) == (False, 0), "weights would be fetched"
        architecture, _, tag = name.partition(".")
        if tag not in ("", "a1"):
            raise RuntimeError(f"Invalid pretrained tag ({tag}) for {architecture}.")
        return NETWORKS[architecture]()

    double.list_models = lambda: sorted(NETWORKS)  # type: ignore[attr-defined]
    double.create_model = create_model  # type: ignore[attr-defined]
    data.resolve_model_data_config = lambda model: dict(model.pretrained_cfg)  # type: ignore[attr-defined]
    double.data = data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", double)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    return double


@pytest.mark.parametrize(("name", "fixed"), [("resnet10.a1", False), ("swin", False), ("tf_net", True)])
def test_a_convolutional_network_gives_its_map(name: str, fixed: bool) -> None:
    ready = read_backbone(f"timm:{name}", seed=0)
    assert (ready.name, ready.width, ready.images.fixed) == (f"timm:{name}", 6, fixed)
    assert ready.images.preparation == "upright by EXIF, to 32x32 (bicubic)"
    assert (ready.images.mean, ready.images.std) == ((127.5,) * 3, (63.75,) * 3)
    images = torch.randn(2, 3, 32, 32)
    conv = ready.module.get_submodule("network.conv")
    with torch.inference_mode():
        assert torch.equal(ready.module(images), conv(images))


def test_tokens_become_a_map_and_the_class_token_is_beside() -> None:
    ready = read_backbone("timm:vit_tiny", seed=0, changes=ImageChanges(resize=Resize.parse("16x40")))
    network = ready.module.get_submodule("network")
    assert isinstance(network, Tokens)
    assert (network.sizes, ready.images.fixed) == ([(16, 40)], True)
    images = torch.randn(2, 3, 16, 40)
    with torch.inference_mode():
        feature_map, token = ready.module(images)
        tokens = network.forward_features(images)
    assert torch.equal(feature_map, tokens[:, 3:].reshape(2, 2, 5, 6).permute(0, 3, 1, 2))
    assert torch.equal(token, tokens[:, 0])
    with pytest.raises(UsageError, match="multiple of 8, images are 20x40: pass --resize 16x40, or --crop 16x40"):
        read_backbone("timm:vit_tiny", seed=0, changes=ImageChanges(resize=Resize.parse("20x40")))


def test_weights_come_from_a_file_of_the_whole_network(tmp_path: Path) -> None:
    state = {**Convolutional().state_dict(), "head.weight": torch.ones(9, 6)}
    torch.save(state, tmp_path / "whole.pth")
    ready = read_backbone("timm:resnet10", tmp_path / "whole.pth")
    assert torch.equal(ready.module.get_parameter("network.conv.weight"), state["conv.weight"])
    torch.save({**state, "odd": torch.ones(2)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"holds network\.odd, which the backbone timm:resnet10 does not have"):
        read_backbone("timm:resnet10", tmp_path / "odd.pth")
    with pytest.raises(UsageError, match="brings no weights"):
        read_backbone("timm:resnet10")


def test_an_unknown_name_is_refused_with_near_ones(timm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="timm has no network 'resnet12': near names are resnet11, resnet10"):
        find_backbone("timm:resnet12")
    with pytest.raises(UsageError, match="timm has no network 'hf-hub:x/y': near names are none"):
        find_backbone("timm:hf-hub:x/y")
    with pytest.raises(UsageError, match=r"timm does not make 'resnet10\.odd' \(Invalid pretrained tag"):
        find_backbone("timm:resnet10.odd")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match="timm cannot be imported"):
        find_backbone("timm:resnet10")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"input_size": (1, 32, 32)}, "takes 1 channels, expected 3"),
        ({"interpolation": "random"}, "interpolation is 'random', expected bilinear, "),
        ({"crop_mode": "border"}, "crop_mode 'border' of 32x32 cannot be followed"),
        ({"crop_mode": "center", "input_size": (3, 32, 48)}, "crop_mode 'center' of 32x48 cannot be followed"),
    ],
)
def test_a_data_config_that_cannot_be_followed_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        image_input({**CONFIG, **changed})


def test_a_data_config_is_followed() -> None:
    images = image_input({**CONFIG, "crop_pct": 0.875, "crop_mode": "center", "interpolation": "bilinear"})
    assert images.preparation == "upright by EXIF, shorter side to 36 (bilinear), the middle 32x32"
    images = image_input({**CONFIG, "crop_pct": 0.9, "input_size": (3, 32, 48)})
    assert images.preparation == "upright by EXIF, to 35x53 (bicubic), the middle 32x48"
