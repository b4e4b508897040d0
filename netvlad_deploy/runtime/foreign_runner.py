"""Run a part of a foreign ONNX file with ONNX Runtime on the CPU, in FP32."""

from typing import Any

import numpy as np

from netvlad_deploy.errors import RunError
from netvlad_deploy.export.foreign.cut import Layout, Part, feeds_of
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import CPU, errors_of, import_onnxruntime, open_session
from netvlad_deploy.runtime.onnxruntime_runner import QUIET
from netvlad_deploy.spec.images import CHANNELS, IMAGES, USUAL_IMAGES, ImageInput, ImageProfile
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, AnySpec
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.arrays import Array, Arrays

TRIED_IMAGES, TRIED_ROWS, TRIED_MOST_ROWS = 8, 100, 200
"""Shapes on which a part is tried where it takes any: small ones, since a loop over the clusters takes long."""


def shapes_of(layout: Layout) -> Profile:
    """Return the shapes on which a part is tried: those that its layout allows."""
    axes = (layout.batch, 1, 2, TRIED_IMAGES), (layout.num_features, 1, TRIED_ROWS, TRIED_MOST_ROWS)
    batch, rows = (
        AxisRange(min=least, opt=usual, max=most) if fixed is None else AxisRange(min=fixed, opt=fixed, max=fixed)
        for fixed, least, usual, most in axes
    )
    return Profile(batch=batch, num_features=rows)


class ForeignPart:
    """A part of a foreign file that takes local descriptors, opened for running.

    Raises: RunError if ONNX Runtime cannot load it.
    """

    def __init__(self, part: Part, layout: Layout, *, name: str) -> None:
        self.name, self.layout, self._part = name, layout, part
        onnxruntime = import_onnxruntime(CPU)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        self._errors = errors_of(onnxruntime)
        self._session: Any = open_session(onnxruntime, CPU, part.content, options, {}, name=name)

    def __call__(self, features: Array) -> Array:
        """Return what the part gives for features (B,N,D), as (B,M).

        Raises: RunError if ONNX Runtime fails, or gives no vector for each image.
        """
        feeds = feeds_of(self._part, self.layout.arranged(features.astype(np.float32, copy=False)))
        try:
            found: Array = self._session.run([self._part.output], feeds)[0]
        except self._errors as error:
            words = " ".join(str(error).split())[:300]
            raise RunError(f"{self.name} cannot run on features of {features.shape}: {words}") from error
        if not found.size or found.size % len(features):
            raise RunError(f"{self.name} gives {found.shape} for {len(features)} images, no vector for each")
        return found.reshape(len(features), -1)


class ForeignRunner(Runner):
    """A part of a foreign file as a runner: local descriptors to descriptors of the layer that it is taken for."""

    def __init__(self, part: ForeignPart, spec: AnySpec) -> None:
        super().__init__(part.name, spec, inputs=(FEATURES,), outputs=(DESCRIPTOR,), profiles=(shapes_of(part.layout),))
        self._part = part

    def _run(self, feeds: Arrays) -> Arrays:
        return {DESCRIPTOR: self._part(feeds[FEATURES])}


class ForeignImageRunner(Runner):
    """A whole foreign file as a runner of images, normalised in FP32 as a pipeline's graph does it.

    Args:
        content: the bytes of its model.
        source: the name and the shape of its input, None for a dynamic axis.
        output: the name of its descriptor.
        spec: the layer that it is taken for.
        images: mean and deviation.
        name: its name in reports.
    """

    def __init__(
        self,
        content: bytes,
        source: tuple[str, tuple[int | None, ...]],
        output: str,
        spec: AnySpec,
        images: ImageInput,
        *,
        name: str,
    ) -> None:
        self._source, shape = source
        self._channels_last = shape[1] != CHANNELS
        height, width = shape[1:3] if self._channels_last else shape[2:]
        profiles = () if height is None or width is None else (_fixed_images(shape[0], height, width),)
        super().__init__(
            name, spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8), profiles=profiles
        )
        self._output, self._images = output, images
        onnxruntime = import_onnxruntime(CPU)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        self._errors = errors_of(onnxruntime)
        self._session: Any = open_session(onnxruntime, CPU, content, options, {}, name=name)

    def _run(self, feeds: Arrays) -> Arrays:
        mean, std = (np.array(values, np.float32) for values in (self._images.mean, self._images.std))
        pixels = (feeds[IMAGES].astype(np.float32) - mean) / std
        given = pixels if self._channels_last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        try:
            found: Array = self._session.run([self._output], {self._source: given})[0]
        except self._errors as error:
            words = " ".join(str(error).split())[:300]
            raise RunError(f"{self.name} cannot run on images of {pixels.shape}: {words}") from error
        return {DESCRIPTOR: found.reshape(len(pixels), -1)}


def _fixed_images(batch: int | None, height: int, width: int) -> ImageProfile:
    usual = USUAL_IMAGES.batch if batch is None else AxisRange(min=batch, opt=batch, max=batch)
    sides = (AxisRange(min=side, opt=side, max=side) for side in (height, width))
    return ImageProfile(batch=usual, **dict(zip(("height", "width"), sides, strict=True)))
