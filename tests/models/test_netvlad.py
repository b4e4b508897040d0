"""The torch module equals a plain implementation of the layer, with masks, in training and in inference."""

import copy

import pytest
import torch

from netvlad_deploy.models import NetVLAD
from netvlad_deploy.models.netvlad import initialize
from netvlad_deploy.spec.layer import NetVLADSpec
from tests.modules import StraightNetVLAD, make_module

pytestmark = pytest.mark.export

SHAPES = [(6, 16, 2, True), (6, 16, 0, True), (1, 8, 0, False), (1, 8, 3, True), (8, 5, 1, False)]


def pair(clusters: int, width: int, ghosts: int, batch_norm: bool) -> tuple[NetVLAD, StraightNetVLAD]:
    module = make_module(clusters, width, ghosts, batch_norm)
    straight = StraightNetVLAD(clusters, width, ghosts, batch_norm).eval()
    straight.load_state_dict(module.state_dict(), strict=True)
    return module, straight


@pytest.mark.parametrize("shape", SHAPES)
def test_descriptor_equals_the_straight_layer_and_its_state_dict_loads_strictly(
    shape: tuple[int, int, int, bool],
) -> None:
    module, straight = pair(*shape)
    module.load_state_dict(straight.state_dict(), strict=True)
    x = torch.randn(3, 11, shape[1], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (module(x) - straight(x)).abs().max() < 1e-6


@pytest.mark.parametrize("shape", SHAPES)
def test_training_step_equals_the_straight_layer(shape: tuple[int, int, int, bool]) -> None:
    module, straight = pair(*shape)
    module, straight = module.double().train(), straight.double().train()
    x = torch.randn(3, 11, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.randn(3, shape[0] * shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for layer in (module, straight):
        (layer(x) * target).sum().backward()
    for (name, ours), theirs in zip(module.named_parameters(), straight.parameters(), strict=True):
        assert ours.grad is not None, name
        assert theirs.grad is not None, name
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)
    statistics = dict(straight.named_buffers())
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], msg=name)


def test_initial_scale_and_output_size() -> None:
    module = initialize(NetVLADSpec(num_clusters=64, feature_size=400, num_ghost_clusters=8), seed=0)
    assert module.out_dim == 64 * 400
    assert module.clusters.shape == (400, 72)
    assert module.clusters2.shape == (1, 400, 64)
    for parameter in (module.clusters, module.clusters2):
        assert abs(parameter.std().item() - 1 / 20) < 1e-3


def test_seed_decides_the_weights_and_leaves_torch_alone() -> None:
    spec = NetVLADSpec(num_clusters=2, feature_size=3)
    state = torch.random.get_rng_state()
    first, again, other = (initialize(spec, seed) for seed in (0, 0, 1))
    assert torch.equal(first.clusters, again.clusters)
    assert not torch.equal(first.clusters, other.clusters)
    assert torch.equal(state, torch.random.get_rng_state())


def test_index_is_d_times_k_plus_k(module: NetVLAD) -> None:
    x = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(0))
    moved = copy.deepcopy(module)  # the module is for all tests
    moved.clusters2.data[0, :, 4] += 1
    with torch.inference_mode():
        before, after = (each(x).reshape(16, 6) for each in (module, moved))
    cosines = torch.nn.functional.cosine_similarity(before, after, dim=0)
    assert cosines[4] < 0.9
    assert cosines[[0, 1, 2, 3, 5]].min() > 0.999999


def test_x_on_another_device_is_refused_by_name(module: NetVLAD) -> None:
    with pytest.raises(ValueError, match=r"x is on meta, the parameters are on cpu"):
        module(torch.zeros(1, 2, 16, device="meta"))


@pytest.mark.parametrize("shape", [(2, 16), (1, 2, 15)])
def test_x_of_another_shape_is_refused(module: NetVLAD, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\(batch, num_features, 16\\)"):
        module(torch.zeros(shape))


def test_non_contiguous_x(module: NetVLAD) -> None:
    x = torch.randn(2, 16, 7, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    assert not x.is_contiguous()
    with torch.inference_mode():
        assert torch.equal(module(x), module(x.contiguous()))


def padded(module: NetVLAD, lengths: list[int], fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(len(lengths), 12, module.feature_size, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    return x.masked_fill(~mask[..., None], fill), mask


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_padded_and_masked_equals_unpadded(module: NetVLAD, fill: float) -> None:
    lengths = [12, 1, 5]
    x, mask = padded(module, lengths, fill)
    with torch.inference_mode():
        together = module(x, mask)
        alone = torch.cat([module(x[item : item + 1, :length]) for item, length in enumerate(lengths)])
    assert (together - alone).abs().max() < 1e-6


def test_masked_training_step_ignores_padded_rows() -> None:
    module, unpadded = (make_module(6, 16, 2).train() for _ in range(2))
    x, mask = padded(module, [12, 12, 5], 1e4)
    module(x, mask)
    valid = x[mask]
    unpadded(valid[None])
    assert module.batch_norm is not None
    assert unpadded.batch_norm is not None
    torch.testing.assert_close(module.batch_norm.running_mean, unpadded.batch_norm.running_mean)
    torch.testing.assert_close(module.batch_norm.running_var, unpadded.batch_norm.running_var)


def test_a_fully_masked_item_gives_zeros(module: NetVLAD) -> None:
    x, mask = padded(module, [3, 0], 0.0)
    with torch.inference_mode():
        descriptors = module(x, mask)
    assert descriptors[1].abs().max() == 0
    assert abs(descriptors[0].norm() - 1) < 1e-6


@pytest.mark.parametrize("mask", [torch.ones(1, 3), torch.ones(1, 4, dtype=torch.bool)])
def test_a_mask_of_another_kind_is_refused(module: NetVLAD, mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="expected bool \\(1, 3\\)"):
        module(torch.zeros(1, 3, 16), mask)
