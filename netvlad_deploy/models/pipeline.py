"""Image to descriptor: a backbone and its head, a NetVLAD or another aggregator, as one module."""

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.images import CHANNELS, ImageInput
from netvlad_deploy.spec.layer import TOKEN, AggregatorSpec, AnySpec


def feature_map_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the feature map (B,D,h,w) that a backbone gives alone, or first: a class token (B,D) may follow it."""
    return output[0] if isinstance(output, tuple) else output


def head_inputs(spec: AnySpec, output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return what a head takes of a backbone's output: local descriptors (B,N,D), and whichever it takes beside them.

    That is the feature map (B,D,h,w) itself, or class tokens (B,D).

    Raises: InputError if it takes class tokens, and the backbone gives none.
    """
    feature_map = feature_map_of(output)
    local_descriptors = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    if isinstance(spec, AggregatorSpec) and spec.takes_map:
        return local_descriptors, feature_map
    if not isinstance(spec, AggregatorSpec) or TOKEN not in spec.inputs:
        return (local_descriptors,)
    if not isinstance(output, tuple):
        raise InputError(
            f"{spec.name} takes a class token, which the backbone does not give: name another with --backbone"
        )
    return local_descriptors, output[1]


class Pipeline(nn.Module):
    """Turn images (B,H,W,3), uint8 RGB, into descriptors.

    The backbone, of this name, makes a feature map (B,D,h,w) of normalised images (B,3,H,W); the head aggregates every
    position of that map. A class token, where the backbone gives one, goes to a head that takes it. This module applies
    the mean and standard deviation of the image input.

    >>> backbone = nn.Conv2d(3, 8, 16, stride=16)
    >>> head = NetVLAD(cluster_size=4, feature_size=8)
    >>> pipeline = Pipeline(backbone, head, ImageInput(), name="mine").eval()
    >>> pipeline(torch.zeros(2, 48, 64, 3, dtype=torch.uint8)).shape  # (B, D*K)
    torch.Size([2, 32])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: NetVLAD | Aggregator, images: ImageInput, *, name: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.images = images
        self.name = name
        self.register_buffer("mean", torch.tensor(images.mean), persistent=False)
        self.register_buffer("std", torch.tensor(images.std), persistent=False)

    def local_descriptors(self, images: Tensor) -> Tensor:
        """Return the local descriptors (B,N,D) of images (B,H,W,3): the positions of the feature map, row by row.

        Raises: as `head_inputs`.
        """
        return self.head_inputs(images)[0]

    def head_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return what the head takes of images (B,H,W,3): local descriptors (B,N,D), and class tokens if it takes them.

        Raises: ValueError if the images have another shape or dtype; InputError as `head_inputs` of this module.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != CHANNELS:
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, expected uint8 (batch, H, W, 3)")
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        return head_inputs(self.head.spec, self.backbone(normalized.permute(0, 3, 1, 2)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the descriptors of images (B,H,W,3)."""
        descriptors: Tensor = self.head(*self.head_inputs(images))
        return descriptors
