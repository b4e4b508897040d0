"""A backbone in FP16: weights rounded so that kernels keep their sums, and activations checked for overflow.

A feature map is smooth: the values under one 3 x 3 kernel are nearly equal, so an error in the sum of a kernel shifts
the whole map in one direction and does not average out. So the smallest weight of each kernel, which has the finest
steps, is corrected by the rounding error of all. That costs nothing at run time: a descriptor of EfficientNet-Lite0
differs from FP32 by 1-cos 8e-5, and by 2e-4 where each weight is rounded alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.fold_backbone import hooked, run
from netvlad_deploy.models.affine import is_finite

HALF_MAX = 65504.0
"""The largest FP16 number."""

WARNING_PEAK = HALF_MAX / 8
"""Activation of a golden image from which on a warning is due: another image may give eight times as much."""


def half_backbone(backbone: nn.Module) -> nn.Module:
    """Convert a folded backbone to FP16 in place, and return it.

    Raises: ExportError if a weight overflows FP16.
    """
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = round_kernels(part.weight.data)
    backbone = backbone.half()
    for name, tensor in backbone.state_dict().items():
        if not is_finite(tensor):
            raise ExportError(f"backbone.{name} is beyond {HALF_MAX:g}, where FP16 ends: export in fp32")
    return backbone


def round_kernels(weight: Tensor) -> Tensor:
    """Return weights (O,I,kh,kw) rounded to FP16 such that each kernel (kh,kw) keeps its sum."""
    taps = weight.flatten(2)
    rounded = taps.half()
    error = (taps - rounded).sum(-1, keepdim=True)
    smallest = taps.abs().argmin(-1, keepdim=True)
    corrected = (rounded.gather(-1, smallest) + error).half()
    return rounded.scatter(-1, smallest, corrected).reshape(weight.shape)


def activation_peaks(backbone: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the largest absolute activation of each module of a backbone for normalised images (B,3,H,W), by name."""
    names = {part: f"backbone.{name}".rstrip(".") for name, part in backbone.named_modules()}
    peaks: dict[str, float] = {}

    def keep(part: nn.Module, _: Tensor, result: Any) -> None:
        if isinstance(result, Tensor):
            low, high = (float(extreme) for extreme in result.aminmax())
            peaks[names[part]] = max(-low, high, peaks.get(names[part], 0.0))

    with hooked(backbone, (nn.Module,), keep):
        run(backbone, images)
    return peaks


def check_half(peaks: Mapping[str, float]) -> tuple[str, ...]:
    """Return a warning if an activation exceeds an eighth of the largest FP16 number.

    Raises: ExportError if one exceeds that number or is not finite.
    """
    name = max(peaks, key=lambda part: peaks[part] if math.isfinite(peaks[part]) else math.inf)
    if not peaks[name] <= HALF_MAX:
        raise ExportError(
            f"{name} gives {peaks[name]:g} for a golden image, FP16 ends at {HALF_MAX:g}: export with --precision fp32"
        )
    if peaks[name] <= WARNING_PEAK:
        return ()
    return (f"{name} gives up to {peaks[name]:.0f} for the golden images, FP16 ends at {HALF_MAX:g}",)
