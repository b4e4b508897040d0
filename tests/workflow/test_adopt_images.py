"""`adopt` of a file that takes images: backbone and head in one graph from uint8, in FP32 and in FP16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.export.foreign import backbone as backbones
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageChanges, Resize
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import cosines
from netvlad_deploy.workflow.adopt import AdoptOptions, adopt
from netvlad_deploy.workflow.validate import validate
from tests.export.foreign.graphs import Looped, export_by_torch

pytestmark = [pytest.mark.export, pytest.mark.ort]
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)
SMALL = ImageChanges(resize=Resize(size=(64, 80)))


class Network(nn.Module):
    """A small backbone with its head."""

    def __init__(self, extra: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 16, 3, padding=1),
            extra or nn.Identity(),
        )
        self.head = Looped(5, 16, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        descriptors: Tensor = self.head(self.backbone(x))
        return descriptors


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(2)
    return Network()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Path:
    return export_by_torch(network, tmp_path_factory.mktemp("foreign") / "net.onnx", torch.zeros(1, 3, 64, 80))


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-9), ("fp16", 1e-4)])
def test_a_file_of_images_becomes_one_graph_from_uint8(
    foreign: Path, network: Network, tmp_path: Path, precision: str, apart: float
) -> None:
    options = AdoptOptions(graph=GraphOptions(precision=precision), mean=MEAN, std=STD, changes=SMALL)
    adopted = adopt(foreign, tmp_path / "m.onnx", options)
    assert adopted.proofs[1].verdict is Verdict.PASS
    assert adopted.notes == ()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), np.uint8)
    normalized = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        expected = network(normalized.permute(0, 3, 1, 2)).numpy()
    candidate = Candidate(path=adopted.artifact.path)
    with candidate.open() as runner:
        got = runner.run({"images": images})["descriptor"]
    assert 1 - cosines(got, expected).min() < apart
    assert validate(Candidate(path=adopted.artifact.path)).verdict is Verdict.PASS


def test_imagenet_is_assumed_and_said_and_a_fixed_size_is_kept(network: Network, tmp_path: Path) -> None:
    path = export_by_torch(network, tmp_path / "net.onnx", torch.zeros(1, 3, 64, 80), dynamic=False)
    adopted = adopt(path, tmp_path / "m.onnx", AdoptOptions())
    assert adopted.artifact.images is not None
    assert adopted.artifact.images.size == (64, 80)
    assert adopted.artifact.images.mean == (123.675, 116.28, 103.53)
    assert adopted.artifact.images.fixed
    assert "takes images of 64x80 alone" in adopted.notes[0]
    assert adopted.notes[1].startswith("assumed: its images are RGB, ")
    with pytest.raises(UsageError, match="takes images of 64x80: leave --resize and --crop out"):
        adopt(path, tmp_path / "n.onnx", AdoptOptions(changes=ImageChanges(resize=Resize(size=(96, 96)))))


def test_its_head_alone_takes_features(foreign: Path, network: Network, tmp_path: Path) -> None:
    adopted = adopt(foreign, tmp_path / "m.onnx", AdoptOptions(takes="features"))
    assert adopted.artifact.inputs == ("features",)
    assert adopted.artifact.spec.feature_size == 16
    with pytest.raises(UsageError, match="leave the options for images out"):
        adopt(foreign, tmp_path / "n.onnx", AdoptOptions(takes="features", mean=MEAN))


def test_a_backbone_that_was_read_wrongly_is_noticed(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = backbones.LAYERS["Conv"]

    def wrong(*given: object) -> nn.Module:
        module = right(*given)  # type: ignore[arg-type]
        assert isinstance(module, nn.Conv2d)
        module.weight.data *= 1.01
        return module

    monkeypatch.setitem(backbones.LAYERS, "Conv", wrong)
    with pytest.raises(InputError, match=r"computes something else: .*images"):
        adopt(foreign, tmp_path / "m.onnx", AdoptOptions(changes=SMALL))
    assert not list(tmp_path.iterdir())


def test_a_backbone_with_other_operators_is_refused_by_name(tmp_path: Path) -> None:
    path = export_by_torch(Network(nn.Softmax(1)), tmp_path / "net.onnx", torch.zeros(1, 3, 64, 80))
    with pytest.raises(InputError, match=r"its backbone has Softmax, .*: take its head with --input features"):
        adopt(path, tmp_path / "m.onnx", AdoptOptions())
