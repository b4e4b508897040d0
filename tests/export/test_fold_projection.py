"""A projection as it is exported: BatchNorm folded, in FP16 scaled by rows, and no second copy of a plain matrix."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.audit import audit
from netvlad_deploy.export.fold_head import fold
from netvlad_deploy.export.fold_projection import FoldedMap
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.affine import AffineMap, in_float64
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import ADD, NetVLADSpec, Projection
from tests.modules import make_module, make_projected

pytestmark = pytest.mark.export

LOUPE = Projection(size=12, bias=False, batch_norm=True, l2=False, gating="batch_norm")
HALF = GraphOptions(precision="fp16")


def matrix(outputs: int, inputs: int, seed: int = 0) -> AffineMap:
    """Return a map whose rows have norms from 1e-3 to 1e5."""
    linear = AffineMap(inputs, outputs, bias=True, batch_norm=False).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)))
        linear.weight.mul_(torch.logspace(-3, 5, outputs)[:, None] / inputs**0.5)
    return linear


def test_rows_in_fp16_are_scaled_by_powers_of_two_to_a_norm_of_1_and_lose_no_bits() -> None:
    linear = matrix(40, 4096)
    folded = FoldedMap(linear, "projection", half=True)
    assert folded.scale is not None
    assert torch.equal(torch.frexp(folded.scale).mantissa, torch.full_like(folded.scale, 0.5))
    norms = folded.weight.double().norm(dim=1)
    assert norms.max() < 1 + 2**-11
    assert norms.min() > 0.5 - 2**-11
    error = (folded.weight.double() * folded.scale[:, None] - linear.weight.detach()).norm(dim=1)
    assert (error < linear.weight.detach().norm(dim=1) * 2**-11).all()


def test_no_product_of_fp16_overflows_or_is_lost() -> None:
    linear = matrix(40, 4096)
    folded, along = FoldedMap(linear, "projection", half=True), functional.normalize(linear.weight.detach(), dim=1)
    got, expected = folded(along).double().diag(), (along.double() @ linear.weight.detach().double().T).diag()
    assert (got / expected - 1).abs().max() < 2**-9
    assert expected.max() > 65504


def test_a_zero_row_stays_zero() -> None:
    linear = matrix(3, 8)
    linear.weight.data[1] = 0
    folded = FoldedMap(linear, "projection", half=True)
    assert folded.scale is not None
    assert (float(folded.scale[1]), float(folded(torch.ones(1, 8))[0, 1])) == (1, 0)


@pytest.mark.parametrize("options", [GraphOptions(), HALF], ids=["fp32", "fp16"])
@pytest.mark.parametrize("projection", [LOUPE, Projection(size=8), Projection(size=5, gating="bias")])
def test_the_fold_equals_the_reference(projection: Projection, options: GraphOptions) -> None:
    module = make_projected(projection)
    x = torch.randn(3, 30, 16, generator=torch.Generator().manual_seed(0)).half()
    with torch.inference_mode():
        folded = fold(module, options)
        got, expected = folded(x if options.half else x.float())[-1], in_float64(module)(x.double())
    error = (got - expected).norm() / expected.norm()
    assert error < (2e-2 if options.half else 1e-5)
    assert not any(isinstance(part, torch.nn.BatchNorm1d) for part in folded.modules())


def test_a_module_in_float64_shares_its_matrix_and_leaves_the_module_alone() -> None:
    module = make_projected(LOUPE)
    exact = in_float64(module)
    assert module.projection is not None
    assert exact.projection is not None
    assert exact.projection.weight is module.projection.weight
    assert exact.clusters.dtype is torch.float64
    assert {tensor.dtype for tensor in module.parameters()} == {torch.float32}
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert (exact(x.double()) - module(x)).abs().max() < 1e-5
        assert torch.equal(exact(x.double()), in_float64(module).double()(x.double()))


def test_a_plain_matrix_is_not_copied_in_fp32() -> None:
    """The fold, the oracle and the check that it is finite use the matrix itself."""
    module = make_projected(Projection(size=2048), clusters=64, width=64, ghosts=0)
    assert module.projection is not None
    folded = fold(module)
    assert folded.projection is not None
    assert folded.projection.weight.data_ptr() == module.projection.weight.data_ptr()


def test_the_oracle_multiplies_in_blocks(tmp_path: Path) -> None:
    artifact = export_onnx(make_projected(Projection(size=1024), 32, 64, 0), tmp_path / "m.onnx")
    reference = load_reference(artifact.reference_path)
    assert reference.projection is not None
    assert reference.projection.weight.dtype == np.float32
    vectors = np.ones((1, 2048))
    tracemalloc.start()
    reference.projection(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < reference.projection.weight.nbytes / 2


def test_damaged_statistics_are_refused_by_name() -> None:
    module = make_projected(LOUPE)
    assert module.gating is not None
    assert module.gating.batch_norm is not None
    assert module.gating.batch_norm.running_var is not None
    module.gating.batch_norm.running_var[2] = -1
    with pytest.raises(FoldError, match=r"gating.batch_norm.running_var has a negative value"):
        fold(module)
    module.gating.weight.data[0, 0] = torch.nan
    with pytest.raises(FoldError, match=r"gating.weight is not finite"):
        fold(module)


def test_stored_in_fp16_large_values_are_warned_of() -> None:
    options = GraphOptions(precision="fp16", output_dtype="float16")
    module = make_projected(Projection(size=3, l2=False), 2, 8, 0)
    assert not any("FP16 ends" in finding for finding in audit(fold(module, options))[1])
    assert module.projection is not None
    module.projection.weight.data *= 1e5
    assert any("values of a descriptor may reach" in finding for finding in audit(fold(module, options))[1])
    assert not any("FP16 ends" in finding for finding in audit(fold(module, HALF))[1])
    whitened = make_projected(Projection(size=3), 2, 8, 0)
    assert not any("FP16 ends" in finding for finding in audit(fold(whitened, options))[1])


@pytest.fixture(scope="module")
def loupe(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    module = make_projected(LOUPE, epsilon=ADD, normalize_input=True)
    return export_onnx(module, tmp_path_factory.mktemp("loupe") / "m.onnx", GraphOptions(precision="fp16", probe=True))


def test_the_sidecar_and_the_reference_file_have_the_whole_spec(loupe: OnnxArtifact) -> None:
    assert load_artifact(loupe.path) == loupe
    assert loupe.spec.projection == LOUPE
    assert load_reference(loupe.reference_path).spec == loupe.spec
    assert (loupe.spec.descriptor_size, loupe.spec.aggregate_size) == (12, 96)


def test_the_projection_alone_is_fp16_and_the_steps_after_it_fp32(loupe: OnnxArtifact) -> None:
    graph = onnx.load(loupe.path).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["projection.weight"] == onnx.TensorProto.FLOAT16
    assert types["gating.weight"] == onnx.TensorProto.FLOAT
    assert sum(node.op_type == "Gemm" for node in graph.node) == 2
    assert any("aggregate" in node.output for node in graph.node)
    assert len(graph.node) <= 60


def test_the_added_epsilon_survives_the_exporter(loupe: OnnxArtifact) -> None:
    values = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(loupe.path).graph.initializer]
    constants = {float(value[0]) for value in values if value.shape == (1,) and value.dtype == np.float32}
    assert constants == {float(np.float32(value)) for value in (1e-12, 1e-6, 1e-37, 2**15)}


def test_a_graph_without_a_projection_has_no_such_stage(tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8), tmp_path / "m.onnx")
    assert not any("aggregate" in node.output for node in onnx.load(artifact.path).graph.node)
    assert NetVLADSpec(num_clusters=3, feature_size=8).stages[-2:] == ("residual_sum", "descriptor")
