"""Folding the BatchNorms of a backbone, its rounding to FP16, and the backbones that are refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import ExportError, FoldError
from netvlad_deploy.export.fold_backbone import (
    ChannelAffine,
    activation_peaks,
    check_backbone,
    check_half,
    fold_backbone,
    half_backbone,
    round_kernels,
)
from tests.pipelines import NormAct, PaddedConv, Residual, tiny_backbone, trained

pytestmark = pytest.mark.export


def images(height: int = 33, width: int = 47) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(7))


def folded(backbone: nn.Module) -> nn.Module:
    """Return the folded backbone, after proving that it computes the same on images it was not folded with."""
    result = fold_backbone(backbone, images(32, 32))
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in result.modules())
    with torch.no_grad():
        expected = backbone.double()(images().double())
        error = (result.double()(images().double()) - expected).abs().max() / expected.abs().max()
    assert error < 1e-6
    return result


def affines(backbone: nn.Module) -> int:
    return sum(isinstance(part, ChannelAffine) for part in backbone.modules())


def test_convolutions_take_their_batch_norms_in() -> None:
    """One BatchNorm, which stands before a block, is not folded; the given backbone does not change."""
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert affines(fold_backbone(backbone, images())) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    folded(backbone)


def test_the_fold_is_that_of_the_formula() -> None:
    """W' = W gamma / sqrt(var + eps), b' = beta + (b - mean) gamma / sqrt(var + eps), in NumPy."""
    backbone = trained(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, eps=0.1)))
    values = {name: tensor.numpy().astype(np.float64) for name, tensor in backbone.state_dict().items()}
    scale = values["1.weight"] / np.sqrt(values["1.running_var"] + 0.1)
    result = fold_backbone(backbone, images()).state_dict()
    weight = values["0.weight"] * scale[:, None, None, None]
    assert np.allclose(result["0.weight"].numpy(), weight, rtol=1e-7, atol=0)
    bias = values["1.bias"] + (values["0.bias"] - values["1.running_mean"]) * scale
    assert np.allclose(result["0.bias"].numpy(), bias, rtol=1e-7, atol=0)


class Twice(nn.Module):
    """One convolution read by a BatchNorm and by the next operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        result: Tensor = self.norm(y) + y
        return result


class Shared(nn.Module):
    """One convolution, run twice with a BatchNorm each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.conv(self.first(self.conv(x))))
        return result


class Standardised(nn.Conv2d):
    """A convolution that takes the scale out of its weights again."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        return nn.functional.conv2d(x, weight, self.bias)


class OneNorm(nn.Module):
    """One BatchNorm after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.b(self.norm(self.a(x))))
        return result


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Twice, 1),
        (Shared, 2),
        (OneNorm, 1),
        (lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)), 1),
        (lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.BatchNorm2d(4)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4, affine=False)), 1),
        (lambda: nn.Sequential(PaddedConv(3, 4, 3), NormAct(4), Residual(4)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), 0),
    ],
)
def test_other_batch_norms_become_a_factor_and_a_constant(make: Callable[[], nn.Module], left: int) -> None:
    backbone = trained(make())
    assert affines(folded(backbone)) == left


class Squaring(nn.BatchNorm2d):
    """A BatchNorm that does something of its own afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_a_batch_norm_that_is_more_is_refused() -> None:
    with pytest.raises(ExportError, match=r"backbone\.1 is Squaring, more than a BatchNorm"):
        fold_backbone(trained(nn.Sequential(nn.Conv2d(3, 4, 3), Squaring(4))), images())


def test_another_change_of_the_backbone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count of reads that misses one would fold a convolution that something else reads, too."""
    monkeypatch.setattr("netvlad_deploy.export.fold_backbone._Watched.__torch_dispatch__", _blind)
    with pytest.raises(ExportError, match="computes something else"):
        fold_backbone(trained(Twice()), images())


def _blind(watched: Any, function: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
    if "batch_norm" in str(function):
        watched._reads.update([id(args[0])])
    return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda backbone: backbone.train(), "in training mode"),
        (lambda backbone: backbone[1].running_var.neg_(), "running_var has a negative value"),
        (lambda backbone: backbone[0].weight.data.fill_(torch.nan), r"backbone\.0\.weight is not finite"),
        (lambda backbone: backbone[1].register_buffer("running_var", None), "no running statistics"),
    ],
)
def test_an_unsound_backbone_is_refused(damage: Callable[[nn.Module], object], message: str) -> None:
    backbone = tiny_backbone()
    damage(backbone)
    with pytest.raises(FoldError, match=message):
        check_backbone(backbone)


def test_kernels_keep_their_sums_in_half_precision() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 3, 3, 3, generator=random) * torch.logspace(-2, 2, 16).reshape(-1, 1, 1, 1)
    rounded = round_kernels(weight).double()
    exact = weight.double()
    smallest = exact.abs().amin((2, 3))
    off = (rounded - exact).sum((2, 3)).abs()
    assert (off <= smallest * 2.0**-11 + 2.0**-25).all()
    assert (exact.half().double() - exact).sum((2, 3)).abs().max() > 10 * off.max()  # weights rounded alone
    assert ((rounded - exact).abs() <= 1.1 * 2.0**-10 * exact.abs().amax((2, 3), keepdim=True)).all()


def test_activations_near_the_end_of_half_precision_are_named() -> None:
    conv = nn.Conv2d(3, 1, 1, bias=False)
    conv.weight.data.fill_(1.0)
    backbone = nn.Sequential(conv, nn.Tanh())
    x = torch.zeros(1, 3, 2, 2)
    x[0, 0, 0, 0] = 1000
    peaks = activation_peaks(backbone, x)
    assert peaks == {"backbone": 1.0, "backbone.0": 1000.0, "backbone.1": 1.0}
    assert check_half(peaks) == ()
    assert check_half(activation_peaks(backbone, 20 * x)) == (
        "backbone.0 gives up to 20000 for the golden images, FP16 ends at 65504",
    )
    with pytest.raises(ExportError, match=r"backbone\.0 gives 70000 for a golden image, FP16 ends at 65504"):
        check_half(activation_peaks(backbone, 70 * x))
    with pytest.raises(ExportError, match="gives nan"):
        check_half({"backbone.0": float("nan"), "backbone.1": 1.0})


def test_a_weight_beyond_half_precision_is_refused() -> None:
    conv = nn.Conv2d(3, 4, 3)
    conv.weight.data.fill_(7e4)
    with pytest.raises(ExportError, match=r"backbone\.0\.weight is beyond 65504"):
        half_backbone(nn.Sequential(conv))
