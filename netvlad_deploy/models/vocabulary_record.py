"""The record in the metadata of a vocabulary file: its backbone, its image input, and how it was fitted.

It has names and numbers only: nothing is imported because a file names it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.records import from_record

METADATA_KEY = "netvlad-deploy/vocabulary/1"


@dataclass(frozen=True, kw_only=True)
class VocabularyRecord:
    """How a vocabulary was fitted.

    Args:
        backbone: the name of the backbone.
        images: the image input: resize, crop and normalisation of each image.
        num_images: number of images on which it was fitted.
        num_descriptors: number of local descriptors on which the clusters were fitted.
        seed: seed of the sample and of k-means.
        alpha: sharpness of the assignments, see `vocabulary.sharpness`.
        versions: versions of the packages that fitted it.
    """

    backbone: str
    images: ImageInput
    num_images: int
    num_descriptors: int
    seed: int
    alpha: float
    versions: Mapping[str, str]

    def metadata(self) -> dict[str, str]:
        """Return the record as the metadata of a safetensors file."""
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "VocabularyRecord | None":
        """Return the record in the metadata of a file, None if there is none.

        Raises: InputError if the record is damaged.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            return from_record(cls, json.loads(metadata[METADATA_KEY]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"the record of its vocabulary is damaged ({error}): fit it again") from error
