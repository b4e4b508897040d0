"""Fold the BatchNorms of a backbone into its convolutions, and round it to FP16.

    s = gamma / sqrt(var + eps)                       BatchNorm in eval mode is affine, channel by channel:
    W' = W * s,  b' = beta + (b - mean) * s           x * W' + b' = BatchNorm(x * W + b)

The backbone is run once to see which convolution feeds which BatchNorm, so that it does not matter how its code is
written. A pair is folded if only the BatchNorm reads the convolution's output, each of them runs once, and the folded
convolution gives the BatchNorm's output; a BatchNorm without such a convolution becomes `x * s + t`. All is computed in
float64 and rounded once. A run of the whole backbone then proves that nothing else has changed.

In FP16 each kernel keeps its sum: a feature map is smooth, so an error in the sum shifts the whole map in one direction
and does not average out. The smallest weight, which has the finest steps, is corrected by the rounding error of all.
"""

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netvlad_deploy.errors import ExportError, FoldError
from netvlad_deploy.export.float64_products import Float64Products
from netvlad_deploy.export.fold_head import check_foldable
from netvlad_deploy.export.half_products import HALF_MODULES, half_products, has_norms
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.pipeline import feature_map_of

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
FOLD_TOLERANCE = 1e-9
"""Largest error of a fold in float64, relative to the largest value: rounding alone leaves about 1e-13."""

HALF_MAX = 65504.0
"""The largest FP16 number."""

WARNING_PEAK = HALF_MAX / 8
"""Activation of a golden image from which on a warning is due: another image may give eight times as much."""


class ChannelAffine(nn.Module):
    """A BatchNorm without a convolution to fold into: each channel of (B,C,H,W) times a factor plus a constant."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("shift", shift.reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return x * scale + shift."""
        return x * self.scale + self.shift


def fold_backbone(backbone: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a backbone that passes `check_backbone` in FP32, without any BatchNorm.

    Args: example: normalised images (B,3,H,W), with which the fold is tried.

    Raises: FoldError if the fold overflows FP32; ExportError if a BatchNorm is of a kind that cannot be replaced, or
        the folded backbone gives another feature map.
    """
    if not any(isinstance(part, BATCH_NORMS) for part in backbone.modules()):
        folded = copied(backbone, torch.float32)
    else:
        folded = copied(backbone, torch.float64)
        with Float64Products(strips=False):
            _fold_all(folded, example.double())
        folded = folded.float()
    for name, tensor in folded.state_dict().items():
        if not is_finite(tensor):
            raise FoldError(f"folded backbone.{name} is not finite: a running_var is too small for FP32")
    return folded


def copied(module: nn.Module, dtype: torch.dtype, *, share: Collection[type[nn.Module]] = ()) -> nn.Module:
    """Return a copy whose tensors have this dtype, without gradients; those that have it already share their memory.

    The weights of modules of the types in `share` keep their dtype, and share their memory too.
    """

    def converted(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype) if tensor.is_floating_point() else tensor

    memo: dict[int, Any] = {id(buffer): converted(buffer) for buffer in module.buffers()}
    memo |= {id(each): nn.Parameter(converted(each), requires_grad=False) for each in module.parameters()}
    for part in module.modules():
        if type(part) in share:
            memo[id(part.weight)] = nn.Parameter(cast("Tensor", part.weight).detach(), requires_grad=False)
    return copy.deepcopy(module, memo)


def check_backbone(backbone: nn.Module) -> None:
    """Check that a backbone can be folded.

    Raises: FoldError as `check_foldable`, or if a BatchNorm has no running statistics.
    """
    check_foldable(backbone, "backbone.")
    for name, part in backbone.named_modules():
        if isinstance(part, BATCH_NORMS) and (part.running_mean is None or part.running_var is None):
            raise FoldError(f"backbone.{name} has no running statistics: train with track_running_stats=True")


def _fold_all(backbone: nn.Module, example: Tensor) -> None:
    """Replace every BatchNorm of a float64 backbone, in place."""
    seen = _Watched(backbone, example)
    replaced: dict[nn.Module, nn.Module] = {}
    for name, norm in backbone.named_modules():
        if not isinstance(norm, BATCH_NORMS):
            continue
        scale, shift = _affine(norm)
        affine: list[nn.Module] = [] if _fold_into(seen.feeder(norm), norm, seen) else [ChannelAffine(scale, shift)]
        # A subclass may hold an activation, which it runs after the normalisation: that stays.
        replaced[norm] = nn.Sequential(*affine, *norm.children()).eval()
        for given, expected in seen.runs.get(norm, ()):
            plain = nn.Sequential(ChannelAffine(scale, shift), *norm.children())
            if not _equal(plain(given), expected):
                raise ExportError(f"backbone.{name} is {type(norm).__name__}, more than a BatchNorm: use a plain one")
    for name, norm in list(backbone.named_modules(remove_duplicate=False)):
        if norm in replaced:
            backbone.set_submodule(name, replaced[norm])
    if not _equal(run(backbone, example), seen.result):
        raise ExportError("the backbone computes something else once its BatchNorms are folded: report its code")


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a BatchNorm in eval mode."""
    scale = 1 / (norm.running_var + norm.eps).sqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _fold_into(conv: nn.Module | None, norm: nn.Module, seen: "_Watched") -> bool:
    """Fold a BatchNorm into `conv`; return False, and leave `conv` as it is, if that is no plain convolution."""
    if not isinstance(conv, nn.Conv2d):
        return False
    weight, bias = conv.weight, conv.bias
    scale, shift = _affine(norm)
    conv.weight = nn.Parameter(weight * scale.reshape(-1, 1, 1, 1), requires_grad=False)
    conv.bias = nn.Parameter(shift if bias is None else shift + bias * scale, requires_grad=False)
    ((given, before),) = seen.runs[conv]
    expected = before * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
    if _equal(run(conv, given), expected):
        return True
    conv.weight, conv.bias = weight, bias  # a subclass may change its weights itself, for example standardise them
    return False


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One run of a backbone, with the input and output of every convolution and BatchNorm, and the readers of each."""

    def __init__(self, backbone: nn.Module, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._reads: Counter[int] = Counter()
        self._makers: dict[int, nn.Module] = {}
        self._given: dict[nn.Module, Tensor] = {}  # keeps tensors alive, so that their ids stay theirs
        self._counting = True
        with hooked(backbone, (nn.Conv2d, *BATCH_NORMS), self._keep), self:
            self.result = run(backbone, example)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the tensors that every operator reads, then run it."""
        if self._counting:
            self._reads.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return function(*args, **(kwargs or {}))

    def feeder(self, norm: nn.Module) -> nn.Module | None:
        """Return the convolution whose output only this BatchNorm reads; None without one, or if either ran twice."""
        given = self._given.get(norm)
        conv = self._makers.get(id(given))
        once = conv is not None and len(self.runs[conv]) == len(self.runs[norm]) == self._reads[id(given)] == 1
        return conv if once else None

    def _keep(self, part: nn.Module, given: Tensor, result: Tensor) -> None:
        self._counting = False
        self.runs.setdefault(part, []).append((given.clone(), result.clone()))  # later operators may write in place
        self._counting = True
        if isinstance(part, nn.Conv2d):
            self._makers[id(result)] = part
            self._given[part] = result
            self._reads[id(result)] = 0  # forgets the reads of an earlier tensor with this id
        else:
            self._given[part] = given


@contextlib.contextmanager
def hooked(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], keep: Callable[[nn.Module, Tensor, Any], None]
) -> Iterator[None]:
    """Call `keep` after each run of a submodule of these kinds, with the submodule, its first input and its output."""

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        keep(part, next(iter((*args, *kwargs.values()))), result)

    with contextlib.ExitStack() as undo:
        for part in module.modules():
            if isinstance(part, kinds):
                undo.callback(part.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a module for x, the first of several, computed without gradients."""
    with torch.no_grad():
        return feature_map_of(module(x))


def _equal(got: Tensor, expected: Tensor) -> bool:
    """Return True if two float64 tensors have one shape and differ by no more than FOLD_TOLERANCE."""
    allowed = FOLD_TOLERANCE * (1 + expected.abs().max())
    return got.shape == expected.shape and bool((got - expected).abs().max() <= allowed)


def half_backbone(backbone: nn.Module) -> nn.Module:
    """Convert a folded backbone to FP16 in place, and return it; one with LayerNorms in its products alone.

    Raises: ExportError if a weight overflows FP16.
    """
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = round_kernels(part.weight.data)
    backbone = half_products(backbone) if has_norms(backbone) else backbone.half()
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
    """Return the largest absolute activation of each module of a backbone for normalised images (B,3,H,W), by name.

    Of a backbone with LayerNorms, what goes into its products and comes out of them: the rest is not in FP16.
    """
    names = {part: f"backbone.{name}".rstrip(".") for name, part in backbone.named_modules()}
    peaks: dict[str, float] = {}
    norms = has_norms(backbone)

    def keep(part: nn.Module, given: Tensor, result: Any) -> None:
        for values in (given, result) if norms else (result,):
            if isinstance(values, Tensor):
                low, high = (float(extreme) for extreme in values.aminmax())
                peaks[names[part]] = max(-low, high, peaks.get(names[part], 0.0))

    with hooked(backbone, HALF_MODULES if norms else (nn.Module,), keep):
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
