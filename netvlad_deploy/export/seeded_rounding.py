"""Modes that round the operands of products to 11 bits, to measure how far such rounding moves a descriptor.

Every tensor is multiplied by a random factor, rounded, and divided by it again: each seed gives another rounding of the
same kind, none of them exactly the graph's. Equal values are rounded equally, as in a graph: where activations are
flat, errors do not average out over an image, and noise drawn for each value would hide that.
"""

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netvlad_deploy.export.fold_backbone import round_kernels

PRODUCTS: Final = frozenset({"conv2d", "linear", "matmul", "__matmul__", "bmm"})
"""Functions whose operands an engine rounds in TF32 and an FP16 graph holds in FP16; second operands may be weights."""

SUMS: Final = frozenset({"add", "__add__"})
SUMS_IN_PLACE: Final = frozenset({"add_", "__iadd__"})
"""Sums in a backbone, whose operands an FP16 graph has stored in FP16; the first operand of a sum in place is kept."""

VELTKAMP_FACTOR: Final = 2.0**13 + 1
"""Factor that keeps 11 of the 24 bits of FP32. Source: Veltkamp's splitting, as in Dekker 1971."""


class RoundedBackbone(TorchFunctionMode):
    """A mode that rounds the operands of a backbone's products, weights included; with `half` those of its sums too.

    With `half` values also keep to the range of FP16. A parameter is rounded once, however many images go through.
    """

    def __init__(self, seed: int, *, half: bool) -> None:
        super().__init__()
        self._random, self._half = np.random.default_rng(seed), half
        self._parameters: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products, with `half` of sums too, then call the function."""
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
        rounding = to_11_bits if not self._half else round_kernels if kernels else Tensor.half
        if not isinstance(values, nn.Parameter):
            return _on_a_grid(values, self._random, rounding)
        if id(values) not in self._parameters:
            self._parameters[id(values)] = _on_a_grid(values, self._random, rounding)
        return self._parameters[id(values)]


class RoundedHead(TorchFunctionMode):
    """A mode that rounds the operands of a head's products, and the tensors that an FP16 graph stores between them.

    Values keep the range of FP32: in a graph none of them can overflow.

    Args:
        seed: chooses the grids.
        fixed: its parameters, which are not rounded: a projection may be half a gigabyte, and their error is small.
        stored: round the operands of differences too, which an FP16 graph has stored in FP16.
        logits: round the logits less their mean, as an FP16 graph without wide logits does.
    """

    def __init__(self, seed: int, *, fixed: Collection[Tensor], stored: bool, logits: bool) -> None:
        super().__init__()
        self._random, self._fixed = np.random.default_rng(seed), frozenset(map(id, fixed))
        self._stored, self._logits = stored, logits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products, of differences and of softmax as asked for, then call the function."""
        name = getattr(function, "__name__", "")
        if name in PRODUCTS or (self._stored and name in ("sub", "__sub__")):
            args = tuple(self._rounded(each) for each in args)
        elif self._logits and name == "softmax":
            args = (self._rounded(args[0] - args[0].mean(-1, keepdim=True)), *args[1:])
        return function(*args, **(kwargs or {}))

    def _rounded(self, values: Any) -> Any:
        if not _is_rounded(values) or id(values) in self._fixed:
            return values
        return _on_a_grid(values, self._random, to_11_bits)


def _on_a_grid(values: Tensor, random: np.random.Generator, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return values rounded on a grid that a random factor shifts; at most 1, so that FP16 does not overflow early."""
    scale = float(random.uniform(0.5, 1))
    return rounding(values * scale).float() / scale


def to_11_bits(values: Tensor) -> Tensor:
    """Return FP32 values rounded to 11 significant bits, with the range of FP32.

    >>> to_11_bits(torch.tensor([1 + 2.0**-10, 1 + 2.0**-12]))
    tensor([1.0010, 1.0000])
    """
    large = values * VELTKAMP_FACTOR
    return large - (large - values)


def _is_rounded(values: Any) -> bool:
    return isinstance(values, Tensor) and values.dtype is torch.float32 and values.ndim > 0
