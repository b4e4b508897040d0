"""The text of a sidecar: a JSON object with its schema and the hash of its own canonical text."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from netvlad_deploy.errors import ArtifactError

SCHEMA: Final = "netvlad-deploy/artifact/4"

MAX_SIDECAR_BYTES: Final = 16 * 2**20
"""Largest sidecar that is read: the longest list of kernels takes far less."""

REMEDY: Final = "export or build again"


def seal(record: Mapping[str, Any]) -> bytes:
    """Return the text of a record with its schema and its hash added.

    >>> unseal(seal({"precision": "fp32"}), "m.onnx.json")
    {'precision': 'fp32'}
    """
    record = {**record, "schema": SCHEMA}
    return _canonical({**record, "sidecar_sha256": record_hash(record)})


def unseal(content: bytes, name: str) -> dict[str, Any]:
    """Return the record in the text of a sidecar, whose file is called `name` in errors.

    Raises: ArtifactError if it is no sidecar, was changed after it was written, or has another schema.
    """
    try:
        record = json.loads(content)
        canonical = _canonical(record)
        claimed = record.pop("sidecar_sha256")
        proven = record_hash(record) == claimed
        schema = record.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{name} is not a sidecar: {REMEDY}") from error
    if not proven or content != canonical:
        raise ArtifactError(f"{name} was changed after it was written: {REMEDY}")
    if schema != SCHEMA:
        raise ArtifactError(f"{name} has schema {str(schema)[:80]}, expected {SCHEMA}: {REMEDY}")
    return dict(record)


def record_hash(record: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex digits, of a record as JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
