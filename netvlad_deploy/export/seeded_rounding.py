"""How far rounding to 11 bits may move a descriptor: the unfolded module in FP32, what its products read rounded.

The steps of a rounding are where a graph's steps are not: every tensor is rounded on a grid that a seed has shifted, so
that each seed is another rounding of the same kind. Equal values are rounded equally, as in a graph: where activations
are flat, errors do not average out over an image, and noise drawn value by value would hide that.
"""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netvlad_deploy.export.half_backbone import round_kernels

PRODUCTS: Final = frozenset({"conv2d", "linear", "matmul", "__matmul__", "bmm"})
"""Whose operands TF32 rounds, and FP16 has rounded; of a convolution and a linear map the weights are the second."""

SUMS: Final = frozenset({"add", "__add__"})
SUMS_IN_PLACE: Final = frozenset({"add_", "__iadd__"})
"""Of a backbone: the tensors that a graph in FP16 adds have been stored in it."""

SPLIT: Final = 2.0**13 + 1
"""Keeps 11 of the 24 bits of FP32. Source: Veltkamp's splitting, as in Dekker 1971."""


class RoundedBackbone(TorchFunctionMode):
    """Round what the products of a backbone read, weights too; in FP16 within its range, and what it adds as well.

    A parameter is rounded once, however many images go through.
    """

    def __init__(self, seed: int, *, half: bool) -> None:
        super().__init__()
        self._random, self._half = np.random.default_rng(seed), half
        self._parameters: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products and sums, and let everything else through."""
        name = getattr(function, "__name__", "")
        if name in PRODUCTS:
            first, second, *rest = args
            args = (self._rounded(first), self._rounded(second, kernels=name == "conv2d"), *rest)
        elif self._half and name in SUMS | SUMS_IN_PLACE and len(args) > 1:
            first, second, *rest = args
            args = (first if name in SUMS_IN_PLACE else self._rounded(first), self._rounded(second), *rest)
        return function(*args, **(kwargs or {}))

    def _rounded(self, values: Any, *, kernels: bool = False) -> Any:
        if not _is_rounded(values):
            return values
        if not isinstance(values, nn.Parameter):
            return self._on_a_grid(values, kernels=kernels)
        if id(values) not in self._parameters:
            self._parameters[id(values)] = self._on_a_grid(values, kernels=kernels)
        return self._parameters[id(values)]

    def _on_a_grid(self, values: Tensor, *, kernels: bool) -> Tensor:
        scale = float(self._random.uniform(0.5, 1))  # never above 1: FP16 must not end earlier than it does
        shifted = values * scale
        if not self._half:
            return to_11_bits(shifted) / scale
        return (round_kernels(shifted) if kernels else shifted.half()).float() / scale


class RoundedHead(TorchFunctionMode):
    """Round what the products of a head read, and in FP16 what it stores between them; in a graph none can overflow.

    Args:
        fixed: its parameters, which are not rounded: a projection may be half a gigabyte, and their part is small.
        stored: round the sums of the residuals and, with `logits`, the logits less their mean, as an FP16 graph does.
    """

    def __init__(self, seed: int, *, fixed: Collection[Tensor], stored: bool, logits: bool) -> None:
        super().__init__()
        self._random, self._fixed = np.random.default_rng(seed), frozenset(map(id, fixed))
        self._stored, self._logits = stored, logits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products, differences and softmax, and let everything else through."""
        name = getattr(function, "__name__", "")
        if name in PRODUCTS or (self._stored and name in ("sub", "__sub__")):
            args = tuple(self._rounded(each) for each in args)
        elif self._logits and name == "softmax":
            args = (self._rounded(args[0] - args[0].mean(-1, keepdim=True)), *args[1:])
        return function(*args, **(kwargs or {}))

    def _rounded(self, values: Any) -> Any:
        if not _is_rounded(values) or id(values) in self._fixed:
            return values
        scale = float(self._random.uniform(0.5, 1))
        return to_11_bits(values * scale) / scale


def to_11_bits(values: Tensor) -> Tensor:
    """Return FP32 values with 11 significant bits, in the range of FP32."""
    large = values * SPLIT
    return large - (large - values)


def _is_rounded(values: Any) -> bool:
    return isinstance(values, Tensor) and values.dtype is torch.float32 and values.ndim > 0
