"""What a vocabulary file says of itself in the metadata of safetensors: its backbone, its images, how it was fitted.

Only names and numbers: nothing is imported because a file says so.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from netvlad_deploy.errors import InputError
from netvlad_deploy.images import ImageInput, Resize

KEY = "netvlad-deploy/vocabulary/1"


@dataclass(frozen=True, kw_only=True)
class VocabularyRecord:
    """How a vocabulary was fitted.

    Args:
        backbone: its name.
        images: what was done to each image.
        num_images: how many images it was fitted on.
        num_descriptors: how many of their local descriptors the clusters were fitted on.
        seed: of the sample and of k-means.
        alpha: how sharp assignments are.
        versions: of the packages that fitted it.
    """

    backbone: str
    images: ImageInput
    num_images: int
    num_descriptors: int
    seed: int
    alpha: float
    versions: Mapping[str, str]

    def metadata(self) -> dict[str, str]:
        """Return the record as safetensors keeps it."""
        return {KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "VocabularyRecord | None":
        """Return the record in the metadata of a file, None if there is none.

        Raises: InputError if it is damaged.
        """
        if KEY not in metadata:
            return None
        try:
            fields: dict[str, Any] = json.loads(metadata[KEY])
            images = fields.pop("images")
            size = images["resize"].pop("size")
            resize = Resize(size=None if size is None else (int(size[0]), int(size[1])), **images["resize"])
            mean, std = (_three(images[name]) for name in ("mean", "std"))
            backbone = str(fields.pop("backbone"))
            return cls(backbone=backbone, images=ImageInput(mean=mean, std=std, resize=resize), **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the record of its vocabulary is damaged ({error}): fit it again") from error


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
