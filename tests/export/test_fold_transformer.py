"""Vision transformers as ONNX files: constants for one size, FP16 in products alone, golden images and refusals."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy import Verdict
from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ExportError, InputError
from netvlad_deploy.export import graph
from netvlad_deploy.export.fold_backbone import activation_peaks, check_half, copied
from netvlad_deploy.export.half_products import half_products
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.backbones import weights
from netvlad_deploy.models.head import BackboneState
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline, head_inputs
from netvlad_deploy.oracle.goldens import golden_image, load_goldens
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.validate import validate
from tests.models.backbones import transformers as tiny

pytestmark = [pytest.mark.export, pytest.mark.ort]

STREAM_PEAK = 1e5
"""A value of the residual stream that no FP16 number can hold: trained transformers have such channels."""


def transformer(state: tiny.State) -> nn.Module:
    """Return the tiny DINOv2 with these weights, for its one size."""
    backbone = tiny.tiny("dinov2")
    found = BackboneState(root="", tensors=state, candidates=(), images=ImageInput())
    module, _ = weights.load_weights(backbone, found)
    weights.fix_size(module, backbone.name, ImageInput(resize=Resize(size=tiny.SIZE)))
    return module


def peaked() -> tiny.State:
    """Return weights whose residual stream rises to STREAM_PEAK in one channel, which the last norm takes out again.

    Beside the peak, the mean and the deviation of a token are nearly those of (STREAM_PEAK, 0, 0, ...).
    """
    state = tiny.hub_state("dinov2")
    state["blocks.0.mlp.fc2.weight"][3] = 0
    state["blocks.0.mlp.fc2.bias"][3] = 100.0
    state["blocks.0.ls2.gamma"][3] = STREAM_PEAK / 100
    state["norm.weight"][:] = STREAM_PEAK * (tiny.WIDTH - 1) ** 0.5 / tiny.WIDTH
    state["norm.weight"][3] = 0
    state["norm.bias"][:] = STREAM_PEAK / tiny.WIDTH
    state["norm.bias"][3] = 0
    return state


def pipeline(state: tiny.State) -> Pipeline:
    torch.manual_seed(2)
    head = NetVLAD(4, tiny.WIDTH, add_batch_norm=False, assignment_bias=True, normalize_input=True)
    images = ImageInput(resize=Resize(size=tiny.SIZE), fixed=True)
    return Pipeline(transformer(state), head.eval(), images, name="tiny-dinov2").eval()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    """Return the pipeline with a peaked stream by its precision; do not change it."""
    folder = tmp_path_factory.mktemp("transformer")
    return {
        precision: export_onnx(pipeline(peaked()), folder / f"{precision}.onnx", GraphOptions(precision=precision))
        for precision in ("fp32", "fp16")
    }


def pictures(batch: int = 2) -> np.ndarray:
    return np.stack([golden_image(*tiny.SIZE, seed) for seed in range(7, 7 + batch)])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_of_one_size_equals_torch(artifacts: dict[str, OnnxArtifact], precision: str) -> None:
    artifact, images = artifacts[precision], pictures()
    whole = copied(pipeline(peaked()), torch.float64)
    assert isinstance(whole, Pipeline)
    whole.mean, whole.std = whole.mean.double(), whole.std.double()
    with torch.inference_mode():
        expected = whole(torch.from_numpy(images)).numpy()
    with open_runner(artifact, backend="strict" if precision == "fp16" else None) as runner:
        got = runner.run({"images": images})["descriptor"].astype(np.float64)
    cosines = (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert (1 - cosines).max() < (1e-4 if precision == "fp16" else 1e-6)
    report = validate(Candidate(path=artifact.path))
    assert report.verdict is Verdict.PASS
    assert [case.name for case in report.cases if not case.part][:2] == ["images 24x40", "images 24x40 no. 2"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_graph_has_constants_for_its_size(artifacts: dict[str, OnnxArtifact], precision: str) -> None:
    artifact = artifacts[precision]
    model = onnx.load(artifact.path)
    axes = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 24, 40, 3]
    operators = {node.op_type for node in model.graph.node}
    assert not operators & (graph.SHAPE_OPS | graph.FORBIDDEN_OPS | {"Resize", "Concat", "Gather"})
    assert not any("shapes" in warning for warning in artifact.warnings)
    assert str(artifact.usual_profile) == "batch 1:1:8, height 24:24:24, width 40:40:40"
    assert load_artifact(artifact.path).images == ImageInput(resize=Resize(size=tiny.SIZE), fixed=True)


def test_products_are_fp16_and_the_residual_stream_is_not(artifacts: dict[str, OnnxArtifact]) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(artifacts["fp16"].path))
    values = (*model.graph.value_info, *model.graph.output, *model.graph.input)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    backbone = model.graph.node[
        : next(i for i, node in enumerate(model.graph.node) if "local_descriptors" in node.output)
    ]

    def types_of(*operators: str) -> set[int]:
        return {types[name] for node in backbone if node.op_type in operators for name in (*node.input, *node.output)}

    assert types_of("MatMul", "Conv", "Softmax") == {onnx.TensorProto.FLOAT16}
    assert types_of("LayerNormalization", "Erf") == {onnx.TensorProto.FLOAT}
    sums = [node for node in backbone if node.op_type == "Add" and all(types[each] == 1 for each in node.input)]
    assert len(sums) >= 2 * tiny.LAYERS + 1, "position embeddings, and two sums of each layer"
    assert types["local_descriptors"] == onnx.TensorProto.FLOAT16


def test_a_stream_in_fp16_would_not_hold(tmp_path: Path) -> None:
    """The same network with all of it in FP16, as `module.half()` makes it: the stream overflows."""
    images = torch.randn(1, 3, *tiny.SIZE)
    plain = copied(transformer(peaked()), torch.float32)
    ours = half_products(copied(transformer(peaked()), torch.float32))
    with torch.inference_mode():
        expected = plain(images)[0]
        halved = plain.half()
        halved.network.layernorm.float()  # type: ignore[union-attr]
        halved.network.layernorm.register_forward_pre_hook(lambda _, given: (given[0].float(),))  # type: ignore[union-attr]
        assert not halved(images.half())[0].isfinite().all()
        assert float((ours(images)[0] - expected).abs().max()) < 0.05


def test_an_overflow_inside_a_product_is_refused(tmp_path: Path) -> None:
    state = tiny.hub_state("dinov2")
    state["blocks.1.mlp.fc1.weight"][2] *= 1e5
    with pytest.raises(
        ExportError, match=r"backbone\.network\.encoder\.layer\.1\.mlp\.fc\d gives .*FP16 ends at 65504"
    ):
        export_onnx(pipeline(state), tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    assert not list(tmp_path.iterdir())


def test_peaks_of_the_stream_are_not_those_of_products() -> None:
    module, images = transformer(peaked()), torch.randn(1, 3, *tiny.SIZE)
    peaks = activation_peaks(module, images)
    assert max(peaks.values()) < STREAM_PEAK / 10
    assert check_half(peaks) == ()
    assert {name.rpartition(".")[2] for name in peaks} == {
        "projection", "q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"
    }  # fmt: skip


def test_another_size_is_refused_by_runner_and_build(artifacts: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    said = r"images of 24x32 are not taken, the backbone is for 24x40 alone: export again with --resize 24x32"
    with open_runner(artifacts["fp32"]) as runner, pytest.raises(InputError, match=said):
        runner.run({"images": np.zeros((1, 24, 32, 3), dtype=np.uint8)})
    options = BuildOptions(flavor="tensorrt-rtx", profiles=(ImageProfile.parse("1x24x32"),))
    with pytest.raises(InputError, match=said):
        build(artifacts["fp32"], tmp_path / "m.engine", options)


def test_a_fault_in_the_graph_fails(artifacts: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    """The position embeddings of another grid: rows for columns."""
    goldens = load_goldens(artifacts["fp32"].reference_path)
    assert len({golden.feeds["images"].tobytes() for golden in goldens}) == len(goldens) >= 2
    wrong = pipeline(peaked())
    positions = wrong.backbone.get_buffer("positions")
    positions[:, 1:] = positions[:, 1:].reshape(1, 3, 5, -1).transpose(1, 2).flatten(1, 2)
    artifact = export_onnx(wrong, tmp_path / "wrong.onnx")
    report = validate(Candidate(path=artifact.path), against=artifacts["fp32"].path)
    assert report.verdict is Verdict.FAIL


def test_a_head_that_takes_a_class_token_gets_it() -> None:
    spec = AggregatorSpec(name="with-token", descriptor_size=8, unit_length=True, feature_size=4, token_size=4)
    feature_map, token = torch.randn(2, 4, 3, 5), torch.randn(2, 4)
    features, given = head_inputs(spec, (feature_map, token))
    assert torch.equal(features[0, 7], feature_map[0, :, 1, 2])
    assert torch.equal(given, token)
    plain = AggregatorSpec(name="without", descriptor_size=8, unit_length=True, feature_size=4)
    assert len(head_inputs(plain, (feature_map, token))) == 1
    with pytest.raises(InputError, match="with-token takes a class token, which the backbone does not give"):
        head_inputs(spec, feature_map)


def test_copies_share_what_they_do_not_change() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x))  # type: ignore[no-any-return]

    module = Small()
    same = copied(module, torch.float32)
    assert same.get_parameter("linear.weight").data_ptr() == module.linear.weight.data_ptr()
    wide = copied(module, torch.float64, share=(nn.Linear,))
    assert [each.dtype for each in wide.parameters()] == [torch.float32, *[torch.float64] * 3]
    half_products(same)
    assert module.linear.weight.dtype == torch.float32
