"""A backbone in FP16: weights rounded so that kernels keep their sums, and activations that must not overflow.

A feature map is smooth: the values under one 3 x 3 kernel are nearly equal, so what rounding does to the sum of a
kernel does not average out over the image as the rounding of activations does. So the smallest weight of a kernel,
which has the finest steps, takes the error of all. It costs nothing at run time. EfficientNet-Lite0 comes out at 1-cos
8e-5 of FP32 where rounding each weight alone gives 2e-4.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.fold_backbone import hooked, run
from netvlad_deploy.models.affine import is_finite

LARGEST_HALF = 65504.0
NEAR_HALF = LARGEST_HALF / 8
"""An activation of a golden image above this is worth a warning: another image may give eight times as much."""


def half_backbone(backbone: nn.Module) -> nn.Module:
    """Turn a folded backbone into FP16, in place, and return it.

    Raises: ExportError if a weight is beyond FP16.
    """
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = round_kernels(part.weight.data)
    backbone = backbone.half()
    for name, tensor in backbone.state_dict().items():
        if not is_finite(tensor):
            raise ExportError(f"backbone.{name} is beyond {LARGEST_HALF:g}, where FP16 ends: export in fp32")
    return backbone


def round_kernels(weight: Tensor) -> Tensor:
    """Return weights (O,I,kh,kw) in FP16, the sum of each kernel (kh,kw) kept."""
    taps = weight.flatten(2)
    rounded = taps.half()
    error = (taps - rounded).sum(-1, keepdim=True)
    smallest = taps.abs().argmin(-1, keepdim=True)
    corrected = (rounded.gather(-1, smallest) + error).half()
    return rounded.scatter(-1, smallest, corrected).reshape(weight.shape)


def activation_peaks(backbone: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the largest absolute value that each part of a backbone gives for normalised images, by its name."""
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
    """Return a sentence if activations come near the end of FP16.

    Raises: ExportError if they are beyond it, or a value is not finite.
    """
    name = max(peaks, key=lambda part: peaks[part] if math.isfinite(peaks[part]) else math.inf)
    if not peaks[name] <= LARGEST_HALF:
        raise ExportError(
            f"{name} gives {peaks[name]:g} for a golden image, FP16 ends at {LARGEST_HALF:g}: export with "
            "--precision fp32"
        )
    if peaks[name] <= NEAR_HALF:
        return ()
    return (f"{name} gives up to {peaks[name]:.0f} for the golden images, FP16 ends at {LARGEST_HALF:g}",)
