"""Golden images of a pipeline: descriptors of the unfolded torch module in float64, and how far rounding moves them.

A mode rounds the operands of products to 11 bits: every tensor is multiplied by a random factor, rounded, and divided
by it again. Each seed gives another rounding of the same kind, none of them exactly the graph's. Equal values are
rounded equally, as in a graph: where activations are flat, errors do not average out over an image, and noise drawn for
each value would hide that.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from netvlad_deploy.errors import ExportError
from netvlad_deploy.export.float64_products import Float64Products
from netvlad_deploy.export.fold_backbone import copied, round_kernels
from netvlad_deploy.export.half_products import has_norms
from netvlad_deploy.models.affine import in_float64
from netvlad_deploy.models.backbones.transformers_networks import TokenNetwork
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import FP32, TF32, Golden, distances, golden_image, golden_sizes
from netvlad_deploy.spec.images import CHANNELS, IMAGES
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.spec.layouts import LAYOUTS, to_grey
from netvlad_deploy.support.arrays import Array, Float64

ROUNDING_SEEDS = range(2)
"""Seeds of the roundings to 11 bits, each tried on every golden image but the last, which may be large."""

MAP_STEP = 32
"""Step of the heights and widths of golden images for a head that takes the feature map, which must be even.

A backbone of stride 16 makes such maps of them.
"""

LEAST_DISTANCE = 2.0**-24
"""Smallest divisor in a ratio of two distances, which keeps it finite."""

PRODUCTS: Final = frozenset({"conv2d", "linear", "matmul", "__matmul__", "bmm", "scaled_dot_product_attention"})
"""Functions whose operands an engine rounds in TF32 and an FP16 graph holds in FP16; second operands may be weights."""

SUMS: Final = frozenset({"add", "__add__"})
SUMS_IN_PLACE: Final = frozenset({"add_", "__iadd__"})
"""Sums in a backbone, whose operands an FP16 graph has stored in FP16; the first operand of a sum in place is kept."""

VELTKAMP_FACTOR: Final = 2.0**13 + 1
"""Factor that keeps 11 of the 24 bits of FP32. Source: Veltkamp's splitting, as in Dekker 1971."""


def make_goldens(pipeline: Pipeline, precision: str) -> tuple[tuple[Golden, ...], float]:
    """Return golden images with the unfolded module's float64 descriptors, and the largest norm of a local descriptor.

    Each has two distances from its descriptor: of the module in FP32, and in the precision of the graph. For an FP32
    graph the second is TF32, in which an engine may compute it.

    Raises: ExportError if the feature map has another width than the head takes, or a descriptor is not finite.
    """
    spec = pipeline.head.spec
    step = MAP_STEP if isinstance(spec, AggregatorSpec) and spec.takes_map else 1
    images = [golden_image(*size, seed=seed) for seed, size in enumerate(golden_sizes(pipeline.images, step=step))]
    if LAYOUTS[pipeline.images.layout].channels == 1:
        images = [np.repeat(to_grey(image), CHANNELS, axis=2) for image in images]
    exact, norm = _exact(pipeline, images)
    single = _Single(pipeline)
    compared = TF32 if precision == FP32 else precision
    fp32 = _distances(single.descriptors(images), exact)
    if not np.isfinite(fp32).all():
        raise ExportError("the descriptor of a golden image is not finite in torch.float32")
    tries = [_distances(single.descriptors(images[:-1], compared, seed), exact[:-1]) for seed in ROUNDING_SEEDS]
    rounded = [max(distances_of_one) for distances_of_one in zip(*tries, strict=True)]
    rounded.append(max(rounded) * max(1.0, fp32[-1] / max(LEAST_DISTANCE, *fp32[:-1])))
    goldens = tuple(
        Golden(feeds={IMAGES: image}, descriptor=wanted, distances={FP32: by_fp32, compared: by_rounding})
        for image, wanted, by_fp32, by_rounding in zip(images, exact, fp32, rounded, strict=True)
    )
    return goldens, norm


def _exact(pipeline: Pipeline, images: list[Array]) -> tuple[list[Float64], float]:
    """Return the descriptor (P,) of each image (H,W,3) in float64, and the largest norm of a local descriptor."""
    width, twin, aggregate = pipeline.head.spec.feature_size, _twin(pipeline, torch.float64), in_float64(pipeline.head)
    found, norm = [], 0.0
    with torch.inference_mode(), Float64Products(strips=True):
        for image in images:
            inputs = twin.head_inputs(torch.from_numpy(image)[None])
            local_descriptors = inputs[0]
            if local_descriptors.shape[2] != width:
                raise ExportError(
                    f"backbone {pipeline.name} gives {local_descriptors.shape[2]} channels, the head takes {width}"
                )
            norm = max(norm, float(local_descriptors.norm(dim=2).max()))
            found.append(aggregate(*inputs)[0].numpy())
            if not np.isfinite(found[-1]).all():
                size = f"{image.shape[0]}x{image.shape[1]}"
                raise ExportError(f"the descriptor of a golden image of {size} is not finite in torch.float64")
    return found, norm


class _Single:
    """The unfolded pipeline in FP32; its head's tensors are copied only where they have another dtype."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._twin, self._head = _twin(pipeline, torch.float32), pipeline.head
        self._state = {name: tensor.float() for name, tensor in pipeline.head.state_dict().items()}

    def descriptors(self, images: Sequence[Array], precision: str = FP32, seed: int = 0) -> list[Array]:
        """Return the descriptor (P,) of each image (H,W,3) with the roundings of a precision, drawn from a seed."""
        backbone: AbstractContextManager[Any] = contextlib.nullcontext()
        head: AbstractContextManager[Any] = contextlib.nullcontext()
        if precision != FP32:
            half, fixed = precision.startswith("fp16"), tuple(self._state.values())
            logits = precision == "fp16" and isinstance(self._head, NetVLAD)
            backbone = RoundedBackbone(seed, half=half, norms=has_norms(self._twin.backbone))
            head = RoundedHead(seed, fixed=fixed, stored=half, logits=logits)
        found = []
        with torch.inference_mode():
            for image in images:
                with backbone:
                    inputs = self._twin.head_inputs(torch.from_numpy(image)[None])
                with head:
                    found.append(functional_call(self._head, self._state, inputs)[0].numpy())
        return found


def _twin(pipeline: Pipeline, dtype: torch.dtype) -> Pipeline:
    """Return the pipeline with a copy of its backbone and its normalisation in `dtype`; the head is not copied.

    Of a vision transformer the matrices of linear layers are not copied either: `Float64Products` widens each for its
    use.
    """
    share = (nn.Linear,) if isinstance(pipeline.backbone, TokenNetwork) else ()  # others may use a matrix elsewhere
    backbone = copied(pipeline.backbone, dtype, share=share)
    twin = Pipeline(backbone, pipeline.head, pipeline.images, name=pipeline.name)
    twin.mean, twin.std = (torch.tensor(values, dtype=dtype) for values in (pipeline.images.mean, pipeline.images.std))
    return twin


def _distances(got: Iterable[Array], wanted: Iterable[Float64]) -> list[float]:
    """Return the distance of each descriptor (P,) from the float64 descriptor of the same image."""
    return [float(distances(one, exact)) for one, exact in zip(got, wanted, strict=True)]


class RoundedBackbone(TorchFunctionMode):
    """A mode that rounds the operands of a backbone's products, weights included; with `half` those of its sums too.

    With `half` values also keep to the range of FP16. A parameter is rounded once, however many images go through. Of a
    backbone with `norms`, whose sums an FP16 graph has in FP32, the results of products are rounded in their place.
    """

    def __init__(self, seed: int, *, half: bool, norms: bool = False) -> None:
        super().__init__()
        self._random, self._half, self._norms = np.random.default_rng(seed), half, half and norms
        self._parameters: dict[int, Tensor] = {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products, with `half` of sums too, then call the function."""
        name = getattr(function, "__name__", "")
        if name in PRODUCTS:
            first, second, *rest = args
            args = (self._rounded(first), self._rounded(second, kernels=name == "conv2d"), *rest)
            if name == "scaled_dot_product_attention":  # the third operand is a factor too
                args = (*args[:2], self._rounded(rest[0]), *rest[1:])
            if self._norms:
                return self._rounded(function(*args, **(kwargs or {})))
        elif self._half and not self._norms and name in SUMS | SUMS_IN_PLACE and len(args) > 1:
            first, second, *rest = args
            args = (first if name in SUMS_IN_PLACE else self._rounded(first), self._rounded(second), *rest)
        return function(*args, **(kwargs or {}))

    def _rounded(self, values: Any, *, kernels: bool = False) -> Any:
        if not _is_rounded(values):
            return values
        rounding = to_11_bits if not self._half else round_kernels if kernels else Tensor.half
        if not isinstance(values, nn.Parameter):
            return _on_a_grid(values, self._random, rounding)
        if id(values) not in self._parameters:
            self._parameters[id(values)] = _on_a_grid(values, self._random, rounding)
        return self._parameters[id(values)]


class RoundedHead(TorchFunctionMode):
    """A mode that rounds the operands of a head's products, and the tensors that an FP16 graph stores between them.

    Values keep the range of FP32: in a graph none of them can overflow.

    Args:
        seed: chooses the grids.
        fixed: its parameters, which are not rounded: a projection may be half a gigabyte, and their error is small.
        stored: round the operands of differences too, which an FP16 graph has stored in FP16.
        logits: round the logits less their mean, as an FP16 graph without wide logits does.
    """

    def __init__(self, seed: int, *, fixed: Collection[Tensor], stored: bool, logits: bool) -> None:
        super().__init__()
        self._random, self._fixed = np.random.default_rng(seed), frozenset(map(id, fixed))
        self._stored, self._logits = stored, logits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Round the operands of products, of differences and of softmax as asked for, then call the function."""
        name = getattr(function, "__name__", "")
        if name in PRODUCTS or (self._stored and name in ("sub", "__sub__")):
            args = tuple(self._rounded(each) for each in args)
        elif self._logits and name == "softmax":
            args = (self._rounded(args[0] - args[0].mean(-1, keepdim=True)), *args[1:])
        return function(*args, **(kwargs or {}))

    def _rounded(self, values: Any) -> Any:
        if not _is_rounded(values) or id(values) in self._fixed:
            return values
        return _on_a_grid(values, self._random, to_11_bits)


def _on_a_grid(values: Tensor, random: np.random.Generator, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """Return values rounded on a grid that a random factor shifts; at most 1, so that FP16 does not overflow early."""
    scale = float(random.uniform(0.5, 1))
    return rounding(values * scale).float() / scale


def to_11_bits(values: Tensor) -> Tensor:
    """Return FP32 values rounded to 11 significant bits, with the range of FP32.

    >>> to_11_bits(torch.tensor([1 + 2.0**-10, 1 + 2.0**-12]))
    tensor([1.0010, 1.0000])
    """
    large = values * VELTKAMP_FACTOR
    return large - (large - values)


def _is_rounded(values: Any) -> bool:
    return isinstance(values, Tensor) and values.dtype is torch.float32 and values.ndim > 0
