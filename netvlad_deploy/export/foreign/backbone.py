"""The nodes before a NetVLAD in a foreign graph, as a torch module that computes the same.

As a module a foreign backbone goes the way of every other: its BatchNorms are folded, FP16 rounds kernels such that
their sums stay, and golden images have its descriptors in float64. That it computes what the file computes is proved by
running both. Means over positions are computed in FP32 also where the module is FP16.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign.cut import FeatureLayout, needed
from netvlad_deploy.export.foreign.paths import Paths
from netvlad_deploy.export.foreign.products import attributes
from netvlad_deploy.support.arrays import Array

Function: TypeAlias = Callable[..., Tensor]
Settings: TypeAlias = Mapping[str, Any]


class ForeignBackbone(nn.Module):
    """Normalised images (B,3,H,W) to the feature map (B,D,h,w) at which a head starts.

    Args:
        paths: the graph.
        last: the tensor of the feature map.
        layout: how local descriptors lie in it.
        channels_last: the graph takes images (B,H,W,3).

    Raises: InputError naming the operators that cannot be turned into torch, or a setting of one.
    """

    def __init__(self, paths: Paths, last: str, layout: FeatureLayout, *, channels_last: bool) -> None:
        super().__init__()
        self._source, self._last, self._layout, self._channels_last = paths.source, last, layout, channels_last
        nodes = needed(paths.nodes, last)
        unknown = sorted({node.op_type for node in nodes} - set(LAYERS) - set(FUNCTIONS))
        if unknown:
            raise InputError(
                f"its backbone has {', '.join(unknown)}, expected operators of convolutional networks alone: take its "
                "head with --input features, or all of it with --no-head"
            )
        self.steps = nn.ModuleList()
        self._names: list[tuple[list[str], str]] = []
        for node in nodes:
            step, inputs = _step(paths, node)
            self.steps.append(step)
            self._names.append((inputs, node.output[0]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map (B,D,h,w) of normalised images (B,3,H,W)."""
        values = {self._source: x.permute(0, 2, 3, 1) if self._channels_last else x}
        for step, (inputs, output) in zip(self.steps, self._names, strict=True):
            values[output] = step(*(values[name] for name in inputs))
        found = values[self._last].movedim(self._layout.axis, 1)
        return found if found.ndim == 4 else found.unsqueeze(2)


class Step(nn.Module):
    """A node as a function of its inputs of data and its constants, which are buffers at their positions."""

    def __init__(self, function: Function, settings: Settings, constants: Mapping[int, Array]) -> None:
        super().__init__()
        self._function, self._settings, self._positions = function, settings, tuple(constants)
        for position, value in constants.items():
            self.register_buffer(f"constant{position}", torch.from_numpy(value.copy()))

    def forward(self, *data: Tensor) -> Tensor:
        """Return the result of the node for its inputs of data."""
        arguments = list(data)
        for position in self._positions:
            arguments.insert(position, getattr(self, f"constant{position}"))
        return self._function(*arguments, **self._settings)


def _step(paths: Paths, node: Any) -> tuple[nn.Module, list[str]]:
    """Return the module of a node, and the names of its inputs of data."""
    settings = attributes(node)
    constants = {
        index: value
        for index, name in enumerate(node.input)
        if name and name not in paths.data and (value := paths.constant(name)) is not None
    }
    if len(constants) != sum(bool(name) and name not in paths.data for name in node.input):
        raise InputError(f"{node.op_type} {node.name} of its backbone computes with shapes: take it with --no-head")
    try:
        if node.op_type in LAYERS:
            return LAYERS[node.op_type](settings, constants), paths.inputs(node)
        function, given = FUNCTIONS[node.op_type](settings, constants)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{node.op_type} {node.name} of its backbone has settings that are not supported ({error}): take its head "
            "with --input features, or all of it with --no-head"
        ) from error
    kept = {index: value for index, value in constants.items() if value.dtype.kind == "f"} if given is None else {}
    return Step(function, given or {}, kept), paths.inputs(node)


def _convolution(settings: Settings, constants: Mapping[int, Array]) -> nn.Module:
    weight, bias = constants[1], constants.get(2)
    _check(weight.ndim == 4, f"a kernel of {weight.ndim - 2} axes")
    groups, before = int(settings.get("group", 1)), _padding(settings, weight.shape[2:])
    even = before[0] == before[1] and before[2] == before[3]
    module = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=_pair(settings, "strides"),
        padding=(before[2], before[0]) if even else 0,
        dilation=_pair(settings, "dilations"),
        groups=groups,
        bias=bias is not None,
    )
    module.weight.data = torch.from_numpy(weight.copy())
    if bias is not None and module.bias is not None:
        module.bias.data = torch.from_numpy(bias.copy())
    return module if even else nn.Sequential(nn.ZeroPad2d(before), module)


def _batch_norm(settings: Settings, constants: Mapping[int, Array]) -> nn.Module:
    module = nn.BatchNorm2d(len(constants[1]), eps=float(settings.get("epsilon", 1e-5)))
    names = ("weight", "bias", "running_mean", "running_var")
    state = {name: torch.from_numpy(constants[index].copy()) for index, name in enumerate(names, 1)}
    module.load_state_dict(state, strict=False)
    return module


LAYERS: Final[dict[str, Callable[[Settings, Mapping[int, Array]], nn.Module]]] = {
    "Conv": _convolution,
    "BatchNormalization": _batch_norm,
}
"""Operators that become modules, which a fold then finds."""


def _check(holds: bool, words: str) -> None:
    if not holds:
        raise ValueError(words)


def _pair(settings: Settings, name: str, default: Sequence[int] = (1, 1)) -> tuple[int, int]:
    values = tuple(settings.get(name, default))
    _check(len(values) == 2, f"{name} {values}")
    return values[0], values[1]


def _padding(settings: Settings, kernel: Sequence[int]) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom, as torch wants them; what depends on the size of the image is refused."""
    kind = settings.get("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER") and _pair(settings, "strides") == (1, 1):
        tall, wide = (step * (each - 1) for step, each in zip(_pair(settings, "dilations"), kernel, strict=True))
        more = 0 if kind == "SAME_UPPER" else 1  # which side gets the odd one
        left, top = (wide + more) // 2, (tall + more) // 2
        return left, wide - left, top, tall - top
    _check(kind in ("NOTSET", "VALID"), f"auto_pad {kind}")
    top, left, bottom, right = settings.get("pads", (0, 0, 0, 0))
    return left, right, top, bottom


def _max_pool(settings: Settings, _: Mapping[int, Array]) -> tuple[Function, Settings]:
    size = _pair(settings, "kernel_shape", ())
    before = _padding(settings, size)
    strides, dilations = _pair(settings, "strides"), _pair(settings, "dilations")
    even = before[0] == before[1] <= size[1] // 2 and before[2] == before[3] <= size[0] // 2  # as torch pads by itself

    def pool(x: Tensor) -> Tensor:
        padded, side = (x, (before[2], before[0])) if even else (functional.pad(x, before, value=-math.inf), 0)
        return functional.max_pool2d(padded, size, strides, side, dilations, bool(settings.get("ceil_mode", 0)))

    return pool, {}


def _average_pool(settings: Settings, _: Mapping[int, Array]) -> tuple[Function, Settings]:
    size = _pair(settings, "kernel_shape", ())
    before = _padding(settings, size)
    _check(before[0] == before[1] and before[2] == before[3], f"pads {before}")
    _check(tuple(settings.get("dilations", (1, 1))) == (1, 1), "dilations")
    strides, counted = _pair(settings, "strides"), bool(settings.get("count_include_pad", 0))
    ceil = bool(settings.get("ceil_mode", 0))

    def pool(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, size, strides, (before[2], before[0]), ceil, counted)

    return pool, {}


def _mean(settings: Settings, constants: Mapping[int, Array]) -> tuple[Function, Settings]:
    axes = tuple(int(axis) for axis in constants.get(1, settings.get("axes", ())))
    _check(bool(axes), "no axes")

    def mean(x: Tensor) -> Tensor:
        wide = x.float() if x.dtype is torch.float16 else x
        return wide.mean(axes, keepdim=bool(settings.get("keepdims", 1))).to(x.dtype)

    return mean, {}


def _clip(settings: Settings, constants: Mapping[int, Array]) -> tuple[Function, Settings]:
    low, high = (
        float(constants[index]) if index in constants else settings.get(name)
        for index, name in ((1, "min"), (2, "max"))
    )
    return torch.clamp, {"min": low, "max": high}


def _pad(settings: Settings, constants: Mapping[int, Array]) -> tuple[Function, Settings]:
    amounts = [int(each) for each in constants.get(1, settings.get("pads", ()))]
    _check(len(amounts) == 8 and not any(amounts[:2] + amounts[4:6]), f"pads {amounts}")
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[settings.get("mode", "constant")]
    sides = (amounts[3], amounts[7], amounts[2], amounts[6])
    value = {"value": float(constants.get(2, settings.get("value", 0.0)))} if mode == "constant" else {}
    return functional.pad, {"pad": sides, "mode": mode, **value}


def _concatenation(settings: Settings, constants: Mapping[int, Array]) -> tuple[Function, Settings]:
    _check(not constants, "a constant among its parts")
    axis = int(settings["axis"])
    return lambda *parts: torch.cat(parts, dim=axis), {}


def _fixed(function: Function, **names: tuple[str, float]) -> Callable[..., tuple[Function, Settings]]:
    """Return the maker of a function of one tensor whose settings are attributes, with their defaults in ONNX."""

    def make(settings: Settings, _: Mapping[int, Array]) -> tuple[Function, Settings]:
        return function, {name: settings.get(*attribute) for name, attribute in names.items()}

    return make


def _of_constants(function: Function) -> Callable[..., tuple[Function, None]]:
    """Return the maker of a function whose constants are tensors."""
    return lambda *_: (function, None)


def _hard_sigmoid(settings: Settings, _: Mapping[int, Array]) -> tuple[Function, Settings]:
    alpha, beta = float(settings.get("alpha", 0.2)), float(settings.get("beta", 0.5))
    return lambda x: (alpha * x + beta).clamp(0, 1), {}


FUNCTIONS: Final[dict[str, Callable[..., tuple[Function, Settings | None]]]] = {
    "Add": _of_constants(lambda a, b: a + b),
    "Sub": _of_constants(lambda a, b: a - b),
    "Mul": _of_constants(lambda a, b: a * b),
    "Div": _of_constants(lambda a, b: a / b),
    "PRelu": _of_constants(lambda x, slope: torch.where(x > 0, x, x * slope)),
    "Relu": _fixed(functional.relu),
    "LeakyRelu": _fixed(functional.leaky_relu, negative_slope=("alpha", 0.01)),
    "Elu": _fixed(functional.elu, alpha=("alpha", 1.0)),
    "Sigmoid": _fixed(torch.sigmoid),
    "Tanh": _fixed(torch.tanh),
    "HardSwish": _fixed(functional.hardswish),
    "HardSigmoid": _hard_sigmoid,
    "Softplus": _fixed(functional.softplus),
    "Identity": _fixed(lambda x: x),
    "Dropout": _fixed(lambda x: x),
    "Clip": _clip,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda *_: _mean({"axes": (2, 3)}, {}),
    "ReduceMean": _mean,
    "Concat": _concatenation,
    "Pad": _pad,
    "Transpose": lambda settings, _: (torch.permute, {"dims": tuple(settings["perm"])}),
}
"""Operators that become functions: the maker of each gets its attributes and constants, and returns the function with
its settings, or None for settings where its constants are tensors beside the data.
"""
