"""Image to descriptor: a backbone and a NetVLAD head as one module."""

import torch
from torch import Tensor, nn

from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.images import CHANNELS, ImageInput


def feature_map_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the feature map (B,D,h,w) that a backbone gives alone, or first: a class token (B,D) may follow it."""
    return output[0] if isinstance(output, tuple) else output


class Pipeline(nn.Module):
    """Turn images (B,H,W,3), uint8 RGB, into descriptors.

    The backbone, of this name, makes a feature map (B,D,h,w) of normalised images (B,3,H,W); the head aggregates every
    position of that map. What the backbone gives beside the map, such as a class token, is not used. This module
    applies the mean and standard deviation of the image input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: NetVLAD, images: ImageInput, *, name: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.images = images
        self.name = name
        self.register_buffer("mean", torch.tensor(images.mean), persistent=False)
        self.register_buffer("std", torch.tensor(images.std), persistent=False)

    def local_descriptors(self, images: Tensor) -> Tensor:
        """Return the local descriptors (B,N,D) of images (B,H,W,3): the positions of the feature map, row by row.

        Raises: ValueError if the images have another shape or dtype.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != CHANNELS:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected uint8 (batch, H, W, 3)")
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        feature_map = feature_map_of(self.backbone(normalized.permute(0, 3, 1, 2)))
        descriptors: Tensor = feature_map.flatten(2).transpose(1, 2)
        return descriptors

    def forward(self, images: Tensor) -> Tensor:
        """Return the descriptors of images (B,H,W,3)."""
        descriptors: Tensor = self.head(self.local_descriptors(images))
        return descriptors
