"""Roundings of the same kind on grids that a seed has shifted: which values they round, and how far."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.export.make_goldens import RoundedBackbone, RoundedHead, to_11_bits
from netvlad_deploy.models.netvlad import NetVLAD
from tests.pipelines import WIDTH, tiny_backbone, tiny_pipeline

pytestmark = pytest.mark.export

UNIT = 2.0**-11
IMAGES = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))


def rounded(module: nn.Module, x: Tensor, seed: int, *, half: bool) -> Tensor:
    with torch.inference_mode(), RoundedBackbone(seed, half=half):
        result: Tensor = module(x)
    return result


def test_11_bits_are_those_of_fp16_within_its_range() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(to_11_bits(values), values.half().float())
    assert torch.equal(to_11_bits(values * 2.0**40), to_11_bits(values) * 2.0**40)


@pytest.mark.parametrize("half", [True, False])
def test_a_seed_is_one_rounding_and_another_seed_another(half: bool) -> None:
    backbone = tiny_backbone()
    with torch.inference_mode():
        exact = backbone(IMAGES)
    results = [rounded(backbone, IMAGES, seed, half=half) for seed in (0, 0, 1)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    errors = [float((result - exact).norm() / exact.norm()) for result in results]
    assert all(0.05 * UNIT < error < 10 * UNIT for error in errors), errors


def test_equal_values_are_rounded_equally() -> None:
    """Noise drawn value by value would average out over a flat map; a rounding does not."""
    conv = nn.Conv2d(4, 4, 1, bias=False)
    flat = torch.rand(1, 4, 1, 1, generator=torch.Generator().manual_seed(2)).expand(1, 4, 9, 9).contiguous()
    error = rounded(conv, flat, 0, half=True) - conv(flat).detach()
    assert float(error.abs().max()) > 0
    assert float((error - error[..., :1, :1]).abs().max()) < 1e-7


def test_fp16_ends_where_it_ends_and_tf32_does_not() -> None:
    conv = nn.Conv2d(1, 1, 1)
    for value, finite in ((60000.0, True), (2.0**18, False)):
        x = torch.full((1, 1, 2, 2), value)
        assert bool(rounded(conv, x, 0, half=True).isfinite().all()) is finite
        assert bool(rounded(conv, x, 0, half=False).isfinite().all())


class InPlace(nn.Module):
    """A module that adds in place."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        total.add_(x)
        total += x
        return total


def test_a_sum_in_place_still_happens() -> None:
    x = torch.rand(8, generator=torch.Generator().manual_seed(3))
    got = rounded(InPlace(), x, 0, half=True)
    assert float((got / (2 * x) - 1).abs().max()) < 2 * UNIT
    assert not torch.equal(got, 2 * x)
    assert torch.equal(rounded(InPlace(), x, 0, half=False), 2 * x)


def test_weights_are_rounded_once_and_stay_as_they_are() -> None:
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    mode = RoundedBackbone(0, half=True)
    with torch.inference_mode():
        for _ in range(2):
            with mode:
                backbone(IMAGES)
    assert len(mode._parameters) == sum(isinstance(part, nn.Conv2d) for part in backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(("stored", "logits"), [(False, False), (True, False), (True, True)])
def test_a_head_rounds_the_tensors_that_it_is_told_to(stored: bool, logits: bool) -> None:
    head = tiny_pipeline().head
    features = torch.from_numpy(np.random.default_rng(4).standard_normal((1, 30, WIDTH)).astype(np.float32))
    with torch.inference_mode():
        exact = head(features)
        with RoundedHead(0, fixed=tuple(head.parameters()), stored=stored, logits=logits):
            got = head(features)
    error = float((got - exact).norm())
    assert 0.05 * UNIT < error < 10 * UNIT


def test_a_constant_on_all_logits_is_not_rounded() -> None:
    """An FP16 graph takes the constant out of its weights. Rounded with 3000, the logits would lose all their bits."""
    head = tiny_pipeline().head
    features = torch.from_numpy(np.random.default_rng(4).standard_normal((1, 30, WIDTH)).astype(np.float32))
    assert isinstance(head, NetVLAD)
    assert head.assignment_bias is not None
    results = []
    for constant in (0.0, 3000.0):
        head.assignment_bias.data += constant
        with torch.inference_mode(), RoundedHead(0, fixed=tuple(head.parameters()), stored=True, logits=True):
            results.append(head(features))
    assert float((results[0] - results[1]).norm()) < 4 * UNIT
