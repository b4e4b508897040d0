"""The FP32 fold of a head into the mean form, and the modules that are refused."""

import pytest
import torch

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.models.netvlad import NetVLAD
from tests.modules import make_module

pytestmark = pytest.mark.export


@pytest.mark.parametrize("shape", [(6, 16, 2, True), (6, 16, 0, True), (1, 8, 0, False), (1, 8, 5, True)])
def test_folded_module_equals_the_reference(shape: tuple[int, int, int, bool]) -> None:
    module = make_module(*shape)
    x = torch.randn(3, 11, shape[1], generator=torch.Generator().manual_seed(0))
    mask = torch.arange(11) < torch.tensor([11, 4, 0])[:, None]
    with torch.inference_mode():
        assert (fold(module)(x)[-1] - module(x)).abs().max() < 1e-6
        assert (fold(module)(x, mask)[-1] - module(x, mask)).abs().max() < 1e-6


def float64_fold(module: NetVLAD) -> FoldedNetVLAD:
    """Return the folded layer with nothing rounded to FP32, to test the algebra alone."""
    folded = fold(module.double())
    state = {name.removeprefix("batch_norm."): tensor for name, tensor in module.state_dict().items()}
    assert module.batch_norm is not None
    scale = state["weight"] / torch.sqrt(state["running_var"] + module.batch_norm.eps)
    folded.assignment_weight = state["clusters"] * scale
    folded.assignment_bias = state["bias"] - state["running_mean"] * scale
    folded.centroids = module.clusters2.detach()[0].T
    folded.norm_floor, folded.assignment_floor = (
        torch.tensor([value], dtype=torch.float64) for value in (1e-12, 1e-37)
    )
    return folded


@pytest.mark.parametrize("clusters", [1, 8])
@pytest.mark.parametrize("ghosts", [0, 5])
@pytest.mark.parametrize("alpha", [1, 600])
def test_mean_form_is_exact(clusters: int, ghosts: int, alpha: float) -> None:
    module = make_module(clusters, 24, ghosts).double()
    module.clusters.data *= alpha
    x = torch.randn(2, 9, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([9, 3])[:, None]
    with torch.inference_mode():
        difference = float64_fold(module)(x, mask)[-1] - module(x, mask)
    assert difference.abs().max() < 1e-11


def test_an_empty_cluster_gives_exactly_zero() -> None:
    module = make_module(6, 16, 0)
    assert module.batch_norm is not None
    module.batch_norm.bias.data[3] = -1e4
    with torch.inference_mode():
        descriptor = fold(module)(torch.randn(1, 9, 16))[-1].reshape(16, 6)
    assert descriptor[:, 3].abs().max() == 0
    assert descriptor[:, 0].abs().max() > 0


def test_the_fold_is_rounded_once() -> None:
    module = make_module(6, 16, 2)
    assert module.batch_norm is not None
    exact = float64_fold(make_module(6, 16, 2))
    folded = fold(module)
    assert torch.equal(folded.assignment_weight, exact.assignment_weight.float())
    assert folded.assignment_bias is not None
    assert exact.assignment_bias is not None
    assert torch.equal(folded.assignment_bias, exact.assignment_bias.float())


def test_training_mode_is_refused() -> None:
    with pytest.raises(FoldError, match=r"training mode.*call eval\(\)"):
        fold(make_module(6, 16).train())


def test_batch_norm_alone_in_training_mode_is_refused() -> None:
    module = make_module(6, 16)
    assert module.batch_norm is not None
    module.batch_norm.train()
    with pytest.raises(FoldError, match="batch_norm is in training mode"):
        fold(module)


@pytest.mark.parametrize(
    "name",
    [
        "clusters",
        "clusters2",
        "batch_norm.weight",
        "batch_norm.bias",
        "batch_norm.running_mean",
        "batch_norm.running_var",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    module = make_module(6, 16)
    module.state_dict()[name].view(-1)[1] = value
    with pytest.raises(FoldError, match=f"^{name} is not finite"):
        fold(module)


def test_a_negative_variance_is_refused_by_name() -> None:
    module = make_module(6, 16)
    module.state_dict()["batch_norm.running_var"][2] = -1e-6
    with pytest.raises(FoldError, match=r"batch_norm.running_var has a negative value"):
        fold(module)


def test_a_fold_that_overflows_fp32_is_refused() -> None:
    module = make_module(6, 16)
    assert module.batch_norm is not None
    module.batch_norm.eps = 0.0
    module.state_dict()["batch_norm.running_var"][2] = 1e-45
    module.state_dict()["batch_norm.weight"][2] = 1e30
    with pytest.raises(FoldError, match="folded assignment_weight is not finite"):
        fold(module)


@pytest.mark.parametrize(
    ("lacking", "message"), [("track_running_stats", "no running statistics"), ("affine", "no weight and bias")]
)
def test_batch_norm_without_its_vectors_is_refused(lacking: str, message: str) -> None:
    module = make_module(6, 16)
    module.batch_norm = torch.nn.BatchNorm1d(6, **{lacking: False}).eval()
    with pytest.raises(FoldError, match=message):
        fold(module)
