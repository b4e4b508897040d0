"""Random weights of each backbone under the names that others save, and its forward pass from them alone.

Written from the papers and torchvision's state names with functional operators: nothing here knows the package.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]

VGG16 = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
VGG16_POOLED_BEFORE = (5, 10, 17, 24)
ALEXNET = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
RESNETS = {
    18: {4: (64, 2), 5: (128, 2), 6: (256, 2), 7: (512, 2)},
    50: {4: (64, 3), 5: (128, 4), 6: (256, 6), 7: (512, 3)},
    101: {4: (64, 3), 5: (128, 4), 6: (256, 23), 7: (512, 3)},
    152: {4: (64, 3), 5: (128, 8), 6: (256, 36), 7: (512, 3)},
}
"""By depth, the width and the number of the blocks of each layer. Source: He et al. 2016, table 1."""


class Maker:
    """Random tensors from a seed, of a scale that keeps activations alive through many layers."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator).mul_(scale)

    def kernel(self, before: int, after: int, side: int) -> Tensor:
        return self(after, before, side, side, scale=(2 / (before * side**2)) ** 0.5)

    def batch_norm(self, name: str, width: int) -> State:
        return {
            f"{name}.weight": 0.5 + torch.rand(width, generator=self.generator),
            f"{name}.bias": self(width, scale=0.3),
            f"{name}.running_mean": self(width, scale=0.3),
            f"{name}.running_var": 0.5 + torch.rand(width, generator=self.generator),
            f"{name}.num_batches_tracked": torch.tensor(7),
        }


def vgg16_state() -> State:
    make, state = Maker(1), State()
    for index, (before, after) in VGG16.items():
        state |= {f"{index}.weight": make.kernel(before, after, 3), f"{index}.bias": make(after, scale=0.3)}
    return state


def alexnet_state() -> State:
    make, state = Maker(2), State()
    for index, (before, after, side) in ALEXNET.items():
        state |= {f"{index}.weight": make.kernel(before, after, side), f"{index}.bias": make(after, scale=0.3)}
    return state


def _blocks(table: dict[int, tuple[int, int]], last: int) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, width, stride and stage of each block up to a stage."""
    for stage, (width, count) in table.items():
        for number in range(count if stage <= last else 0):
            yield f"{stage}.{number}", width, 2 if stage > 4 and number == 0 else 1, stage


class Shapes(Maker):
    """Tensors of the same shapes without values, for tests of names and shapes alone."""

    def __init__(self) -> None:
        super().__init__(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(*shape, device="meta")

    def batch_norm(self, name: str, width: int) -> State:
        return {f"{name}.{each}": self(width) for each in ("weight", "bias", "running_mean", "running_var")}


def resnet_state(depth: int, last: int, make: Maker | None = None) -> State:
    """Return a ResNet up to a layer, with basic blocks in ResNet-18 and bottlenecks in the deeper ones."""
    make, widening = make or Maker(depth), 1 if depth == 18 else 4
    state, before = {"0.weight": make.kernel(3, 64, 7), **make.batch_norm("1", 64)}, 64
    for name, width, stride, _ in _blocks(RESNETS[depth], last):
        sides = (3, 3) if depth == 18 else (1, 3, 1)
        widths = (before, *(width for _ in sides[1:]), width * widening)
        for number, side in enumerate(sides):
            state[f"{name}.conv{number + 1}.weight"] = make.kernel(widths[number], widths[number + 1], side)
            state |= make.batch_norm(f"{name}.bn{number + 1}", widths[number + 1])
        if stride == 2 or before != width * widening:
            state[f"{name}.downsample.0.weight"] = make.kernel(before, width * widening, 1)
            state |= make.batch_norm(f"{name}.downsample.1", width * widening)
        before = width * widening
    return state


def vgg16(state: State, x: Tensor, last_relu: bool = False) -> Tensor:
    for index in VGG16:
        if index in VGG16_POOLED_BEFORE:
            x = functional.max_pool2d(x, 2, 2)
        x = functional.conv2d(x, state[f"{index}.weight"], state[f"{index}.bias"], padding=1)
        x = x if index == 28 and not last_relu else x.clamp(min=0)
    return x


def alexnet(state: State, x: Tensor, last_relu: bool = False) -> Tensor:
    for index, stride, padding, pooled in ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False)):
        x = functional.conv2d(x, state[f"{index}.weight"], state[f"{index}.bias"], stride, padding).clamp(min=0)
        x = functional.max_pool2d(x, 3, 2) if pooled else x
    x = functional.conv2d(x, state["10.weight"], state["10.bias"], padding=1)
    return x.clamp(min=0) if last_relu else x


def _normed(state: State, conv: str, norm: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    """Return the convolution of x with BatchNorm written out."""
    x = functional.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding)
    statistics = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (state[f"{norm}.{each}"][:, None, None] for each in statistics)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def resnet(state: State, x: Tensor, depth: int, last: int) -> Tensor:
    x = functional.max_pool2d(_normed(state, "0", "1", x, 2, 3).clamp(min=0), 3, 2, padding=1)
    for name, _, stride, _ in _blocks(RESNETS[depth], last):
        way = x
        if f"{name}.downsample.0.weight" in state:
            way = _normed(state, f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
        if depth > 18:
            y = _normed(state, f"{name}.conv1", f"{name}.bn1", x).clamp(min=0)
            y = _normed(state, f"{name}.conv2", f"{name}.bn2", y, stride, 1).clamp(min=0)
            y = _normed(state, f"{name}.conv3", f"{name}.bn3", y)
        else:
            y = _normed(state, f"{name}.conv1", f"{name}.bn1", x, stride, 1).clamp(min=0)
            y = _normed(state, f"{name}.conv2", f"{name}.bn2", y, 1, 1)
        x = (y + way).clamp(min=0)
    return x
