"""Fold the BatchNorms of a backbone away.

    s = gamma / sqrt(var + eps)                       BatchNorm in eval mode is affine, channel by channel:
    W' = W * s,  b' = beta + (b - mean) * s           x * W' + b' = BatchNorm(x * W + b)

Which convolution feeds which BatchNorm is seen by running the backbone once, so that it does not matter how its code is
written. A pair is folded if the BatchNorm alone reads what the convolution gives, each of them runs once, and the
folded convolution gives what the BatchNorm gave; a BatchNorm without such a convolution becomes `x * s + t`. All is
computed in float64 and rounded once. A run of the whole backbone then proves that nothing else has changed.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from netvlad_deploy.errors import ExportError, FoldError
from netvlad_deploy.export.float64_convolutions import Float64Convolutions
from netvlad_deploy.models.affine import is_finite

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
EXACT = 1e-9
"""Largest error of a fold in float64, over the largest value: rounding alone leaves about 1e-13."""


class ChannelAffine(nn.Module):
    """Multiply every channel of (B,C,H,W) by a factor and add a constant: a BatchNorm that no convolution takes in."""

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
    """Return a copy of the backbone in FP32 without any BatchNorm.

    Args: example: normalised images (B,3,H,W) that the backbone takes.

    Raises: FoldError if a part is in training mode, its state is damaged or the fold overflows FP32; ExportError if a
        BatchNorm is of a kind that cannot be replaced, or the backbone computes something else without it.
    """
    check_backbone(backbone)
    folded = copy.deepcopy(backbone).double().requires_grad_(False)
    if any(isinstance(part, BATCH_NORMS) for part in folded.modules()):
        with Float64Convolutions(strips=False):
            _fold_all(folded, example.double())
    folded = folded.float()
    for name, tensor in folded.state_dict().items():
        if not is_finite(tensor):
            raise FoldError(f"folded backbone.{name} is not finite: a running_var is too small for FP32")
    return folded


def check_backbone(backbone: nn.Module) -> None:
    """Raise FoldError unless the backbone is in eval mode and its state is sound."""
    for name, part in backbone.named_modules():
        if part.training:
            raise FoldError(f"backbone.{name} is in training mode, with batch statistics: call eval() first")
        if isinstance(part, BATCH_NORMS) and (part.running_mean is None or part.running_var is None):
            raise FoldError(f"backbone.{name} has no running statistics: train with track_running_stats=True")
    for name, tensor in backbone.state_dict().items():
        if not is_finite(tensor):
            raise FoldError(f"backbone.{name} is not finite: the checkpoint is damaged or training diverged")
        if name.endswith("running_var") and (tensor < 0).any():
            raise FoldError(f"backbone.{name} has a negative value: the checkpoint is damaged")


def _fold_all(backbone: nn.Module, example: Tensor) -> None:
    """Replace every BatchNorm of a float64 backbone, in place."""
    seen = _Watched(backbone, example)
    replaced: dict[nn.Module, nn.Module] = {}
    for name, norm in backbone.named_modules():
        if not isinstance(norm, BATCH_NORMS):
            continue
        scale, shift = _affine(norm)
        affine: list[nn.Module] = [] if _fold_into(seen.feeder(norm), norm, seen) else [ChannelAffine(scale, shift)]
        # A subclass may go on with what it holds, as BatchNorm and activation in one module do.
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
    """Take a BatchNorm into the convolution before it, if that gives the same; return whether it does."""
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
    conv.weight, conv.bias = weight, bias  # such as a convolution that standardises its own weights
    return False


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One run of a backbone: what each convolution and BatchNorm was given and gave, and how often that was read."""

    def __init__(self, backbone: nn.Module, example: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.runs: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._reads: Counter[int] = Counter()
        self._makers: dict[int, nn.Module] = {}
        self._given: dict[nn.Module, Tensor] = {}  # keeps them alive: an id is a name only as long
        self._counting = True
        with hooked(backbone, (nn.Conv2d, *BATCH_NORMS), self._keep), self:
            self.result = run(backbone, example)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what every operator reads."""
        if self._counting:
            self._reads.update({id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)})
        return function(*args, **(kwargs or {}))

    def feeder(self, norm: nn.Module) -> nn.Module | None:
        """Return the convolution whose output is read by this BatchNorm and nothing else, each of them run once."""
        given = self._given.get(norm)
        conv = self._makers.get(id(given))
        once = conv is not None and len(self.runs[conv]) == len(self.runs[norm]) == self._reads[id(given)] == 1
        return conv if once else None

    def _keep(self, part: nn.Module, given: Tensor, result: Tensor) -> None:
        self._counting = False
        self.runs.setdefault(part, []).append((given.clone(), result.clone()))  # what follows may write in place
        self._counting = True
        if isinstance(part, nn.Conv2d):
            self._makers[id(result)] = part
            self._given[part] = result
            self._reads[id(result)] = 0  # reads of a tensor that had this id before
        else:
            self._given[part] = given


@contextlib.contextmanager
def hooked(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], keep: Callable[[nn.Module, Tensor, Any], None]
) -> Iterator[None]:
    """Tell `keep` of every run of the parts of these kinds: the part, its first input and its output."""

    def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        keep(part, next(iter((*args, *kwargs.values()))), result)

    with contextlib.ExitStack() as undo:
        for part in module.modules():
            if isinstance(part, kinds):
                undo.callback(part.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a module gives, without gradients."""
    with torch.no_grad():
        result: Tensor = module(x)
    return result


def _equal(got: Tensor, expected: Tensor) -> bool:
    """Return whether two results of a float64 module differ by no more than rounding."""
    return got.shape == expected.shape and bool((got - expected).abs().max() <= EXACT * (1 + expected.abs().max()))
