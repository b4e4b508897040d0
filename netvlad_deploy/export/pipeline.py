"""A pipeline as it is exported: uint8 images to descriptors in one graph, and the golden images that prove it.

The input meets its cast first, as TensorRT wants of uint8. Pixels are normalised in FP32; in FP16 the backbone's folded
weights and its activations are FP16, and so are the local descriptors that the head gets.
"""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from netvlad_deploy.arrays import Array
from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.backbone import fold_backbone
from netvlad_deploy.export.fold import FoldedNetVLAD, fold
from netvlad_deploy.export.half_backbone import activation_peaks, check_half, half_backbone
from netvlad_deploy.goldens import Golden, distances, golden_image, golden_sizes
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.spec import GraphOptions

FOLD_SIZE = (96, 128)
"""Height and width of the image on which a fold is tried, where no rule demands another."""


class FoldedPipeline(nn.Module):
    """Images (B,H,W,3) uint8 to the local descriptors, the head's stages and the descriptor."""

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
        """Return the local descriptors (B,N,D), then what the head returns."""
        normalized = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.half_backbone:
            normalized = normalized.half()
        feature_map = self.backbone(normalized.permute(0, 3, 1, 2))  # (B,D,h,w)
        local_descriptors = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
        return (local_descriptors, *self.head(local_descriptors))


def fold_pipeline(
    pipeline: Pipeline, options: GraphOptions, goldens: Iterable[Golden]
) -> tuple[FoldedPipeline, tuple[str, ...]]:
    """Return the pipeline as it is exported, and a sentence for each thing that may cost accuracy.

    Raises: FoldError, ExportError; see `fold_backbone` and `fold`; ExportError too where FP16 overflows for a golden
        image.
    """
    head = fold(pipeline.head, options)
    example = _normalized(pipeline, golden_image(*(pipeline.images.resize.size or FOLD_SIZE), seed=0))
    backbone = fold_backbone(pipeline.backbone, example)
    warnings: tuple[str, ...] = ()
    if options.half:
        peaks: dict[str, float] = {}
        for golden in goldens:
            for name, peak in activation_peaks(backbone, _normalized(pipeline, golden.image)).items():
                peaks[name] = max(peak, peaks.get(name, 0.0))
        warnings = check_half(peaks)
        backbone = half_backbone(backbone)
    return FoldedPipeline(backbone, head, pipeline).eval(), warnings


def make_goldens(pipeline: Pipeline) -> tuple[tuple[Golden, ...], float]:
    """Return golden images with the unfolded module's float64 descriptors, and the largest norm of a local descriptor.

    Raises: ExportError if the feature map has another width than the head takes, or something is not finite.
    """
    images = [golden_image(*size, seed=seed) for seed, size in enumerate(golden_sizes(pipeline.images.resize))]
    (exact, norm), (single, _) = (_descriptors(pipeline, images, dtype) for dtype in (torch.float64, torch.float32))
    goldens = tuple(
        Golden(image=image, descriptor=wanted, fp32_distance=float(distances(got, wanted)))
        for image, wanted, got in zip(images, exact, single, strict=True)
    )
    return goldens, norm


def _descriptors(pipeline: Pipeline, images: Iterable[Array], dtype: torch.dtype) -> tuple[list[Array], float]:
    """Return the descriptor (P,) of each image (H,W,3), all in one type, and the largest norm of a local descriptor."""
    head, width = pipeline.head, pipeline.head.spec.feature_size
    twin = Pipeline(copy.deepcopy(pipeline.backbone).to(dtype), head, pipeline.images, name=pipeline.name)
    twin.mean, twin.std = (torch.tensor(values, dtype=dtype) for values in (pipeline.images.mean, pipeline.images.std))
    state = {name: tensor.to(dtype) for name, tensor in head.state_dict().items()}
    found, norm = [], 0.0
    with torch.inference_mode():
        for image in images:
            local_descriptors = twin.local_descriptors(torch.from_numpy(image)[None])
            if local_descriptors.shape[2] != width:
                raise ExportError(
                    f"backbone {pipeline.name} gives {local_descriptors.shape[2]} channels, the head takes {width}"
                )
            norm = max(norm, float(local_descriptors.norm(dim=2).max()))
            found.append(functional_call(head, state, (local_descriptors,))[0].numpy())
            if not np.isfinite(found[-1]).all():
                size = f"{image.shape[0]}x{image.shape[1]}"
                raise ExportError(f"the descriptor of a golden image of {size} is not finite in {dtype}")
    return found, norm


def _normalized(pipeline: Pipeline, image: Array) -> Tensor:
    """Return what the backbone takes (1,3,H,W) in FP32, of an image (H,W,3)."""
    pixels = torch.from_numpy(image)[None].float()
    return ((pixels - torch.tensor(pipeline.images.mean)) / torch.tensor(pipeline.images.std)).permute(0, 3, 1, 2)
