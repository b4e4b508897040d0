"""Golden images for a pipeline: the unfolded torch module in float64, and how far FP32 is from it."""

import copy
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from netvlad_deploy.arrays import Array
from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.wide_convolutions import WideConvolutions
from netvlad_deploy.goldens import Golden, distances, golden_image, golden_sizes
from netvlad_deploy.models.affine import in_float64
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline


def make_goldens(pipeline: Pipeline) -> tuple[tuple[Golden, ...], float]:
    """Return golden images with the unfolded module's float64 descriptors, and the largest norm of a local descriptor.

    Raises: ExportError if the feature map has another width than the head takes, or something is not finite.
    """
    images = [golden_image(*size, seed=seed) for seed, size in enumerate(golden_sizes(pipeline.images))]
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
    aggregate = _computed_in(dtype, head)
    found, norm = [], 0.0
    with torch.inference_mode(), WideConvolutions(strips=True):
        for image in images:
            local_descriptors = twin.local_descriptors(torch.from_numpy(image)[None])
            if local_descriptors.shape[2] != width:
                raise ExportError(
                    f"backbone {pipeline.name} gives {local_descriptors.shape[2]} channels, the head takes {width}"
                )
            norm = max(norm, float(local_descriptors.norm(dim=2).max()))
            found.append(aggregate(local_descriptors)[0].numpy())
            if not np.isfinite(found[-1]).all():
                size = f"{image.shape[0]}x{image.shape[1]}"
                raise ExportError(f"the descriptor of a golden image of {size} is not finite in {dtype}")
    return found, norm


def _computed_in(dtype: torch.dtype, head: NetVLAD) -> Callable[[Tensor], Tensor]:
    """Return a head that computes in a type, a large projection not copied."""
    if dtype is torch.float64:
        return in_float64(head)
    state = {name: tensor.to(dtype) for name, tensor in head.state_dict().items()}
    return lambda local_descriptors: functional_call(head, state, (local_descriptors,))
