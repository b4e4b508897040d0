"""Small pipelines: a backbone with whatever makes a fold hard, and the head of a vocabulary."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.models.vocabulary import head_module, head_state, local_descriptors, sharpness
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.spec.images import IMAGES, NO_CHANGES, ImageChanges, ImageInput, Resize
from netvlad_deploy.workflow.source import Source, load_module

WIDTH = 8


def read_pipeline(path: Path, *, backbone: str | None = None, changes: ImageChanges = NO_CHANGES) -> Pipeline:
    """Return backbone and head of a checkpoint as `export` loads them."""
    return cast("Pipeline", load_module(Source(checkpoint=path, backbone=backbone, changes=changes, takes=IMAGES))[0])


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that goes on with an activation, as timm has."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.act(super().forward(x))
        return result


class PaddedConv(nn.Conv2d):
    """A convolution that pads by itself, unevenly, as EfficientNet's do."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Residual(nn.Module):
    """A block before which BatchNorm stands, and around which the sum goes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(torch.relu(self.before(x)))))


def tiny_backbone() -> nn.Module:
    """Return a backbone of stride 8, its BatchNorm statistics as far from 0 and 1 as training leaves them."""
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, eps=1e-3),
        nn.ReLU(inplace=True),
        PaddedConv(8, 8, 3, stride=2),
        NormAct(8),
        Residual(8),
        nn.Conv2d(8, WIDTH, 3, stride=2, padding=1),
        nn.BatchNorm2d(WIDTH, eps=1e-3),
    )
    return trained(backbone)


def trained(module: nn.Module) -> nn.Module:
    """Return a module in eval mode, its BatchNorms as training leaves them."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            count = part.num_features
            part.running_mean.copy_(0.3 * torch.randn(count, generator=generator))
            part.running_var.copy_(0.05 + torch.rand(count, generator=generator))
            if part.affine:
                part.weight.data.copy_(0.5 + torch.rand(count, generator=generator))
                part.bias.data.copy_(0.3 * torch.randn(count, generator=generator))
    return module.eval()


def tiny_pipeline(resize: Resize | None = None) -> Pipeline:
    """Return a pipeline of the tiny backbone and a head of 4 clusters."""
    backbone = tiny_backbone()
    torch.manual_seed(2)
    head = NetVLAD(4, WIDTH, add_batch_norm=False, assignment_bias=True, normalize_input=True)
    head.clusters.data.mul_(8)
    images = ImageInput(mean=(120.0, 110.0, 100.0), std=(60.0, 58.0, 56.0), resize=resize or Resize())
    return Pipeline(backbone, head.eval(), images, name="tiny").eval()


def flat_pipeline(flatness: float) -> Pipeline:
    """Return the tiny pipeline with a feature map that hardly changes over an image, and clusters inside that change.

    What rounding takes from a feature is `flatness` times larger beside what tells it from the others.
    """
    pipeline = tiny_pipeline(Resize(size=(64, 80)))
    last = pipeline.backbone.get_submodule("7")
    assert isinstance(last, nn.BatchNorm2d)
    last.weight.data.div_(flatness)
    points = local_descriptors(pipeline, golden_image(64, 80, seed=9)[None])[0]
    far = ((points[:, None] - points[None]) ** 2).sum(axis=2).argmax()
    first, second = divmod(int(far), len(points))
    centroids = points[[first, second, len(points) // 3, len(points) // 2]]
    pipeline.head = head_module(head_state(centroids, sharpness(points, centroids)))
    return pipeline.eval()
