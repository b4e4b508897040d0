"""Golden images for a pipeline: the unfolded torch module in float64, and how far each rounding moves it."""

import contextlib
import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.float64_convolutions import Float64Convolutions
from netvlad_deploy.export.seeded_rounding import RoundedBackbone, RoundedHead
from netvlad_deploy.models.affine import in_float64
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import FP32, TF32, Golden, distances, golden_image, golden_sizes
from netvlad_deploy.support.arrays import Array, Float64

SEEDS = range(2)
"""Of the roundings to 11 bits that are tried on every golden image but the last, which may be large: in all four."""

LEAST_DISTANCE = 2.0**-24
"""Keeps the ratio of two distances finite."""


def make_goldens(pipeline: Pipeline, precision: str) -> tuple[tuple[Golden, ...], float]:
    """Return golden images with the unfolded module's float64 descriptors, and the largest norm of a local descriptor.

    Their distances are those of FP32 and of the graph's precision, of an FP32 graph those of TF32, in which an engine
    may compute it.

    Raises: ExportError if the feature map has another width than the head takes, or a descriptor is not finite.
    """
    images = [golden_image(*size, seed=seed) for seed, size in enumerate(golden_sizes(pipeline.images))]
    exact, norm = _exact(pipeline, images)
    single = _Single(pipeline)
    narrow = TF32 if precision == FP32 else precision
    fp32 = _distances(single.descriptors(images), exact)
    if not np.isfinite(fp32).all():
        raise ExportError("the descriptor of a golden image is not finite in torch.float32")
    tries = [_distances(single.descriptors(images[:-1], narrow, seed), exact[:-1]) for seed in SEEDS]
    rounded = [max(distances_of_one) for distances_of_one in zip(*tries, strict=True)]
    rounded.append(max(rounded) * max(1.0, fp32[-1] / max(LEAST_DISTANCE, *fp32[:-1])))
    goldens = tuple(
        Golden(image=image, descriptor=wanted, distances={FP32: by_fp32, narrow: by_rounding})
        for image, wanted, by_fp32, by_rounding in zip(images, exact, fp32, rounded, strict=True)
    )
    return goldens, norm


def _exact(pipeline: Pipeline, images: list[Array]) -> tuple[list[Float64], float]:
    """Return the descriptor (P,) of each image (H,W,3) in float64, and the largest norm of a local descriptor."""
    width, twin, aggregate = pipeline.head.spec.feature_size, _twin(pipeline, torch.float64), in_float64(pipeline.head)
    found, norm = [], 0.0
    with torch.inference_mode(), Float64Convolutions(strips=True):
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
                raise ExportError(f"the descriptor of a golden image of {size} is not finite in torch.float64")
    return found, norm


class _Single:
    """The unfolded module in FP32, a large projection not copied."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._twin, self._head = _twin(pipeline, torch.float32), pipeline.head
        self._state = {name: tensor.float() for name, tensor in pipeline.head.state_dict().items()}

    def descriptors(self, images: Sequence[Array], precision: str = FP32, seed: int = 0) -> list[Array]:
        """Return the descriptor (P,) of each image (H,W,3), rounded on the way as in a precision, on a seed's grid."""
        backbone: AbstractContextManager[Any] = contextlib.nullcontext()
        head: AbstractContextManager[Any] = contextlib.nullcontext()
        if precision != FP32:
            half, fixed = precision.startswith("fp16"), tuple(self._state.values())
            backbone = RoundedBackbone(seed, half=half)
            head = RoundedHead(seed, fixed=fixed, stored=half, logits=precision == "fp16")
        found = []
        with torch.inference_mode():
            for image in images:
                with backbone:
                    local_descriptors = self._twin.local_descriptors(torch.from_numpy(image)[None])
                with head:
                    found.append(functional_call(self._head, self._state, (local_descriptors,))[0].numpy())
        return found


def _twin(pipeline: Pipeline, dtype: torch.dtype) -> Pipeline:
    """Return the pipeline with a copy of its backbone, and its normalisation, in a type; the head is the same."""
    twin = Pipeline(copy.deepcopy(pipeline.backbone).to(dtype), pipeline.head, pipeline.images, name=pipeline.name)
    twin.mean, twin.std = (torch.tensor(values, dtype=dtype) for values in (pipeline.images.mean, pipeline.images.std))
    return twin


def _distances(got: Iterable[Array], wanted: Iterable[Float64]) -> list[float]:
    """Return the distance of each descriptor (P,) from the one that it should be."""
    return [float(distances(one, exact)) for one, exact in zip(got, wanted, strict=True)]
