"""A pipeline as it is exported: uint8 images to descriptors in one graph.

The first operator casts the images, which TensorRT demands of a uint8 input. Pixels are normalised in FP32. In an FP16
graph the backbone's folded weights, its activations and the local descriptors that it gives to the head are FP16.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_backbone import activation_peaks, check_half, fold_backbone, half_backbone
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import Golden, golden_image
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.support.arrays import Array

FOLD_SIZE = (96, 128)
"""Height and width of the image on which a fold is tried; pipelines of one size also have a golden image of it."""


class FoldedPipeline(nn.Module):
    """Images (B,H,W,3) uint8 to the local descriptors (B,N,D), the head's stages and the descriptor (B,P)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: FoldedNetVLAD, pipeline: Pipeline) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.half_backbone = head.options.half
        self.register_buffer("mean", torch.tensor(pipeline.images.mean))
        self.register_buffer("std", torch.tensor(pipeline.images.std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the local descriptors (B,N,D), then the stages that the head returns."""
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.half_backbone:
            normalized = normalized.half()
        feature_map = self.backbone(normalized.permute(0, 3, 1, 2))  # (B,D,h,w)
        local_descriptors = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
        return (local_descriptors, *self.head(local_descriptors))


def fold_pipeline(
    pipeline: Pipeline, options: GraphOptions, goldens: Iterable[Golden]
) -> tuple[FoldedPipeline, tuple[str, ...]]:
    """Return the folded pipeline in eval mode, and a warning if FP16 activations come close to overflow.

    Raises: FoldError and ExportError as `fold_backbone` and `fold`; ExportError if FP16 overflows for a golden image.
    """
    head = fold(pipeline.head, options)
    example = _normalized(pipeline, golden_image(*FOLD_SIZE, seed=0))
    backbone = fold_backbone(pipeline.backbone, example)
    warnings: tuple[str, ...] = ()
    if options.half:
        peaks: dict[str, float] = {}
        for golden in goldens:
            for name, peak in activation_peaks(backbone, _normalized(pipeline, golden.feeds[IMAGES])).items():
                peaks[name] = max(peak, peaks.get(name, 0.0))
        warnings = check_half(peaks)
        backbone = half_backbone(backbone)
    return FoldedPipeline(backbone, head, pipeline).eval(), warnings


def _normalized(pipeline: Pipeline, image: Array) -> Tensor:
    """Return an image (H,W,3) uint8 as the backbone's input (1,3,H,W), normalised in FP32."""
    pixels = torch.from_numpy(image)[None].float()
    return ((pixels - torch.tensor(pipeline.images.mean)) / torch.tensor(pipeline.images.std)).permute(0, 3, 1, 2)
