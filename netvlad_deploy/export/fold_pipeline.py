"""A pipeline as it is exported: uint8 images to descriptors in one graph.

The first operator casts the images, which TensorRT demands of a uint8 input. Pixels are normalised in FP32. In an FP16
graph the backbone's folded weights, its activations and the local descriptors that it gives to the head are FP16.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netvlad_deploy.export.fold_aggregators import fold_aggregator
from netvlad_deploy.export.fold_backbone import activation_peaks, check_half, fold_backbone, half_backbone
from netvlad_deploy.export.fold_head import fold
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.pipeline import Pipeline, head_inputs
from netvlad_deploy.oracle.goldens import Golden, golden_image
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES, ImageInput, Size
from netvlad_deploy.spec.layouts import LAYOUTS
from netvlad_deploy.support.arrays import Array

FOLD_SIZE = (96, 128)
"""Height and width of the image on which a fold is tried; pipelines of one size also have a golden image of it."""


def fold_size(images: ImageInput) -> Size:
    """Return the height and width of the image on which a fold is tried: the one that the backbone takes, or small."""
    return images.size if images.fixed and images.size else FOLD_SIZE


class FoldedPipeline(nn.Module):
    """Images in their layout to the local descriptors (B,N,D), the head's stages and the descriptor (B,P)."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, head: nn.Module, pipeline: Pipeline, *, half: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.spec, self.half_backbone = pipeline.head.spec, half
        self.layout = LAYOUTS[pipeline.images.layout]
        self.register_buffer("mean", torch.tensor(pipeline.images.mean))
        self.register_buffer("std", torch.tensor(pipeline.images.std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the local descriptors (B,N,D), then the stages that the head returns."""
        if self.layout.channels_first:
            images = images.permute(0, 2, 3, 1)
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std  # a grey channel becomes three
        if self.half_backbone:
            normalized = normalized.half()
        inputs = head_inputs(self.spec, self.backbone(normalized.permute(0, 3, 1, 2)))
        if self.half_backbone:
            inputs = tuple(each.half() for each in inputs)
        stages = self.head(*inputs)
        return (inputs[0], *(stages if isinstance(stages, tuple) else (stages,)))


def fold_pipeline(
    pipeline: Pipeline, options: GraphOptions, goldens: Iterable[Golden]
) -> tuple[FoldedPipeline, tuple[str, ...]]:
    """Return the folded pipeline in eval mode, and a warning if FP16 activations come close to overflow.

    Raises: FoldError and ExportError as `fold_backbone` and `fold`; ExportError if FP16 overflows for a golden image.
    """
    own = pipeline.head
    head = fold_aggregator(own, options) if isinstance(own, Aggregator) else fold(own, options)
    example = _normalized(pipeline, golden_image(*fold_size(pipeline.images), seed=0))
    backbone = fold_backbone(pipeline.backbone, example)
    warnings: tuple[str, ...] = ()
    if options.half:
        peaks: dict[str, float] = {}
        for golden in goldens:
            for name, peak in activation_peaks(backbone, _normalized(pipeline, golden.feeds[IMAGES])).items():
                peaks[name] = max(peak, peaks.get(name, 0.0))
        warnings = check_half(peaks)
        backbone = half_backbone(backbone)
    return FoldedPipeline(backbone, head, pipeline, half=options.half).eval(), warnings


def _normalized(pipeline: Pipeline, image: Array) -> Tensor:
    """Return an image (H,W,3) uint8 as the backbone's input (1,3,H,W), normalised in FP32."""
    pixels = torch.from_numpy(image)[None].float()
    return ((pixels - torch.tensor(pipeline.images.mean)) / torch.tensor(pipeline.images.std)).permute(0, 3, 1, 2)
