"""CRN of the benchmark: the mask of a feature map, from its checkpoint to a graph of images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.checkpoints import read_head
from netvlad_deploy.models.pipeline import Pipeline, head_inputs
from netvlad_deploy.oracle.goldens import distances, golden_image, load_goldens
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageInput, Resize
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.validate import validate
from tests.command import Command
from tests.models.aggregators import formulas
from tests.models.aggregators.samples import Source, State
from tests.models.aggregators.test_aggregators import angle

pytestmark = [pytest.mark.export, pytest.mark.ort]

WIDTH, CLUSTERS = 6, 4
IMAGES = ImageInput(resize=Resize(size=(96, 128)))
SWAPS: tuple[dict[str, Any], ...] = (
    {"map_l2": False},
    {"edge": "always 9"},
    {"doubling": "corners"},
    {"mask": "before softmax"},
    {"mask": "none"},
    {"padding": "edge"},
    {"last_relu": False},
    {"context": "as it comes"},
)


def state(seed: int = 6) -> State:
    random = Source(seed)
    found = {
        "aggregation.conv.weight": random(CLUSTERS, WIDTH, 1, 1, scale=4.0),
        "aggregation.centroids": random(CLUSTERS, WIDTH, scale=0.4),
        "aggregation.crn.acc_w.weight": random(1, 9, 1, 1),
        "aggregation.crn.acc_w.bias": random(1, scale=0.05),
    }
    for side, channels in ((3, 4), (5, 3), (7, 2)):
        name = f"aggregation.crn.filter_{side}_{side}"
        found |= {f"{name}.weight": random(channels, WIDTH, side, side, scale=1 / side)}
        found |= {f"{name}.bias": random(channels, scale=0.05)}
    return found


def save(folder: Path, changed: State | None = None) -> Path:
    torch.save({"epoch_num": 5, "model_state_dict": state() | (changed or {})}, folder / "best_model.pth")
    return folder / "best_model.pth"


def head(folder: Path) -> Aggregator:
    module = read_head(save(folder)).module("it")
    assert isinstance(module, Aggregator)
    return module


def expected(feature_map: Tensor, **swap: Any) -> Any:
    wide = {name: tensor.double().numpy() for name, tensor in state().items()}
    return formulas.crn(wide, feature_map.double().numpy(), **swap)


def backbone() -> nn.Module:
    """Return a backbone of stride 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        return nn.Conv2d(3, WIDTH, 16, stride=16).eval()


MAP = 2 * torch.randn(2, WIDTH, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_module_equals_the_formula(tmp_path: Path) -> None:
    with torch.inference_mode():
        got = head(tmp_path).double()(*head_inputs(head(tmp_path).spec, MAP)).numpy()
    assert np.abs(got - expected(MAP)).max() < 1e-12


@pytest.mark.parametrize("swap", SWAPS, ids=str)
def test_a_convention_swapped_fails_the_same_comparison(swap: dict[str, Any]) -> None:
    assert angle(expected(MAP), expected(MAP, **swap)) > 1e-4


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    """The graph in each precision."""
    folder = tmp_path_factory.mktemp("crn")
    pipeline = Pipeline(backbone(), head(folder), IMAGES, name="stride 16").eval()
    options = {precision: GraphOptions(precision=precision) for precision in ("fp32", "fp16")}
    return {name: export_onnx(pipeline, folder / f"{name}.onnx", each) for name, each in options.items()}


@pytest.mark.parametrize(("precision", "runner", "limit"), [("fp32", "onnxruntime", 1e-6), ("fp16", "strict", 2e-5)])
def test_a_graph_of_images_equals_the_formula(
    artifacts: dict[str, OnnxArtifact], precision: str, runner: str, limit: float
) -> None:
    artifact = artifacts[precision]
    with open_runner(artifact, backend=runner) as opened:
        for size in ((96, 128), (160, 64)):
            image = golden_image(*size, seed=7)[None]
            pixels = (torch.from_numpy(image) - torch.tensor(IMAGES.mean)) / torch.tensor(IMAGES.std)
            with torch.inference_mode():
                feature_map = backbone().double()(pixels.double().permute(0, 3, 1, 2))
            got = opened.run({"images": image})["descriptor"]
            assert angle(got.astype(np.float64), expected(feature_map)) < limit
    assert validate(Candidate(path=artifact.path)).verdict is Verdict.PASS


@pytest.mark.parametrize("name", state())
def test_a_changed_tensor_is_beyond_the_tolerance_of_the_golden_images(
    artifacts: dict[str, OnnxArtifact], tmp_path: Path, name: str
) -> None:
    read = read_head(save(tmp_path, {name: state()[name] * 1.01})).module("it")
    other = Pipeline(backbone(), read, IMAGES, name="stride 16").eval()
    goldens = load_goldens(artifacts["fp32"].reference_path)
    with torch.inference_mode():
        got = [other(torch.from_numpy(golden.feeds["images"])[None]).numpy() for golden in goldens]
    far = [distances(each, golden.descriptor[None])[0] for each, golden in zip(got, goldens, strict=True)]
    assert any(distance > golden.tolerance("fp32") for distance, golden in zip(far, goldens, strict=True))


def test_a_map_of_odd_height_is_refused_as_the_original_cannot_take_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="crn needs a feature map of even height and width, got 5x8: pass another"):
        head(tmp_path)(*head_inputs(head(tmp_path).spec, MAP[:, :, :5]))


def test_it_is_recognised_and_needs_a_backbone(tmp_path: Path, command: Command) -> None:
    shown = command("inspect", save(tmp_path))
    assert "a checkpoint in the dialect crn" in shown.out
    alone = command("export", save(tmp_path), "-o", tmp_path / "m.onnx")
    assert alone.code == UsageError.exit_code
    assert "crn takes a feature map, not features: export it with its backbone" in alone.err


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("crn.filter_5_5.weight", (3, WIDTH, 3, 3), "has shape (3, 6, 3, 3), expected (C, 6, 5, 5)"),
        ("crn.acc_w.weight", (1, 8, 1, 1), "has shape (1, 8, 1, 1), expected (C, 9, 1, 1)"),
        ("crn.filter_3_3.bias", (3,), "do not fit: expected aggregation.crn.filter_3_3.bias (4,)"),
        ("crn.extra.weight", (3,), "holds aggregation.crn.extra.weight in the layer, which crn does not have"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_head(save(tmp_path, {f"aggregation.{name}": torch.ones(shape)}), dialect="crn")
    assert said in str(refused.value)
