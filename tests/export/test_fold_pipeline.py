"""Pipelines as ONNX files: graph, golden images, strips of convolutions, large constants and external data."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ArtifactError, ExportError, FoldError, UsageError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.float64_products import Float64Products
from netvlad_deploy.export.make_goldens import make_goldens
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import golden_image, golden_sizes, load_goldens
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageInput, Resize
from tests.pipelines import WIDTH, tiny_pipeline

pytestmark = [pytest.mark.export, pytest.mark.ort]

SHAPES = ((1, 32, 48), (2, 33, 47), (1, 65, 31))


def pictures(shape: tuple[int, int, int]) -> np.ndarray:
    batch, height, width = shape
    return np.stack([golden_image(height, width, seed) for seed in range(batch)])


def largest_error(artifact: OnnxArtifact, pipeline: Pipeline) -> float:
    """Return the largest distance of ONNX Runtime from torch over several sizes, some of them odd."""
    worst = 0.0
    with open_runner(artifact) as runner, torch.inference_mode():
        for shape in SHAPES:
            images = pictures(shape)
            expected = pipeline(torch.from_numpy(images)).numpy()
            worst = max(worst, float(np.abs(runner.run({"images": images})["descriptor"] - expected).max()))
    return worst


def test_the_graph_equals_torch(tiny: OnnxArtifact) -> None:
    assert largest_error(tiny, tiny_pipeline()) < 1e-6


def test_the_graph_takes_images_and_has_three_dynamic_axes(tiny: OnnxArtifact) -> None:
    graph = onnx.load(tiny.path).graph
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {"images": ["batch", "height", "width", 3], "descriptor": ["batch", 4 * WIDTH]}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    operators = Counter(node.op_type for node in graph.node)
    assert not set(operators) & {"BatchNormalization", "Shape", "Gather", "Resize", "Loop", "If", "Expand"}
    assert operators["Conv"] == 4
    assert not any("shapes" in warning for warning in tiny.warnings)


def test_the_newest_opset(tmp_path: Path) -> None:
    artifact = export_onnx(tiny_pipeline(), tmp_path / "m.onnx", GraphOptions(opset=onnx.defs.onnx_opset_version()))
    onnx.checker.check_model(str(artifact.path), full_check=True)
    assert largest_error(artifact, tiny_pipeline()) < 1e-6


def test_the_sidecar_says_how_an_image_is_prepared(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(Resize(size=(40, 56)))
    artifact = export_onnx(pipeline, tmp_path / "m.onnx")
    loaded = load_artifact(artifact.path)
    assert loaded == artifact
    assert loaded.images == pipeline.images
    assert (loaded.inputs, dict(loaded.dtypes)) == (("images",), {"images": "uint8", "descriptor": "float32"})
    assert loaded.preprocessing == "RGB from 0 to 255, upright by EXIF, to 40x56 (bilinear); the graph normalises"
    assert str(loaded.usual_profile) == "batch 1:1:8, height 40:40:40, width 56:56:56"


@pytest.mark.usefixtures("traced_anew")
def test_the_same_pipeline_gives_the_same_bytes(tmp_path: Path, tiny: OnnxArtifact) -> None:
    again = export_onnx(tiny_pipeline(), tmp_path / "tiny.onnx")
    assert (again.sha256, again.reference) == (tiny.sha256, tiny.reference)


def test_half_precision_is_in_the_backbone_and_not_before_it(half: OnnxArtifact) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(half.path))
    values = (*model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    halves = {types[name] for node in convolutions for name in (*node.input, *node.output)}
    assert halves == {onnx.TensorProto.FLOAT16}
    assert types["local_descriptors"] == onnx.TensorProto.FLOAT16
    normalised = [node for node in model.graph.node if node.op_type in ("Sub", "Div")][:2]
    assert {types[node.output[0]] for node in normalised} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize("options", [GraphOptions(masked=True), GraphOptions(probe=True), GraphOptions(feature_norm=2)])
def test_options_of_a_head_are_refused_for_a_pipeline(tmp_path: Path, options: GraphOptions) -> None:
    with pytest.raises(UsageError, match="leave --masked, --probe, --input-dtype and --feature-norm out"):
        export_onnx(tiny_pipeline(), tmp_path / "m.onnx", options)
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.backbone.train()
    with pytest.raises(FoldError, match="in training mode"):
        export_onnx(pipeline, tmp_path / "m.onnx")


def test_a_head_of_another_width_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.head = NetVLAD(4, WIDTH + 1).eval()
    with pytest.raises(ExportError, match="backbone tiny gives 8 channels, the head takes 9"):
        make_goldens(pipeline, "fp32")


class Functional(nn.Module):
    """A BatchNorm that is no module, which no hook sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3, stride=8)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("variance", torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.batch_norm(torch.relu(self.conv(x)), self.get_buffer("mean"), self.get_buffer("variance"))
        return torch.relu(x)


def test_a_functional_batch_norm_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    pipeline.backbone = Functional().eval()
    with pytest.raises(ExportError, match="a graph with BatchNormalization"):
        export_onnx(pipeline, tmp_path / "m.onnx")


def test_an_overflow_in_half_precision_is_refused(tmp_path: Path) -> None:
    pipeline = tiny_pipeline()
    first = pipeline.backbone.get_submodule("1")
    assert isinstance(first, nn.BatchNorm2d)
    first.weight.data.mul_(1e5)
    with pytest.raises(ExportError, match=r"backbone\.[\w.]+ gives [\d.e+]+ for a golden image, FP16 ends at 65504"):
        export_onnx(pipeline, tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    export_onnx(pipeline, tmp_path / "m.onnx")


class TestGoldens:
    def test_they_are_the_unfolded_module_in_float64(self, tiny: OnnxArtifact) -> None:
        pipeline = tiny_pipeline()
        pipeline.backbone.double()
        pipeline.head.double()
        pipeline.mean, pipeline.std = (torch.tensor(v, dtype=torch.float64) for v in ((120, 110, 100), (60, 58, 56)))
        goldens = load_goldens(tiny.reference_path)
        assert [golden.feeds["images"].shape[:2] for golden in goldens] == [(224, 224), (225, 257), (320, 256)]
        for golden in goldens:
            with torch.inference_mode():
                expected = pipeline(torch.from_numpy(golden.feeds["images"])[None])[0].numpy()
            assert np.abs(golden.descriptor - expected).max() < 1e-14
            assert set(golden.distances) == {"fp32", "tf32"}
            assert 1e-8 < golden.distances["fp32"] < 1e-5 < golden.distances["tf32"] < 1e-3

    @pytest.mark.parametrize(
        ("resize", "last"),
        [
            (Resize(), (320, 256)),
            (Resize(filter="box"), (320, 256)),
            (Resize(size=(480, 640)), (480, 640)),
            (Resize(longest=320), (240, 320)),
            (Resize(longest=1024), (480, 640)),
            (Resize(shortest=240), (240, 320)),
        ],
    )
    def test_one_has_the_size_of_the_rule(self, resize: Resize, last: tuple[int, int]) -> None:
        assert golden_sizes(ImageInput(resize=resize))[-1] == last
        assert len(golden_sizes(ImageInput(resize=resize))) == 3

    @pytest.mark.parametrize("rule", [{"size": (96, 128)}, {"size": (97, 131)}, {"longest": 224}])
    def test_no_size_comes_twice(self, rule: dict[str, Any]) -> None:
        """Reports name golden images by their size."""
        sizes = golden_sizes(ImageInput(resize=Resize(**rule)))
        assert len(set(sizes)) == len(sizes) >= 2

    def test_pictures_have_structure_and_differ(self) -> None:
        one, other = (golden_image(64, 96, seed) for seed in (0, 1))
        assert np.array_equal(one, golden_image(64, 96, 0))
        assert np.abs(one.astype(float) - other).mean() > 20
        assert one.std() > 25
        assert all(np.abs(one[..., a].astype(float) - one[..., b]).mean() > 10 for a, b in ((0, 1), (0, 2), (1, 2)))

    def test_a_reference_without_sound_ones_is_refused(
        self, exported: OnnxArtifact, tiny: OnnxArtifact, tmp_path: Path
    ) -> None:
        with pytest.raises(ArtifactError, match="holds no golden images or features"):
            load_goldens(exported.reference_path)
        with np.load(tiny.reference_path) as archive:
            arrays = {name: archive[name] for name in archive.files}
        for name, value in (
            ("golden.1.image", np.zeros((4, 4), np.uint8)),
            ("golden.1.descriptor", np.full(32, np.nan)),
            ("golden.1.descriptor", np.full(32, "x")),
            ("golden.1.fp32_distance", np.array(np.inf)),
            ("golden.1.fp32_distance", np.array("x")),
            ("golden.1.tf32_distance", np.array(np.nan)),
            ("golden.1.tf32_distance", np.ones(2)),
        ):
            np.savez(tmp_path / "bad.npz", **{**arrays, name: value})
            with pytest.raises(ArtifactError, match="no golden inputs: golden"):
                load_goldens(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"padding": (2, 0), "stride": (3, 2)},
        {"dilation": 2, "groups": 2},
        {"padding": "same"},
        {"padding": "valid", "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_a_convolution_in_strips_is_the_convolution(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, **options).double()
    with torch.inference_mode():
        for height in (7, 37, 53):
            x = torch.randn(2, 4, height, 11, dtype=torch.float64)
            expected = conv(x)
            with Float64Products(strips=True):
                got = conv(x)
            assert got.shape == expected.shape
            assert (got - expected).abs().max() < 1e-13


def test_large_constants_follow_the_graph_in_one_file(
    tmp_path: Path, tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protobuf merges the parts of the file, whose lengths take one byte or several."""
    monkeypatch.setattr("netvlad_deploy.export.graph.LARGE_BYTES", 100)
    artifact = export_onnx(tiny_pipeline(), tmp_path / "m.onnx")
    assert artifact.sha256 == hashlib.sha256(artifact.path.read_bytes()).hexdigest() != tiny.sha256
    assert artifact.size_bytes == artifact.path.stat().st_size
    onnx.checker.check_model(str(artifact.path), full_check=True)
    models = [onnx.load(each.path) for each in (artifact, tiny)]
    parts = [{one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer} for model in models]
    assert {name: array.tolist() for name, array in parts[0].items()} == {
        name: array.tolist() for name, array in parts[1].items()
    }
    assert list(parts[0]) != list(parts[1])
    assert models[0].graph.node == models[1].graph.node


class TestExternalData:
    @pytest.fixture
    def external(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxArtifact:
        monkeypatch.setattr(onnx_model, "LARGEST_INSIDE", 0)
        monkeypatch.setattr("netvlad_deploy.export.graph.LARGE_BYTES", 500)
        return export_onnx(tiny_pipeline(), tmp_path / "m.onnx")

    def test_weights_stand_beside_the_graph(self, external: OnnxArtifact, tiny: OnnxArtifact) -> None:
        assert external.external_data is not None
        assert external.external_data.name == "m.onnx.data"
        model = onnx.load(external.path, load_external_data=False)
        outside = [tensor.name for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]
        assert len(outside) >= 3
        onnx.checker.check_model(str(external.path), full_check=True)
        assert load_artifact(external.path) == external
        for backend in ("onnxruntime", "strict"):
            with open_runner(external, backend=backend) as runner, open_runner(tiny) as inside:
                images = pictures((1, 40, 40))
                got, expected = (each.run({"images": images})["descriptor"] for each in (runner, inside))
                assert np.abs(got - expected).max() < 1e-6
                assert "local_descriptors" in runner.tapped().run({"images": images})

    def test_other_weights_make_another_graph_and_damage_is_found(self, external: OnnxArtifact) -> None:
        other = tiny_pipeline()
        conv = other.backbone.get_submodule("0")
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data[0] *= 1.01
        again = export_onnx(other, external.path.with_name("n.onnx"))
        assert again.sha256 != external.sha256
        data = external.path.with_name("m.onnx.data")
        data.write_bytes(data.read_bytes()[:-1] + b"x")
        with pytest.raises(ArtifactError, match=r"m\.onnx\.data has SHA-256"):
            load_artifact(external.path)

    @pytest.mark.rtx
    def test_an_engine_is_built_from_it(self, external: OnnxArtifact) -> None:
        from netvlad_deploy.spec.build_options import BuildOptions
        from netvlad_deploy.tensorrt.engine import build_engine

        options = BuildOptions(flavor="tensorrt-rtx")
        built = build_engine(external, external.path.with_suffix(".engine"), options)
        assert built.profiles == (external.usual_profile,)
        assert built.images == external.images
        assert load_artifact(built.path) == built


def test_efficientnet_lite0(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipeline = read_backbone("efficientnet-lite0").under(NetVLAD(8, 112, normalize_input=True).eval())
    artifact = export_onnx(pipeline, tmp_path / "m.onnx")
    operators = Counter(node.op_type for node in onnx.load(artifact.path).graph.node)
    assert operators["Conv"] == 33
    assert not set(operators) & {"BatchNormalization", "Shape", "Gather", "Pad", "Mod"}
    assert largest_error(artifact, pipeline) < 1e-5
