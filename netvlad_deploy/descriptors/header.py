"""What a file of descriptors says of itself: the artifact that made them, and what it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

from netvlad_deploy.errors import InputError
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import AnySpec
from netvlad_deploy.support.limits import LIMITS

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


class _Made(Protocol):
    """What is asked of an artifact."""

    @property
    def path(self) -> Any: ...
    @property
    def sha256(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def images(self) -> ImageInput | None: ...


def header_of(artifact: _Made, spec: AnySpec, *, dtype: StoredDtype = "float32") -> DescriptorHeader:
    """Return the header for descriptors of an artifact; `spec` is that of the runner, which may be one head of many."""
    return DescriptorHeader(
        artifact=artifact.path.name,
        sha256=artifact.sha256,
        precision=artifact.precision,
        descriptor_size=spec.descriptor_size,
        dtype=dtype,
        spec=json.loads(json.dumps(asdict(spec))),
        images=None if artifact.images is None else json.loads(json.dumps(asdict(artifact.images))),
    )


def header_from_json(text: str | bytes) -> DescriptorHeader | None:
    """Return the header in a text, None if the text is other JSON or none: then somebody else wrote the file.

    Raises: InputError if it is a header that was changed, or of another version.
    """
    try:
        record = json.loads(text) if len(text) <= MAX_HEADER_BYTES else None
    except (ValueError, RecursionError):
        return None
    schema = record.pop("schema", None) if isinstance(record, dict) else None
    if (
        not isinstance(record, dict)
        or not isinstance(schema, str)
        or not schema.startswith(DESCRIPTORS_SCHEMA.rpartition("/")[0])
    ):
        return None
    if schema != DESCRIPTORS_SCHEMA:
        raise InputError(f"has a header of {schema[:80]}, expected {DESCRIPTORS_SCHEMA}: embed again")
    kinds = {"descriptor_size": (int,), "spec": (dict,), "images": (dict, type(None))}
    names = [field.name for field in fields(DescriptorHeader)]
    if set(record) != set(names) or any(type(record[name]) not in kinds.get(name, (str,)) for name in names):
        raise InputError("has a damaged header: embed again")
    if record["dtype"] not in get_args(StoredDtype) or not 0 < record["descriptor_size"] <= MAX_DESCRIPTOR_SIZE:
        raise InputError("has a damaged header: embed again")
    return DescriptorHeader(**record)


MAX_DESCRIPTOR_SIZE: Final = int(LIMITS["values of a layer"].most)
"""Most values of a descriptor, as of a layer."""
