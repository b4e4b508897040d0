"""Run a part of a foreign ONNX file with ONNX Runtime on the CPU, in FP32."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.export.foreign.cut import FeatureLayout, Part, cut, feeds_of
from netvlad_deploy.export.foreign.read import ForeignModel
from netvlad_deploy.export.foreign.wrap import fixed_lengths
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import CPU, errors_of, import_onnxruntime, open_session
from netvlad_deploy.runtime.onnx_runner import ANY_IMAGES
from netvlad_deploy.runtime.onnxruntime_runner import QUIET
from netvlad_deploy.spec.images import CHANNELS, IMAGES, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, AnySpec
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.arrays import Array, Arrays

TRIED_IMAGES, TRIED_ROWS, TRIED_MOST_ROWS = 8, 100, 200
"""Shapes on which a part is tried where it takes any: small ones, since a loop over the clusters takes long."""


TRIED_SIZE = (96, 128)
"""Height and width of images whose size a head computes with, where it is free."""

TRIED_MAP = (6, 8)
"""Height and width of feature maps whose size a head computes with: an unrolled loop on a large one takes minutes."""


def shapes_of(layout: FeatureLayout) -> Profile:
    """Return the shapes on which a part is tried: those that its layout allows."""
    axes = (layout.batch, 1, 2, TRIED_IMAGES), (layout.num_features, 1, TRIED_ROWS, TRIED_MOST_ROWS)
    batch, rows = (
        AxisRange(min=least, opt=usual, max=most) if fixed is None else AxisRange(min=fixed, opt=fixed, max=fixed)
        for fixed, least, usual, most in axes
    )
    return Profile(batch=batch, num_features=rows)


class _Session:
    """A model on ONNX Runtime's CPU provider; one that is not `optimized` keeps every rounding that it asks for."""

    def __init__(self, content: bytes, name: str, *, optimized: bool = True) -> None:
        self._name = name
        onnxruntime = import_onnxruntime(CPU)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = QUIET
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._errors: tuple[type[Exception], ...] = (*errors_of(onnxruntime), ValueError)
        try:  # a ValueError is a message with names that are no UTF-8
            self._session: Any = open_session(onnxruntime, CPU, content, options, {}, name=name)
        except ValueError as error:
            raise RunError(f"ONNX Runtime cannot load {name}: its names are no text") from error

    def run(self, feeds: Mapping[str, Array], *outputs: str) -> list[Array]:
        """Return these outputs.

        Raises: RunError if ONNX Runtime fails.
        """
        try:
            found: list[Array] = self._session.run(list(outputs), dict(feeds))
        except self._errors as error:
            words, shapes = " ".join(str(error).split())[:300], ", ".join(str(each.shape) for each in feeds.values())
            raise RunError(f"{self._name} cannot run on {shapes}: {words}") from error
        return found


class WrappedModel:
    """A model with the inputs and the output of an artifact, given as its bytes.

    Raises: RunError if ONNX Runtime cannot load it.
    """

    def __init__(self, content: bytes, *, optimized: bool = True) -> None:
        self._session = _Session(content, "the file", optimized=optimized)

    def __call__(self, feeds: Mapping[str, Array], batch: int) -> Array:
        """Return the descriptor (P,) of feeds without their batch axis, computed in a batch of one item repeated.

        Raises: as `batched`.
        """
        found: Array = self.batched(_repeated(feeds, batch))[0]
        return found

    def batched(self, feeds: Mapping[str, Array]) -> Array:
        """Return the descriptors (B,P) of feeds.

        Raises: RunError if ONNX Runtime fails; InputError if it gives no vector of numbers for each item.
        """
        (found,) = self._session.run(feeds, DESCRIPTOR)
        batch = len(next(iter(feeds.values())))
        if found.ndim < 2 or len(found) != batch:
            raise InputError(f"its output is {found.shape} for a batch of {batch}, expected a vector for each")
        vectors: Array = found.reshape(batch, -1)
        return vectors

    def outputs(self, feeds: Mapping[str, Array], batch: int, *names: str) -> list[Array]:
        """Return outputs of the model, as they are, for feeds without their batch axis.

        Raises: RunError if ONNX Runtime fails.
        """
        return self._session.run(_repeated(feeds, batch), *names)


def _repeated(feeds: Mapping[str, Array], batch: int) -> Arrays:
    return {name: np.repeat(array[None], batch, axis=0) for name, array in feeds.items()}


class ForeignPart:
    """A part of a foreign file that takes local descriptors, opened for running.

    Raises: RunError if ONNX Runtime cannot load it.
    """

    name = "its head"

    def __init__(self, part: Part, layout: FeatureLayout) -> None:
        self.layout, self._part = layout, part
        self._session = _Session(part.content, self.name)

    def __call__(self, features: Array) -> Array:
        """Return what the part gives for features (B,N,D), as (B,M).

        Raises: RunError if ONNX Runtime fails, or gives no vector for each image.
        """
        arranged = self.layout.arranged(features.astype(np.float32, copy=False))
        (found,) = self._session.run(feeds_of(self._part, arranged), self._part.output)
        if not found.size or found.size % len(features):
            raise RunError(f"{self.name} gives {found.shape} for {len(features)} images, no vector for each")
        return found.reshape(len(features), -1)


def bound(model: ForeignModel, tensor: str, layout: FeatureLayout) -> tuple[FeatureLayout, tuple[int | None, ...]]:
    """Return the layout of local descriptors in a tensor for one size of the whole input, and the shape of that input.

    It is for heads that compute with the size of the image: they run on the positions of that size alone.

    Raises: RunError if the graph before the tensor cannot run.
    """
    size = TRIED_SIZE if CHANNELS in model.source_shape[1:] else TRIED_MAP
    usual = iter(size if len(model.source_shape) == len(size) + 2 else size[:1])
    lengths = [next(usual, 1) if length is None else length for length in model.source_shape[1:]]
    before = cut(model, model.source, tensor)
    given = np.zeros((layout.batch or 1, *lengths), np.float32)
    (found,) = _Session(before.content, "the graph before its head").run({model.source: given}, before.output)
    positions = tuple(length for axis, length in enumerate(found.shape) if axis not in (0, layout.axis))
    return replace(layout, positions=positions), (layout.batch, *lengths)


class ForeignRunner(Runner):
    """A part of a foreign file as a runner: local descriptors to descriptors of the layer that it is taken for."""

    def __init__(self, part: ForeignPart, spec: AnySpec) -> None:
        super().__init__(part.name, spec, inputs=(FEATURES,), outputs=(DESCRIPTOR,), profiles=(shapes_of(part.layout),))
        self._part = part

    def _run(self, feeds: Arrays) -> Arrays:
        return {DESCRIPTOR: self._part(feeds[FEATURES])}


class ForeignImageRunner(Runner):
    """A whole foreign file as a runner of images, which are normalised here, in FP32, as a pipeline's graph does it.

    Args:
        model: the file.
        output: the name of its descriptor.
        spec: the layer that it is taken for.
        images: mean and deviation.
    """

    def __init__(self, model: ForeignModel, output: str, spec: AnySpec, images: ImageInput) -> None:
        fixed = fixed_lengths(model)
        profiles = (ANY_IMAGES.with_fixed(fixed),) if fixed else ()
        super().__init__(
            "the file", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8), profiles=profiles
        )
        self._source, self._channels_last = model.source, model.source_shape[1] != CHANNELS
        self._output, self._images = output, images
        self._session = _Session(model.proto.SerializeToString(), self.name)

    def _run(self, feeds: Arrays) -> Arrays:
        mean, std = (np.array(values, np.float32) for values in (self._images.mean, self._images.std))
        pixels = (feeds[IMAGES].astype(np.float32) - mean) / std
        given = pixels if self._channels_last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        (found,) = self._session.run({self._source: given}, self._output)
        return {DESCRIPTOR: found.reshape(len(pixels), -1)}
