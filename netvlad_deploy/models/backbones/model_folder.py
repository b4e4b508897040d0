"""A network in a folder of the library transformers: config, weights and image input, read from this folder alone.

Nothing is fetched, no code of the folder is run, and weights are read from `.safetensors` files alone. The image input
is that of `preprocessor_config.json`; a rule that cannot be followed to the letter is refused.

Source: huggingface/transformers, image_processing_backends.py, models/convnext/image_processing_convnext.py (sizes
below 384 are resized more and cut) and models/efficientnet/image_processing_efficientnet.py (a second division by the
deviation).
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.backbones.networks import Backbone
from netvlad_deploy.models.backbones.transformers_networks import BEYOND, KINDS, build, shown
from netvlad_deploy.models.weights_file import read_tensors
from netvlad_deploy.spec.images import BICUBIC, BILINEAR, BOX, LANCZOS, NEAREST_CENTRE, ImageInput, Resize, Size
from netvlad_deploy.support.formats import naming, reading

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")

MOST_BYTES: Final = 2**22
"""Largest JSON file that is read; labels of ImageNet-21k take a tenth of it."""

FILTERS_BY_NUMBER: Final = {0: NEAREST_CENTRE, 1: LANCZOS, 2: BILINEAR, 3: BICUBIC, 4: BOX}
"""By Pillow's number in `resample`, the filter."""

STEPS: Final = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
"""Steps of a preprocessor that are followed."""

CROPPED_BELOW: Final = 384
"""Shortest side from which on the preprocessor of ConvNeXT, which ResNet uses too, resizes without a crop."""


def folder_backbone(folder: str) -> Backbone:
    """Return the backbone in a folder, with its weights and its image input.

    Raises: InputError if the folder lacks a file, or holds a model or a preprocessor that is not known.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder} is no folder: --backbone hf:FOLDER names one with {CONFIG} and {WEIGHTS}")
    config = _json(path / CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{path / CONFIG}: model_type is {kind!r:.80}, expected {', '.join(KINDS)}")
    if "quantization_config" in config:
        raise InputError(f"{path / CONFIG}: the weights are quantized: save the model in float32 or float16")
    if not (path / WEIGHTS).is_file() and not (path / INDEX).is_file():
        pickled = next((name for name in PICKLED if (path / name).is_file()), None)
        beside = f" beside {pickled}, whose pickle is not read: save the model again as safetensors" if pickled else ""
        raise InputError(f"{folder} lacks {WEIGHTS}{beside}")
    with naming(path / PREPROCESSOR):
        images = image_input(_json(path / PREPROCESSOR))
    settings = {name: value for name, value in config.items() if name != "auto_map"}
    return Backbone(
        name=f"hf:{folder}",
        build=partial(build, kind, settings),
        images=images,
        beyond=BEYOND,
        weights=partial(folder_weights, path),
        shown=partial(shown, kind, settings, adapts=False),
    )


def folder_weights(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a folder, of one file or of those that its index names.

    Raises: InputError if a file is missing or damaged, or lies outside the folder.
    """
    if (path / WEIGHTS).is_file():
        return read_tensors(path / WEIGHTS)
    index = _json(path / INDEX).get("weight_map")
    files = sorted(set(index.values())) if isinstance(index, dict) and all(map(_is_plain, index.values())) else []
    if not files:
        raise InputError(f"{path / INDEX} names no .safetensors file of this folder")
    return {name: tensor for file in files for name, tensor in read_tensors(path / file).items()}


def image_input(record: Mapping[str, Any]) -> ImageInput:
    """Return the image input that a preprocessor's record describes.

    Raises: InputError if a step of it cannot be followed.

    >>> pixels = {"rescale_factor": 1 / 255, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    >>> image_input({"size": {"shortest_edge": 256}, "resample": 3, **pixels}).resize
    Resize(size=None, longest=None, shortest=256, cover=None, filter='bicubic')
    """
    strange = [name for name, value in record.items() if name.startswith("do_") and value and name not in STEPS]
    if strange or record.get("rescale_offset"):
        raise InputError(f"{', '.join(strange) or 'rescale_offset'} is asked for, which cannot be followed")
    if not record.get("do_rescale", True) or abs(255 * _number(record, "rescale_factor", 1 / 255) - 1) > 1e-3:
        raise InputError("values are not rescaled by 1/255, as the graph does it")
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if record.get("do_normalize", True):
        mean, std = _three(record, "image_mean"), _three(record, "image_std")
    if record.get("include_top"):  # the preprocessor of EfficientNet divides twice
        std = tuple(value * value for value in std)
    resize, crop = _resize(record)
    if record.get("do_center_crop", "crop_size" in record and "crop_pct" not in record):
        crop = _square_or_size(record.get("crop_size"), "crop_size")
    red, green, blue = (255 * value for value in mean)
    wide_red, wide_green, wide_blue = (255 * value for value in std)
    return ImageInput(mean=(red, green, blue), std=(wide_red, wide_green, wide_blue), resize=resize, crop=crop)


def _resize(record: Mapping[str, Any]) -> tuple[Resize, Size | None]:
    """Return the resize of a preprocessor, and the crop that is a part of it."""
    if not record.get("do_resize", True):
        return Resize(), None
    number, size = record.get("resample", 2), record.get("size")
    if not isinstance(number, int) or isinstance(number, bool) or number not in FILTERS_BY_NUMBER:
        expected = ", ".join(map(str, FILTERS_BY_NUMBER))
        raise InputError(f"resample is {json.dumps(number)[:80]}, expected {expected}")
    kernel = FILTERS_BY_NUMBER[number]
    kind = str(record.get("image_processor_type") or record.get("feature_extractor_type") or "")
    edge = size if isinstance(size, int) else size.get("shortest_edge") if isinstance(size, dict) else None
    if "crop_pct" in record and edge is not None:
        edge = _length(edge, "size")
        if edge >= CROPPED_BELOW:
            return Resize(size=(edge, edge), filter=kernel), None
        longer = int(edge / _number(record, "crop_pct", 224 / 256))
        return Resize(shortest=longer, filter=kernel), (edge, edge)
    if isinstance(size, int) and kind.startswith("ViT"):
        return Resize(size=(_length(size, "size"),) * 2, filter=kernel), None
    if edge is not None and (not isinstance(size, dict) or set(size) == {"shortest_edge"}):
        return Resize(shortest=_length(edge, "size"), filter=kernel), None
    return Resize(size=_square_or_size(size, "size"), filter=kernel), None


def _square_or_size(value: Any, name: str) -> Size:
    """Return a height and width, given as one number or as both."""
    if isinstance(value, int):
        return _length(value, name), _length(value, name)
    if not isinstance(value, dict) or set(value) != {"height", "width"}:
        raise InputError(f"{name} is {json.dumps(value)[:80]}, expected height and width, or shortest_edge alone")
    return _length(value["height"], name), _length(value["width"], name)


def _length(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 16_384:
        raise InputError(f"{name} holds {value!r:.80}, expected pixels from 1 to 16384")
    return value


def _number(record: Mapping[str, Any], name: str, default: float) -> float:
    value = record.get(name, default)
    if not _is_number(value) or value <= 1e-6:
        raise InputError(f"{name} is {value!r:.80}, expected a number above 0")
    return float(value)


def _is_number(value: Any) -> bool:
    """Return True for a number of JSON that is no Infinity or NaN, and not as large as no mean or deviation is."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e6 < value < 1e6


def _three(record: Mapping[str, Any], name: str) -> tuple[float, ...]:
    values = record.get(name)
    if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
        raise InputError(f"{name} is {json.dumps(values)[:80]}, expected three numbers for R, G and B")
    if name == "image_std" and min(values) <= 0:
        raise InputError(f"{name} is {values}, expected numbers above 0")
    return tuple(map(float, values))


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises: InputError if it is missing, larger than MOST_BYTES or no JSON object.
    """
    with reading(path), path.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} is over {MOST_BYTES} bytes, which no settings are")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no settings by name")
    return record


def _is_plain(name: Any) -> bool:
    """Return True if a name in an index is that of a safetensors file in the same folder."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) is not None
