"""Layers other than NetVLAD: golden features, their verdict, the inputs beside local descriptors, and refusals."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy import Verdict, export_onnx
from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ArtifactError, InputError, UsageError
from netvlad_deploy.export import fold_aggregators
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.oracle import aggregators
from netvlad_deploy.oracle.goldens import load_goldens
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.runtime.torch_runner import TorchRunner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.tensors import shape_words
from netvlad_deploy.support.arrays import Array, Float64
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.embed import embed
from netvlad_deploy.workflow.validate import validate

SPEC = AggregatorSpec(
    name="mean-and-token", descriptor_size=8, unit_length=True, feature_size=6, token_size=3, least_features=5
)


class MeanAndToken(Aggregator):
    """The mean of projected local descriptors beside a projected token, L2-normalised."""

    def __init__(self) -> None:
        super().__init__(SPEC)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.map, self.token_map = nn.Linear(6, 5), nn.Linear(3, 3)

    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        joined = torch.cat([self.map(features).mean(1), self.token_map(others[0])], 1)
        return functional.normalize(joined)


class Folded(nn.Module):
    """The same, with the product of the features in the precision of the graph."""

    def __init__(self, whole: "MeanAndToken", _: GraphOptions) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        weight, bias = self.whole.map.weight, self.whole.map.bias
        projected = functional.linear(features, weight.to(features.dtype)).float() + bias
        joined = torch.cat([projected.mean(1), self.whole.token_map(token.float())], 1)
        return functional.normalize(joined)


def formula(spec: AggregatorSpec, state: Mapping[str, Array], feeds: Mapping[str, Array]) -> Float64:
    mean = feeds["features"].mean(axis=1) @ state["map.weight"].T + state["map.bias"]
    token = feeds["token"] @ state["token_map.weight"].T + state["token_map.bias"]
    joined = np.concatenate([mean, token], axis=1)
    normal: Float64 = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    return normal


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(aggregators.FORMULAS, SPEC.name, formula)
        patch.setitem(fold_aggregators.FOLDS, SPEC.name, Folded)
        yield


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, known: None) -> OnnxArtifact:
    """Return the layer in FP32; do not change it."""
    return export_onnx(MeanAndToken().eval(), tmp_path_factory.mktemp("layer") / "m.onnx")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, known: None) -> OnnxArtifact:
    """Return the layer in FP16; do not change it."""
    options = GraphOptions(precision="fp16")
    return export_onnx(MeanAndToken().eval(), tmp_path_factory.mktemp("half") / "m.onnx", options)


def feeds(num_features: int = 7) -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes = {"features": (2, num_features, 6), "token": (2, 3)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_an_artifact_has_its_inputs_and_comes_back_equal(artifact: OnnxArtifact) -> None:
    assert (artifact.inputs, artifact.outputs, artifact.spec) == (("features", "token"), ("descriptor",), SPEC)
    assert load_artifact(artifact.path) == artifact
    assert shape_words(artifact.input_shapes(artifact.usual_profile))["min"] == "features:1x5x6,token:1x3"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_features_pass_and_name_their_length(artifact: OnnxArtifact, half: OnnxArtifact, precision: str) -> None:
    made = {"fp32": artifact, "fp16": half}[precision]
    report = validate(Candidate(path=made.path))
    assert (report.verdict, report.reference) == (Verdict.PASS, "golden features")
    assert [case.name for case in report.cases] == ["features 5", "features 51", "features 262"]


def test_another_layer_fails(artifact: OnnxArtifact, tmp_path: Path) -> None:
    other = MeanAndToken().eval()
    other.token_map.weight.data[0, 0] += 1e-4
    swapped = export_onnx(other, tmp_path / "other.onnx")
    report = validate(Candidate(path=swapped.path), against=artifact.path)
    assert report.verdict is Verdict.FAIL


def test_torch_and_the_graph_agree(artifact: OnnxArtifact) -> None:
    with open_runner(artifact) as runner:
        got = runner.run(feeds())["descriptor"]
    assert np.abs(got - TorchRunner(MeanAndToken().eval()).run(feeds())["descriptor"]).max() < 1e-6


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"features": np.zeros((2, 4, 6), np.float32)}, "4 features for each image, mean-and-token needs at least 5"),
        ({"token": np.zeros((1, 3), np.float32)}, r"token is float32 \(1, 3\), expected float32 \(2, 3\)"),
        ({"token": np.zeros((2, 3))}, r"token is float64 \(2, 3\), expected float32 \(2, 3\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(artifact: OnnxArtifact, changed: dict[str, Array], said: str) -> None:
    with open_runner(artifact) as runner, pytest.raises(InputError, match=said):
        runner.run(feeds() | changed)


def test_a_backend_that_is_netvlad_s_alone_is_refused(artifact: OnnxArtifact) -> None:
    for backend in ("torch", "oracle"):
        with pytest.raises(UsageError, match=f"is mean-and-token, which {backend} does not run"):
            open_runner(artifact, backend=backend)


def test_a_mask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mean-and-token takes no mask: leave --masked"):
        export_onnx(MeanAndToken().eval(), tmp_path / "m.onnx", GraphOptions(masked=True))
    assert not list(tmp_path.iterdir())


def test_a_feature_file_has_no_token(artifact: OnnxArtifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", feeds()["features"])
    with pytest.raises(UsageError, match="takes token too, a feature file has none"):
        embed(Candidate(path=artifact.path), [tmp_path / "x.npy"], tmp_path / "y.npy")
    assert not (tmp_path / "y.npy").exists()


def test_every_input_is_fed_when_it_is_timed(artifact: OnnxArtifact) -> None:
    report = bench([Candidate(path=artifact.path)], num_features=5, duration_s=0.1, threads=1)
    assert report.verdict is Verdict.PASS


def test_damaged_golden_features_are_refused(artifact: OnnxArtifact, tmp_path: Path) -> None:
    arrays = dict(np.load(artifact.reference_path))
    arrays["golden.0.token"] = np.full(3, np.nan, np.float32)
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ArtifactError, match=r"golden\.0\.token is float32"):
        load_goldens(tmp_path / "bad.npz")


@pytest.mark.rtx
def test_an_engine_is_built_for_as_many_features_as_the_layer_needs(half: OnnxArtifact, tmp_path: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("SM89",))
    engine = build(half.path, tmp_path / "m.engine", options)
    assert (engine.inputs, engine.spec) == (("features", "token"), SPEC)
    assert engine.profiles[0].shapes[0] == (1, 5)
    few = replace(options, profiles=(Profile.parse("1x4"),))
    with pytest.raises(UsageError, match="needs at least 5 features for each image"):
        build(half.path, tmp_path / "few.engine", few)
