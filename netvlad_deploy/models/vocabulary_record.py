"""What a vocabulary file says of itself in the metadata of safetensors: its backbone, its images, how it was fitted.

Only names and numbers: nothing is imported because a file says so.
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
        return {METADATA_KEY: json.dumps(asdict(self), sort_keys=True)}

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> "VocabularyRecord | None":
        """Return the record in the metadata of a file, None if there is none.

        Raises: InputError if it is damaged.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            return from_record(cls, json.loads(metadata[METADATA_KEY]))
        except (ValueError, RecursionError) as error:
            raise InputError(f"the record of its vocabulary is damaged ({error}): fit it again") from error
