"""What a file of descriptors says of itself: the artifact that made them, and what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from netvlad_deploy.errors import InputError
from netvlad_deploy.support.formats import shown
from netvlad_deploy.support.limits import LIMITS
from netvlad_deploy.support.records import from_record

DESCRIPTORS_SCHEMA: Final = "netvlad-deploy/descriptors/1"
MAX_HEADER_BYTES: Final = 60_000
"""Longest header, which HDF5 keeps with the file's other attributes in 64 KiB."""

StoredDtype: TypeAlias = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class DescriptorHeader:
    """The artifact that made descriptors, and what these are; two files belong together if their headers are equal.

    Args:
        artifact: its file's name.
        sha256: its file's SHA-256 in hex digits.
        precision: fp32 or fp16, in which it computes.
        descriptor_size: the values of one descriptor.
        dtype: in which the file holds them.
        spec: the sizes of its layer, as its sidecar has them.
        images: the preparation of its images, None where it takes local descriptors.
    """

    artifact: str
    sha256: str
    precision: str
    descriptor_size: int
    dtype: StoredDtype
    spec: Mapping[str, Any]
    images: Mapping[str, Any] | None

    def to_json(self) -> str:
        """Return the header as one line of JSON, its keys sorted."""
        return json.dumps({**asdict(self), "schema": DESCRIPTORS_SCHEMA}, sort_keys=True, separators=(",", ":"))


def header_from_json(text: str | bytes) -> DescriptorHeader | None:
    """Return the header in a text, None if the text is other JSON or none: then somebody else wrote the file.

    Raises: InputError if it is a header that was changed, or of another version.
    """
    try:
        record = json.loads(text) if len(text) <= MAX_HEADER_BYTES else None
    except (ValueError, RecursionError):
        return None
    schema = record.pop("schema", None) if isinstance(record, dict) else None
    if not isinstance(schema, str) or not schema.startswith(DESCRIPTORS_SCHEMA.rpartition("/")[0]):
        return None
    if schema != DESCRIPTORS_SCHEMA:
        raise InputError(f"has a header of {shown(schema)}, expected {DESCRIPTORS_SCHEMA}: embed again")
    try:
        return from_record(DescriptorHeader, record)
    except ValueError as error:
        raise InputError(f"has a damaged header ({error}): embed again") from error


MAX_DESCRIPTOR_SIZE: Final = int(LIMITS["values of a layer"].most)
"""Most values of a descriptor, as of a layer."""
