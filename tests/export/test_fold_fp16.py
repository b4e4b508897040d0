"""The FP16 fold of a head: centred and scaled logits, no overflow, empty clusters, and equality with the module."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.export.audit import LARGEST_FEATURE
from netvlad_deploy.export.fold_head import FoldedNetVLAD, centre_logits, fold, scale_columns
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runtime.strict_runner import StrictRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from tests.modules import make_module

pytestmark = pytest.mark.export

HALF = GraphOptions(precision="fp16")
WIDE = GraphOptions(precision="fp16", wide_logits=True)
LONGEST = 4096
MOST_ROUNDED_UP = 2047
"""Of all lengths, 1 / 2047 is rounded up the most in FP16: so many equal weights sum to 1 + 2^-11."""


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distance(got: Tensor, expected: Tensor) -> float:
    """Return the largest 1-cos of two batches of descriptors."""
    return float((1 - functional.cosine_similarity(got.double(), expected.double())).max())


@pytest.mark.parametrize("options", [HALF, WIDE])
@pytest.mark.parametrize("shape", [(6, 16, 2, True), (6, 16, 0, True), (1, 8, 0, False), (1, 8, 5, True)])
def test_the_fp16_fold_equals_the_reference(shape: tuple[int, int, int, bool], options: GraphOptions) -> None:
    module = make_module(*shape)
    x = functional.normalize(gaussian(3, 64, shape[1]), dim=-1).half()
    mask = torch.arange(64) < torch.tensor([64, 20, 0])[:, None]
    folded, reference = fold(module, options), module.double()
    with torch.inference_mode():
        assert distance(folded(x)[-1], reference(x.double())) < 1e-6
        assert distance(folded(x, mask)[-1][:2], reference(x.double(), mask)[:2]) < 1e-6
        assert folded(x, mask)[-1][2].count_nonzero() == 0


@pytest.mark.parametrize("columns", [2, 7, 64])
def test_centring_changes_no_softmax(columns: int) -> None:
    weight, bias, x = 50 * gaussian(16, columns) + 200, 10 * gaussian(columns) - 30, gaussian(40, 16)
    centred, centred_bias = centre_logits(weight, bias)
    assert centred_bias is not None
    assert ((x @ centred + centred_bias).softmax(1) - (x @ weight + bias).softmax(1)).abs().max() < 1e-12
    assert centred.mean(1).abs().max() < 1e-12
    assert abs(centred_bias.mean()) < 1e-12
    assert centred.norm() < weight.norm() / 2


def test_centring_needs_no_bias() -> None:
    assert centre_logits(gaussian(4, 3), None)[1] is None


def test_a_single_column_is_not_centred() -> None:
    weight, bias = gaussian(4, 1), gaussian(1)
    centred, centred_bias = centre_logits(weight, bias)
    assert torch.equal(centred, weight)
    assert centred_bias is not None
    assert torch.equal(centred_bias, bias)


STEP = 2.0**-11
"""Distance of FP16 numbers between 0.5 and 1."""

ROUNDS_ABOVE_1 = torch.tensor([0.5 + 0.6 * STEP, 0.5 - 0.6 * STEP], dtype=torch.float64)[:, None]
"""A column of L1 norm 1, whose FP16 values 0.5 + 2^-11 and 0.5 - 2^-12 have the L1 norm 1 + 2^-12."""


def columns_of_all_sizes() -> Tensor:
    sizes = torch.tensor([1e-30, 3e-8, 1.0, 16.0, 296.0, 65504.0, 7e30], dtype=torch.float64)
    zero, power = torch.zeros(32, 1, dtype=torch.float64), torch.zeros(32, 1, dtype=torch.float64)
    power[5] = -0.25
    return torch.cat((gaussian(32, 7) * sizes, zero, power), dim=1)


@pytest.mark.parametrize("weight", [columns_of_all_sizes(), ROUNDS_ABOVE_1, ROUNDS_ABOVE_1 * 2.0**40])
def test_columns_are_scaled_by_powers_of_two_to_an_l1_norm_of_at_most_1(weight: Tensor) -> None:
    rounded, scale = scale_columns(weight)
    assert rounded.dtype == torch.float16
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
    norm = rounded.double().abs().sum(0)
    zero = weight.abs().sum(0) == 0
    assert (norm <= 1).all()
    assert (norm[~zero] > 0.5 - STEP).all()
    assert (scale[zero] == 1).all()
    assert (rounded[:, zero] == 0).all()


def test_a_column_that_rounds_above_1_is_halved_once_more() -> None:
    assert ROUNDS_ABOVE_1.sum() == 1
    assert ROUNDS_ABOVE_1.half().double().sum() == 1 + 2**-12
    assert scale_columns(ROUNDS_ABOVE_1)[1].item() == 2
    assert scale_columns(torch.full_like(ROUNDS_ABOVE_1, 0.5))[1].item() == 1


def test_a_scaled_column_is_the_weight_to_fp16_rounding() -> None:
    weight = torch.cat((columns_of_all_sizes(), gaussian(32, 4).exp() ** 8), dim=1)
    rounded, scale = scale_columns(weight)
    error = (rounded.double() * scale - weight).abs()
    normal = weight.abs() / scale >= 2.0**-14
    assert (error <= weight.abs() * 2.0**-11)[normal].all()
    assert (error <= scale * 2.0**-25)[~normal].all()
    assert normal.any()
    assert (~normal & (weight != 0)).any()


def sign_features(weight: Tensor) -> Tensor:
    """Return features (2 columns, 1, D) of the largest size, each with the signs of a column or their opposite."""
    signs = weight.detach().sign().T
    return LARGEST_FEATURE * torch.cat((signs, -signs))[:, None]


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, module: NetVLAD) -> OnnxArtifact:
    return export_onnx(
        module, tmp_path_factory.mktemp("half") / "m.onnx", GraphOptions(precision="fp16", probe=True, masked=True)
    )


@pytest.mark.ort
@pytest.mark.parametrize("rows", [1, 3, MOST_ROUNDED_UP, LONGEST])
def test_the_largest_features_overflow_nowhere(half: OnnxArtifact, module: NetVLAD, rows: int) -> None:
    folded = fold(module, HALF)
    for weight in (folded.assignment_weight, module.clusters):
        x = sign_features(weight).half().numpy().repeat(rows, axis=1)
        with StrictRunner(half).tapped() as runner:
            stages = runner.run({FEATURES: x, "mask": np.ones(x.shape[:2], np.bool_)})
        assert len(stages) == 5
        for name, values in stages.items():
            assert np.isfinite(values).all(), name
        assert np.linalg.norm(stages[DESCRIPTOR], axis=1).max() == pytest.approx(1, abs=1e-3)


def test_the_plain_layer_in_fp16_overflows(module: NetVLAD) -> None:
    x = sign_features(module.clusters).half()
    assert (x @ module.clusters.half()).isinf().any()
    with torch.inference_mode():
        assert not copy.deepcopy(module).half()(x).isfinite().all()


def test_the_largest_feature_leaves_no_room_to_spare() -> None:
    module = make_module(1, 8, 0, False)
    means = [fold(module, HALF)(torch.full((1, MOST_ROUNDED_UP, 8), size))[2] for size in (LARGEST_FEATURE, 65504.0)]
    assert means[0].isfinite().all()
    assert means[1].isinf().all()


@pytest.mark.parametrize("rows", [3, 11, MOST_ROUNDED_UP])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rounded_weights_sum_corrects_the_centre(rows: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(1, 64, 0, False, seed=seed)
    centre = 0.9 * functional.normalize(module.clusters2[0, :, 0].detach().double(), dim=0)
    module.clusters2.data[0, :, 0] = centre
    x = (centre + 0.0125 * gaussian(16, 1, 64, seed=seed) + 0.0025 * gaussian(16, rows, 64, seed=seed + 10)).half()
    exact = x.double().mean(1) - module.clusters2.detach()[0].T
    folded = fold(module, HALF)

    def error() -> float:
        with torch.inference_mode():
            return float((folded(x)[2][:, 0] - exact).norm(dim=1).mean())

    corrected = error()
    monkeypatch.setattr(FoldedNetVLAD, "_centre", lambda folded, _: folded.centroids)
    assert error() > 1.3 * corrected


@pytest.mark.parametrize("options", [HALF, WIDE])
def test_an_empty_cluster_gives_exactly_zero_in_fp16(options: GraphOptions) -> None:
    module = make_module(6, 16, 0)
    assert module.batch_norm is not None
    module.batch_norm.bias.data[3] = -1e4
    with torch.inference_mode():
        descriptor = fold(module, options)(gaussian(1, 9, 16).half())[-1].reshape(16, 6)
    assert descriptor[:, 3].count_nonzero() == 0
    assert descriptor[:, [0, 1, 2, 4, 5]].norm() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("margin", [20, 30, 40, 60])
def test_a_nearly_empty_cluster_is_clamped_as_in_the_reference(margin: float) -> None:
    module = make_module(6, 16, 0)
    assert module.batch_norm is not None
    module.batch_norm.bias.data[3] = -margin
    x = functional.normalize(gaussian(1, 64, 16), dim=-1).half()
    with torch.inference_mode():
        got, expected = fold(module, HALF)(x)[-1].double(), module.double()(x.double())
    parts = [descriptor.reshape(16, 6)[:, 3] for descriptor in (got, expected)]
    assert parts[0].norm() == pytest.approx(float(parts[1].norm()), rel=0.02)
    assert distance(got, expected) < 1e-6


@pytest.mark.ort
@pytest.mark.parametrize("size", [1.0, LARGEST_FEATURE])
def test_a_fully_masked_image_gives_exactly_zero_in_fp16(half: OnnxArtifact, size: float) -> None:
    x = (size * gaussian(2, 9, 16).sign()).half().numpy()
    with StrictRunner(half) as runner:
        descriptor = runner.run({FEATURES: x, "mask": np.array([[True] * 9, [False] * 9])})[DESCRIPTOR]
    assert np.linalg.norm(descriptor[0]) == pytest.approx(1, abs=1e-5)
    assert not descriptor[1].any()


def folded_weight(module: NetVLAD) -> Tensor:
    assert module.batch_norm is not None
    assert module.batch_norm.running_var is not None
    scale = module.batch_norm.weight.double() / (module.batch_norm.running_var.double() + module.batch_norm.eps).sqrt()
    return (module.clusters.double() * scale).detach()


def test_the_fp32_fold_is_neither_centred_nor_scaled(module: NetVLAD) -> None:
    folded = fold(module)
    assert folded.assignment_scale is None
    assert set(dict(folded.named_buffers())) == {
        "assignment_weight",
        "assignment_bias",
        "centroids",
        "norm_floor",
        "assignment_floor",
    }
    assert torch.equal(folded.assignment_weight, folded_weight(module).float())


def test_the_fp16_fold_is_centred_then_scaled_and_rounded_once(module: NetVLAD) -> None:
    weight = folded_weight(module)
    centred = weight - weight.mean(1, keepdim=True)
    half, wide = fold(module, HALF), fold(module, WIDE)
    assert half.assignment_scale is not None
    assert half.assignment_weight.dtype == torch.float16
    assert torch.equal(half.assignment_weight, (centred / half.assignment_scale.double()).half())
    assert wide.assignment_scale is None
    assert torch.equal(wide.assignment_weight, centred.float())
    for folded in (half, wide):
        assert folded.assignment_bias is not None
        assert abs(folded.assignment_bias.mean()) < 1e-6
        others = [tensor for name, tensor in folded.named_buffers() if name != "assignment_weight"]
        assert {tensor.dtype for tensor in others} == {torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wide_logits": True}, "belong to --precision fp16"),
        ({"input_dtype": "float16"}, "belong to --precision fp16"),
        ({"output_dtype": "float16"}, "belong to --precision fp16"),
        ({"precision": "int8"}, "precision 'int8' is unknown: choose fp32 or fp16"),
        ({"precision": "fp16", "input_dtype": "bfloat16"}, "input_dtype 'bfloat16' is unknown: choose float32 or"),
        ({"precision": "fp16", "output_dtype": "fp16"}, "output_dtype 'fp16' is unknown"),
        ({"feature_norm": 0}, "feature_norm is 0, expected a positive number"),
        ({"precision": "fp16", "feature_norm": -1.0}, "feature_norm is -1.0"),
        ({"feature_norm": math.inf}, "feature_norm is inf"),
        ({"feature_norm": math.nan}, "feature_norm is nan"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GraphOptions(**arguments)


def test_options_name_precision_inputs_and_outputs() -> None:
    assert [options.precision_name for options in (GraphOptions(), HALF, WIDE)] == ["fp32", "fp16", "fp16-wide-logits"]
    assert HALF.dtypes == {FEATURES: "float16", DESCRIPTOR: "float32"}
    asked = GraphOptions(precision="fp16", masked=True, probe=True, input_dtype="float32", output_dtype="float16")
    assert asked.dtypes == {
        FEATURES: "float32",
        "mask": "bool",
        DESCRIPTOR: "float16",
        "soft_assignment": "float32",
        "residual_sum": "float32",
    }
