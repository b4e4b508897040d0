"""The text of a sealed file, such as a sidecar: a JSON object with its schema and the hash of its own text."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.support.records import RecordType, from_record

SCHEMA: Final = "netvlad-deploy/artifact/4"

MAX_SIDECAR_BYTES: Final = 16 * 2**20
"""Largest sidecar that is read: the longest list of kernels takes far less."""
REMEDY: Final = "export or build again"


@dataclass(frozen=True)
class Form:
    """What tells the sealed files of one kind from others: the kind in words, its schema, the name of the hash."""

    kind: str
    schema: str
    hash_name: str
    remedy: str


SIDECAR: Final = Form(kind="a sidecar", schema=SCHEMA, hash_name="sidecar_sha256", remedy=REMEDY)


def seal(record: Mapping[str, Any], form: Form = SIDECAR) -> bytes:
    """Return the text of a record with its schema and its hash added.

    >>> unseal(seal({"precision": "fp32"}), "m.onnx.json")
    {'precision': 'fp32'}
    """
    record = {**record, "schema": form.schema}
    return _canonical({**record, form.hash_name: record_hash(record)})


def unseal(content: bytes, name: str, form: Form = SIDECAR) -> dict[str, Any]:
    """Return the record in the text of a sealed file, which is called `name` in errors.

    Raises: ArtifactError if it is of another kind, was changed after it was written, or has another schema.
    """
    try:
        record = json.loads(content)
        canonical = _canonical(record)
        claimed = record.pop(form.hash_name)
        proven = record_hash(record) == claimed
        schema = record.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{name} is not {form.kind}: {form.remedy}") from error
    if not proven or content != canonical:
        raise ArtifactError(f"{name} was changed after it was written: {form.remedy}")
    if schema != form.schema:
        raise ArtifactError(f"{name} has schema {str(schema)[:80]}, expected {form.schema}: {form.remedy}")
    return dict(record)


def read_sealed(kind: type[RecordType], content: bytes, name: str, form: Form, **given: Any) -> RecordType:
    """Return the dataclass in the text of a sealed file, with the fields `given` beside those in the text.

    Raises: ArtifactError as `unseal`, or if the fields are those of another version of this package.
    """
    try:
        return from_record(kind, unseal(content, name, form), **given)
    except ValueError as error:
        raise ArtifactError(f"{name} has fields of another version ({error}): {form.remedy}") from error


def record_hash(record: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex digits, of a record as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
