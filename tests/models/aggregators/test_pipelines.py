"""Image to descriptor with an aggregator as the head: feature map and class token reach it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import InputError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.checkpoints import read_head
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageInput, Resize
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.validate import validate
from tests.models.aggregators.samples import SAMPLES
from tests.models.aggregators.test_aggregators import angle

pytestmark = [pytest.mark.export, pytest.mark.ort]

SIZE = (96, 128)


class WithToken(nn.Module):
    """A backbone of stride 16 that gives a feature map (B,12,h,w) and a token (B,12), as DINOv2 does."""

    def __init__(self, *, token: bool = True) -> None:
        super().__init__()
        self.token = token
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.conv, self.last = nn.Conv2d(3, 12, 16, stride=16), nn.Linear(12, 12)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        feature_map = 3 * self.conv(images)
        return (feature_map, self.last(feature_map.mean((2, 3)))) if self.token else feature_map


def pipeline(folder: Path, *, token: bool = True) -> Pipeline:
    head = read_head(SAMPLES["salad"].save(folder)).module("it")
    images = ImageInput(resize=Resize(size=SIZE))
    return Pipeline(WithToken(token=token), head, images, name="with token").eval()


def exported(folder: Path, precision: str) -> OnnxArtifact:
    return export_onnx(pipeline(folder), folder / "m.onnx", GraphOptions(precision=precision))


@pytest.mark.parametrize(("precision", "backend", "limit"), [("fp32", "onnxruntime", 1e-6), ("fp16", "strict", 2e-5)])
def test_images_give_the_descriptors_of_the_formula(tmp_path: Path, precision: str, backend: str, limit: float) -> None:
    artifact = exported(tmp_path, precision)
    image = golden_image(*SIZE, seed=7)[None]
    backbone = WithToken().double()
    normalized = (torch.from_numpy(image) - torch.tensor(ImageInput().mean)) / torch.tensor(ImageInput().std)
    with torch.inference_mode():
        feature_map, token = backbone(normalized.double().permute(0, 3, 1, 2))
    feeds = {"features": feature_map.flatten(2).transpose(1, 2).numpy(), "token": token.numpy()}
    with open_runner(artifact, backend=backend) as runner:
        got = runner.run({"images": image})["descriptor"]
    assert angle(got.astype(np.float64), SAMPLES["salad"].expected(feeds)) < limit
    report = validate(Candidate(path=artifact.path))
    assert (report.verdict, report.reference) == (Verdict.PASS, "golden images")


def test_a_backbone_without_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="salad takes a class token, which the backbone does not give"):
        export_onnx(pipeline(tmp_path, token=False), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
