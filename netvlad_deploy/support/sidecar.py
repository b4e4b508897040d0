"""The text of a sidecar: one JSON object that carries the hash of its own canonical text, and its schema."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from netvlad_deploy.errors import ArtifactError

SCHEMA: Final = "netvlad-deploy/artifact/4"

LARGEST_SIDECAR_BYTES: Final = 16 * 2**20
"""Far more than the longest list of kernels takes."""

AGAIN: Final = "export or build again"


def seal(record: Mapping[str, Any]) -> bytes:
    """Return the text that holds a record, its schema and its hash."""
    record = {**record, "schema": SCHEMA}
    return _canonical({**record, "sidecar_sha256": record_hash(record)})


def unseal(content: bytes, name: str) -> dict[str, Any]:
    """Return the record in the text of a sidecar; `name` is its file's.

    Raises: ArtifactError if it is no sidecar, was changed after it was written, or has another schema.
    """
    try:
        record = json.loads(content)
        canonical = _canonical(record)
        claimed = record.pop("sidecar_sha256")
        proven = record_hash(record) == claimed
        schema = record.pop("schema")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{name} is not a sidecar: {AGAIN}") from error
    if not proven or content != canonical:
        raise ArtifactError(f"{name} was changed after it was written: {AGAIN}")
    if schema != SCHEMA:
        raise ArtifactError(f"{name} has schema {str(schema)[:80]}, expected {SCHEMA}: {AGAIN}")
    return dict(record)


def record_hash(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical text."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()
