"""The audit of folded weights: feature range, logit step, lost bits, dead clusters, overflow, and its warnings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.audit import LARGEST_FEATURE, SMALLEST_NORM, audit
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import COARSE_STEP, FeatureRange, GraphOptions
from netvlad_deploy.spec.layer import BIAS, NetVLADSpec, Projection
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.tensorrt.engine import build_engine
from tests.modules import make_module, make_projected

pytestmark = pytest.mark.export

PROFILE = Profile(batch=AxisRange(min=1, opt=2, max=4), num_features=AxisRange(min=1, opt=10, max=20))
PAIR = torch.tensor([[1, -1], [-1, 1], [1, -1], [1, -1]], dtype=torch.float64)
"""Two columns of norm 2 whose mean is 0, exact in FP16."""


def folded(weight: Tensor, bias: list[float] | None = None, ghosts: int = 0, **options: Any) -> FoldedNetVLAD:
    width, columns = weight.shape
    spec = NetVLADSpec(num_clusters=columns - ghosts, feature_size=width, num_ghost_clusters=ghosts)
    biases = None if bias is None else torch.tensor(bias, dtype=torch.float64)
    options = {"precision": "fp16", **options}
    return FoldedNetVLAD(weight, biases, torch.zeros(columns - ghosts, width), spec, GraphOptions(**options))


def range_of(weight: Tensor, **options: Any) -> FeatureRange:
    return audit(folded(weight, **options))[0]


def findings(weight: Tensor, bias: list[float] | None = None, ghosts: int = 0, **options: Any) -> tuple[str, ...]:
    return audit(folded(weight, bias, ghosts, **options))[1]


@pytest.mark.parametrize(
    ("norm", "exponent"),
    [(0.2, -2), (0.25, -1), (1, 1), (1.9, 1), (2, 2), (30, 5), (100, 7), (256, 9), (511, 9), (512, 10), (1e4, 14)],
)
def test_the_logit_step_is_that_of_the_largest_logit(norm: float, exponent: int) -> None:
    found, wide, single = (
        range_of(PAIR, feature_norm=norm, **options) for options in ({}, {"wide_logits": True}, {"precision": "fp32"})
    )
    assert found.logit_slope == 2
    assert found.logit_step == 2.0 ** (exponent - 10) == np.spacing(np.float16(2 * norm))
    assert wide.logit_step == single.logit_step == 2.0 ** (exponent - 23) == np.spacing(np.float32(2 * norm))
    assert (found.largest, wide.largest, single.largest) == (LARGEST_FEATURE, LARGEST_FEATURE, 2.0**61)
    assert found.norm == norm


def test_fp16_logits_are_a_step_apart() -> None:
    layer = folded(PAIR)
    direction = torch.tensor([0.5, -0.5, 0.5, 0.5]) + 0.05 * torch.randn(
        500, 4, generator=torch.Generator().manual_seed(0)
    )
    logits = layer((100 * direction)[None])[0].abs()
    step = audit(layer)[0].step_at(100)
    top = logits[logits > 128]
    assert len(top) > 100
    assert (top % step == 0).all()
    assert (top % (2 * step) > 0).any()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_the_step_at_another_norm_is_that_of_an_export_at_it(precision: str) -> None:
    weight = 1.5 * PAIR
    known = range_of(weight, precision=precision)
    for norm in (1e-4, 0.3, 1, 1.4, 7, 22, 450, 1e5):
        assert known.step_at(norm) == range_of(weight, precision=precision, feature_norm=norm).logit_step
    assert known.step_at(0) == 0


def test_zero_weights_have_no_step() -> None:
    found = range_of(torch.zeros(4, 2, dtype=torch.float64))
    assert (found.logit_slope, found.logit_step, found.step_at(100)) == (0, 0, 0)


def test_the_step_is_judged_on_the_weights_in_the_graph() -> None:
    shared = PAIR + 50
    assert range_of(shared).logit_slope == 2
    assert range_of(shared, precision="fp32").logit_slope == pytest.approx(float(shared.norm(dim=0).max()))


def test_the_largest_column_decides() -> None:
    found = range_of(torch.tensor([[1.0, -1, 0, 0, 0, 0], [0, 0, 3, -3, 6, -6]], dtype=torch.float64), ghosts=2)
    assert found.logit_slope == 6


def test_a_coarse_step_is_a_finding() -> None:
    assert COARSE_STEP == 0.5
    assert findings(PAIR, feature_norm=511) == ()
    assert findings(PAIR, feature_norm=256) == ()
    [finding] = findings(PAIR, feature_norm=512)
    assert finding == (
        "FP16 logits are 1 apart at features of norm 512: L2-normalise them, or export with --wide-logits"
    )
    assert findings(PAIR, precision="fp32", feature_norm=1e6) == ()


def wide_pair() -> Tensor:
    weight = torch.zeros(512, 2, dtype=torch.float64)
    weight[:4] = PAIR
    return weight


def test_wide_logits_cost_memory_instead_of_accuracy() -> None:
    [finding] = findings(wide_pair(), feature_norm=1e4, wide_logits=True)
    assert finding == "FP32 logits need the features in FP32: 2048 bytes each, 512 MiB for 64 images of the largest"
    (finding,) = audit(folded(wide_pair(), feature_norm=1e4, wide_logits=True), alone=False)[1]
    assert finding == "FP32 logits need the features in FP32: 2048 bytes each"


def test_float32_features_cost_a_copy() -> None:
    [finding] = findings(wide_pair(), input_dtype="float32")
    assert finding == "FP32 features are copied to FP16: 1024 bytes each, 256 MiB for 64 images of the largest"
    assert findings(wide_pair(), input_dtype="float16") == ()
    assert findings(wide_pair(), precision="fp32", input_dtype="float32") == ()
    [finding] = findings(wide_pair(), input_dtype="float32", wide_logits=True)
    assert finding.startswith("FP32 features are copied to FP16")


def test_every_finding_is_kept() -> None:
    found = findings(wide_pair(), [0, -2e6], feature_norm=1e4, input_dtype="float32")
    assert [text.split()[0] for text in found] == ["FP16", "FP32", "features"]


LOST = "weights of cluster 0 are so small in FP16 that they lose bits: export with --wide-logits"
DEAD = "features of norm {} are never assigned to cluster 1: that part of a descriptor is always 0"


@pytest.mark.parametrize("options", [{}, {"wide_logits": True}, {"precision": "fp32"}])
def test_a_dead_cluster_is_named(options: dict[str, Any]) -> None:
    bias, expected = [0.0, -200.0], DEAD.format(1)
    assert expected in findings(PAIR, bias, **options)
    x = torch.nn.functional.normalize(torch.randn(1, 500, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert folded(PAIR, bias, **options)(x)[1][..., 1].max() < 1e-37


def test_a_cluster_is_dead_only_where_no_feature_reaches_it() -> None:
    weight = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert findings(weight, [0, -87.1]) == ()
    assert findings(weight, [0, -87.3]) == (DEAD.format(1),)
    assert findings(weight, [0, -200], feature_norm=57) == (DEAD.format(57),)
    assert findings(weight, [0, -200], feature_norm=58) == ()


def test_a_dead_ghost_is_no_loss() -> None:
    assert findings(PAIR, [0, -200], ghosts=1) == ()


def test_a_ghost_can_take_everything() -> None:
    assert findings(PAIR, [-200, 0], ghosts=1) == (
        "features of norm 1 are never assigned to cluster 0: that part of a descriptor is always 0",
    )


def test_many_dead_clusters_are_counted() -> None:
    weight = torch.tensor([[1.0, -1.0]], dtype=torch.float64).repeat(4, 6)
    [finding] = findings(weight, [0.0, *[-100.0] * 11])
    assert finding.partition(" to ")[2].startswith("clusters 1, 2, 3, 4, 5, 6, 7, 8 and 3 more:")


def test_a_layer_of_one_column_is_never_dead() -> None:
    assert findings(torch.ones(4, 1, dtype=torch.float64), [-1e6]) == ()


def spread_column() -> Tensor:
    """Return three columns whose mean is 0, of which the first alone has nothing but subnormal numbers."""
    spread = (1 + torch.rand(2**15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) * 2.0**-16
    spike = torch.zeros_like(spread)
    spike[0] = 1
    return torch.stack((spread, spike, -spread - spike), dim=1)


def test_a_column_that_loses_bits_is_named() -> None:
    weight = spread_column()
    assert findings(weight) == (LOST,)
    assert not any("lose bits" in finding for finding in findings(weight, wide_logits=True))
    assert findings(weight, precision="fp32") == ()


def test_a_column_loses_bits_where_fp16_rounds_it_worse_than_11_bits_do() -> None:
    layer = folded(spread_column())
    assert layer.assignment_scale is not None
    error = (layer.assignment_weight.double() * layer.assignment_scale - spread_column()).norm(dim=0)
    relative = error / spread_column().norm(dim=0)
    assert relative[0] > 2.0**-12
    assert relative[1:].max() < 2.0**-12


@pytest.mark.parametrize("large", [1, 1024])
def test_tiny_weights_beside_large_ones_are_no_loss(large: int) -> None:
    weight = torch.full((4096, 2), 2.0**-16 / large, dtype=torch.float64)
    weight[:large] = 1 / large
    weight[:, 1] *= -1
    assert folded(weight).assignment_weight[-1, 0] < 2.0**-14
    assert findings(weight) == ()


def unequal_weights(exponent: int) -> Tensor:
    weight = torch.randn(512, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).pow(exponent)
    centred = weight - weight.mean(1, keepdim=True)
    return centred / float(centred.norm(dim=0).max())


@pytest.mark.parametrize("exponent", [3, 9, 27])
def test_however_unequal_the_weights_of_a_usual_layer_are_they_lose_nothing(exponent: int) -> None:
    weight = unequal_weights(exponent)
    layer = folded(weight)
    assert layer.assignment_scale is not None
    error = (layer.assignment_weight.double() * layer.assignment_scale - weight).norm(dim=0)
    assert (error < weight.norm(dim=0) * 2.0**-11).all()
    assert findings(weight) == ()


def test_a_zero_column_loses_nothing() -> None:
    assert findings(torch.zeros(4, 2, dtype=torch.float64)) == ()


COARSE = GraphOptions(precision="fp16", input_dtype="float32", feature_norm=1e4)


def test_the_sidecar_keeps_range_and_findings(tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8), tmp_path / "m.onnx", COARSE)
    kept = load_artifact(artifact.path)
    assert kept == artifact
    assert (kept.range.norm, kept.range.largest) == (1e4, LARGEST_FEATURE)
    assert kept.range.logit_step > COARSE_STEP
    assert [warning.split(":")[0].split(" at ")[0] for warning in kept.warnings] == [
        f"FP16 logits are {kept.range.logit_step:g} apart",
        "FP32 features are copied to FP16",
    ]


@pytest.mark.rtx
def test_an_engine_keeps_range_and_findings(tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8), tmp_path / "m.onnx", COARSE)
    engine = build_engine(artifact, tmp_path / "m.engine", BuildOptions(flavor="tensorrt-rtx", profiles=(PROFILE,)))
    assert load_artifact(engine.path) == engine
    assert len(engine.warnings) == 2
    assert (engine.warnings, engine.range) == (artifact.warnings, artifact.range)
    assert (engine.precision, engine.dtypes) == (artifact.precision, artifact.dtypes)


def test_fp32_says_where_it_ends() -> None:
    """A square of the norm, and a logit, must not overflow."""
    norm = 2.0  # of the columns
    for slope, expected in ((1.0, 2.0**62), (2.0**80, 2.0**126 / (norm * 2.0**80))):
        found = range_of(slope * PAIR, precision="fp32")
        assert found.largest == expected / np.sqrt(4)
        assert found.smallest == SMALLEST_NORM, "centroids of zero leave nothing but the features"


def long_centroids(length: float) -> FoldedNetVLAD:
    layer = folded(PAIR, precision="fp32")
    layer.centroids[:] = length / 2
    return layer


def test_centroids_outweigh_the_loss_of_short_features() -> None:
    assert audit(long_centroids(1e-3))[0].smallest is None
    assert audit(long_centroids(1e-20))[0].smallest == SMALLEST_NORM


@pytest.mark.parametrize("length", [5e18, 1e25])
def test_centroids_whose_squares_overflow_are_refused(length: float) -> None:
    audit(long_centroids(4e18))
    with pytest.raises(FoldError, match=r"centroid 0 has norm .* squares overflow FP32: scale features and centroids"):
        audit(long_centroids(length))


def test_logits_that_overflow_are_refused() -> None:
    with pytest.raises(FoldError, match=r"logits of features of norm 1 may reach 3.4e\+38, .* sums overflow FP32"):
        audit(folded(1.7e38 * PAIR, precision="fp32"))
    with pytest.raises(FoldError, match="logits of features of norm 100 may reach"):
        audit(folded(1e36 * PAIR, precision="fp32", feature_norm=100))
    with pytest.raises(FoldError, match="logits of features of norm 1 may reach"):
        audit(folded(PAIR, [3e38, 0], precision="fp32"))


def projected(scale: float, l2: bool, gating: float | None = None) -> FoldedNetVLAD:
    projection = Projection(size=4, l2=l2, gating=None if gating is None else BIAS)
    module = make_projected(projection, 3, 8, batch_norm=True)
    assert module.projection is not None
    module.projection.weight.data *= scale
    if module.gating is not None:
        module.gating.weight.data *= gating or 1
    return fold(module)


def test_a_projection_that_overflows_is_refused() -> None:
    for accepted in (projected(1e15, l2=True), projected(1e30, l2=False), projected(1, l2=True, gating=1e30)):
        audit(accepted)
    for refused in (projected(1e25, l2=True), projected(3e38, l2=False)):
        with pytest.raises(FoldError, match=r"the projection may reach .* FP32 overflows"):
            audit(refused)
    with pytest.raises(FoldError, match=r"gating may reach .* overflows FP32"):
        audit(projected(1e20, l2=False, gating=1e25))


@pytest.mark.parametrize(("options", "expected"), [
    ({"precision": "fp32"}, (2.0**61, None)),
    ({"input_dtype": "float32"}, (LARGEST_FEATURE, 2 * 2.0**-13)),
    ({}, (LARGEST_FEATURE, 2 * 2.0**-13)),
])  # fmt: skip
def test_features_to_be_normalised_may_be_short_in_fp32_alone(options: Any, expected: Any) -> None:
    layer = folded(PAIR, **options)
    layer.spec = replace(layer.spec, normalize_input=True)
    found = audit(layer)[0]
    assert (found.largest, found.smallest) == expected
