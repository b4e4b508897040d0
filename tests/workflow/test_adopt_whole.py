"""`adopt --no-head`: any network from images or features to one vector becomes an artifact that all verbs serve."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ExportError, InputError, UsageError
from netvlad_deploy.export.foreign import wrap
from netvlad_deploy.oracle.goldens import load_goldens
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import cosines
from netvlad_deploy.workflow.adopt import AdoptOptions, adopt
from netvlad_deploy.workflow.validate import validate
from tests.command import Command
from tests.export.foreign.graphs import export_by_torch, loaded, saved

pytestmark = [pytest.mark.export, pytest.mark.ort]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
PIXELS = AdoptOptions(whole=True, mean=MEAN, std=STD)


class Pooled(nn.Module):
    """Generalised mean pooling over a convolution, a projection and an L2 normalisation: CosPlace in small."""

    def __init__(self, *, l2: bool = True) -> None:
        super().__init__()
        self.conv, self.map, self.l2 = nn.Conv2d(3, 8, 7, stride=4), nn.Linear(8, 6), l2

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        vectors: Tensor = self.map(pooled)
        return functional.normalize(vectors, dim=1) if self.l2 else vectors


class ChannelsLast(nn.Module):
    """A network that takes images (B,H,W,3)."""

    def __init__(self, network: Pooled) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x.permute(0, 3, 1, 2))
        return found


@pytest.fixture(scope="module")
def network() -> Pooled:
    torch.manual_seed(0)
    return Pooled()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, network: Pooled) -> Path:
    return export_by_torch(network, tmp_path_factory.mktemp("foreign") / "net.onnx", torch.zeros(1, 3, 48, 56))


@pytest.fixture(scope="module")
def adopted(foreign: Path) -> OnnxArtifact:
    return adopt(foreign, foreign.with_name("m.onnx"), PIXELS).artifact


def expected_of(network: Pooled, images: np.ndarray) -> np.ndarray:
    normalized = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        found: np.ndarray = network(normalized.permute(0, 3, 1, 2)).numpy()
    return found


def test_it_takes_uint8_images_and_gives_what_the_file_gives(adopted: OnnxArtifact, network: Pooled) -> None:
    spec = load_artifact(adopted.path).spec
    assert isinstance(spec, AggregatorSpec)
    assert (spec.name, spec.descriptor_size, spec.unit_length, spec.fixed_lengths) == ("foreign", 6, True, {})
    images = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
    with Candidate(path=adopted.path).open() as runner:
        got = runner.run({"images": images})["descriptor"]
    assert 1 - cosines(got, expected_of(network, images)).min() < 1e-10


def test_its_golden_descriptors_are_those_of_the_file_and_rounding_was_measured(
    adopted: OnnxArtifact, network: Pooled
) -> None:
    goldens = load_goldens(adopted.reference_path)
    assert len(goldens) == 3
    for golden in goldens:
        assert np.allclose(golden.descriptor, expected_of(network, golden.feeds["images"][None])[0], atol=1e-6)
        assert 0 < golden.distances["fp32"] < 1e-5 < golden.distances["tf32"] < 1e-2
    assert any("its golden inputs have the descriptors of net.onnx" in warning for warning in adopted.warnings)


def test_a_file_that_computes_something_else_fails(adopted: OnnxArtifact, tmp_path: Path) -> None:
    report = validate(Candidate(path=adopted.path))
    assert (report.verdict, report.reference) == (Verdict.PASS, "golden images")
    path = export_by_torch(Pooled(), tmp_path / "net.onnx", torch.zeros(1, 3, 48, 56))
    wrong = adopt(path, tmp_path / "m.onnx", PIXELS).artifact
    assert validate(Candidate(path=wrong.path), against=adopted.path).verdict is Verdict.FAIL


def test_fp16_is_proved_by_strict_emulation_and_islands_stay_fp32(
    foreign: Path, network: Pooled, tmp_path: Path
) -> None:
    options = AdoptOptions(whole=True, mean=MEAN, std=STD, graph=GraphOptions(precision="fp16"))
    adoption = adopt(foreign, tmp_path / "half.onnx", options)
    assert adoption.proofs[0].precision == "fp16"
    model = onnx.shape_inference.infer_shapes(onnx.load(str(adoption.artifact.path)), strict_mode=True)
    half = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    gives = {node.op_type: bool(half.intersection(node.output)) for node in model.graph.node if node.op_type != "Cast"}
    assert gives["Conv"]
    assert gives["Gemm"]
    assert not gives["Pow"]
    assert not gives["ReduceMean"]
    assert validate(Candidate(path=adoption.artifact.path)).verdict is Verdict.PASS
    images = np.random.default_rng(0).integers(0, 256, (1, 60, 80, 3), np.uint8)
    with Candidate(path=adoption.artifact.path, backend="strict").open() as runner:
        got = runner.run({"images": images})["descriptor"]
    assert 1e-12 < 1 - cosines(got, expected_of(network, images)).min() < 1e-5


def test_activations_beyond_fp16_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Pooled()
    network.conv.weight.data *= 1e5
    path = export_by_torch(network, tmp_path / "net.onnx", torch.zeros(1, 3, 48, 56))
    options = AdoptOptions(whole=True, mean=MEAN, std=STD, graph=GraphOptions(precision="fp16"))
    with pytest.raises(ExportError, match="for a golden image, FP16 ends at 65504"):
        adopt(path, tmp_path / "m.onnx", options)
    network.conv.weight.data *= 1e5
    path = export_by_torch(network, tmp_path / "net.onnx", torch.zeros(1, 3, 48, 56))
    with pytest.raises(ExportError, match="is beyond 65504, where FP16 ends: adopt it in fp32"):
        adopt(path, tmp_path / "m.onnx", options)


def test_a_wrong_mean_in_the_graph_is_noticed(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file itself is run on images that were normalised outside the graph."""
    right = wrap._normalisation

    def wrong(helper: object, source: str, *, channels_last: bool) -> list[object]:
        nodes = list(right(helper, source, channels_last=channels_last))
        nodes[1].input[1], nodes[2].input[1] = nodes[2].input[1], nodes[1].input[1]
        return nodes

    monkeypatch.setattr(wrap, "_normalisation", wrong)
    with pytest.raises(InputError, match="computes something else: 3 of 3 cases differ"):
        adopt(foreign, tmp_path / "m.onnx", PIXELS)
    assert not list(tmp_path.iterdir())


def test_fixed_axes_stay_and_embed_fills_them_up(network: Pooled, command: Command, tmp_path: Path) -> None:
    export_by_torch(network, tmp_path / "net.onnx", torch.zeros(2, 3, 48, 56), dynamic=False)
    (tmp_path / "photos").mkdir()
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (3, 48, 56, 3), np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{index}.png")
    pixels = ["--mean", "120,110,100", "--std", "60,61,62"]
    outcome = command("adopt", "net.onnx", "--no-head", *pixels)
    assert outcome.code == 0
    assert "batch 2, height 48, width 56" in outcome.out
    assert "taken as it is: its descriptors are of norm 1" in outcome.out
    assert command("embed", "net-adopted.onnx", "photos", "-o", "out.npz").code == 0
    with np.load(tmp_path / "out.npz") as found:
        assert 1 - cosines(found["descriptors"], expected_of(network, images)).min() < 1e-10
    assert command("bench", "net-adopted.onnx", "--batch", 2, "--duration", 0.1).code == 0
    assert command("validate", "net-adopted.onnx").code == 0


def test_images_whose_channels_come_last_are_given_so(network: Pooled, tmp_path: Path) -> None:
    path = export_by_torch(ChannelsLast(network), tmp_path / "net.onnx", torch.zeros(1, 48, 56, 3), dynamic=False)
    adoption = adopt(path, tmp_path / "m.onnx", PIXELS)
    assert adoption.artifact.spec.fixed_lengths == {"batch": 1, "height": 48, "width": 56}
    images = np.random.default_rng(0).integers(0, 256, (1, 48, 56, 3), np.uint8)
    with Candidate(path=adoption.artifact.path).open() as runner:
        got = runner.run({"images": images})["descriptor"]
    assert 1 - cosines(got, expected_of(network, images)).min() < 1e-10


def test_features_and_a_length_other_than_1_are_served(tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(8, 5), nn.Flatten(1), nn.Linear(20, 3))
    path = export_by_torch(module, tmp_path / "net.onnx", torch.zeros(2, 4, 8), dynamic=False)
    artifact = adopt(path, tmp_path / "m.onnx", AdoptOptions(whole=True)).artifact
    assert isinstance(artifact.spec, AggregatorSpec)
    assert artifact.inputs == ("features",)
    assert not artifact.spec.unit_length
    assert artifact.spec.fixed_lengths == {"batch": 2, "num_features": 4}
    assert validate(Candidate(path=artifact.path)).verdict is Verdict.PASS
    with pytest.raises(UsageError, match="takes features: leave the options for images out"):
        adopt(path, tmp_path / "n.onnx", AdoptOptions(whole=True, mean=MEAN))


def test_what_cannot_be_wrapped_is_refused(foreign: Path, tmp_path: Path) -> None:
    model = loaded(foreign)
    model.graph.output.append(model.graph.value_info[0] if model.graph.value_info else model.graph.input[0])
    two = saved(model, tmp_path / "two.onnx")
    with pytest.raises(InputError, match=r"two\.onnx: it has 2 outputs, vlad, \S+: name its descriptor with --head"):
        adopt(two, tmp_path / "m.onnx", PIXELS)
    vector = export_by_torch(nn.Linear(4, 3), tmp_path / "vector.onnx", torch.zeros(1, 4), dynamic=False)
    with pytest.raises(InputError, match="it takes 1x4, expected images of 3 channels, or features"):
        adopt(vector, tmp_path / "m.onnx", AdoptOptions(whole=True))
    with pytest.raises(UsageError, match="--no-head keeps the nodes of the file"):
        adopt(foreign, tmp_path / "m.onnx", AdoptOptions(whole=True, graph=GraphOptions(masked=True)))


@pytest.mark.parametrize("name", ["mean", "float", "images", "descriptor"])
def test_a_tensor_of_any_name_is_no_tensor_of_the_artifact(foreign: Path, tmp_path: Path, name: str) -> None:
    """torch's newer exporter calls the result of a mean `mean`."""
    model = loaded(foreign)
    inside = model.graph.node[0].output[0]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if each == inside else each for each in names]
    made = adopt(saved(model, tmp_path / "net.onnx"), tmp_path / "m.onnx", PIXELS)
    assert made.proofs[-1].verdict is Verdict.PASS


class Coupled(Pooled):
    """The mean of a batch is subtracted, as BatchNorm in training mode does."""

    def forward(self, x: Tensor) -> Tensor:
        vectors = super().forward(x)
        return vectors - vectors.mean(0, keepdim=True) + 1


class OneImage(Pooled):
    """One descriptor, however many images there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:1]


class Tokens(Pooled):
    """As many values as an image has positions."""

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.conv(x).flatten(2)
        return tokens


class Classes(Pooled):
    """The number of a class."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1, keepdim=True)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Coupled, "is moved by .* when others are in its batch: call eval"),
        (OneImage, r"its output is \(1, 6\) for a batch of 2, expected a vector for each"),
        (Tokens, "values, expected a vector of one length"),
        (Classes, "its output vlad is int64, expected float or float16"),
    ],
)
def test_what_is_no_vector_of_each_image_is_refused(kind: type[Pooled], words: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_by_torch(kind(), tmp_path / "net.onnx", torch.zeros(2, 3, 48, 56))
    with pytest.raises(InputError, match=words):
        adopt(path, tmp_path / "m.onnx", PIXELS)
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]


def test_in_a_fixed_batch_every_image_is_judged_beside_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_by_torch(Coupled(), tmp_path / "net.onnx", torch.zeros(4, 3, 48, 56), dynamic=False)
    with pytest.raises(InputError, match="when others are in its batch"):
        adopt(path, tmp_path / "m.onnx", PIXELS)
