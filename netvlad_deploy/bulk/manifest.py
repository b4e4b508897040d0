"""What a run of `embed` was asked for, as the file `manifest.json` of its plan keeps it.

Whatever changes a single byte of the result stands in it, so that a run that goes on can prove that it is the same one.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.support.sidecar import Form, read_sealed, record_hash, seal

MANIFEST: Final = Form(
    kind="the manifest of an embedding",
    schema="netvlad-deploy/embedding/1",
    hash_name="manifest_sha256",
    remedy="remove its folder, or begin again with --force",
)
OF_THE_LISTING: Final = ("items", "shards", "listing_sha256")
"""Fields that are known when all inputs have been listed."""

MAX_SHOWN: Final = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs as they were typed: `open_sources` finds the same items by them, in another process too."""

    inputs: tuple[str, ...]
    listing: str | None = None
    column: str | None = None
    topic: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that the result of a run depends on.

    Args:
        version: the version of this package.
        target: the name of the file that is made, empty where the folder of the plan is the target.
        header: what the files of descriptors say of themselves: the artifact with its hash, its spec, the dtype.
        backend: the backend that was asked for, None for the artifact's own.
        head: which head of several, None for the only one.
        batch: items that run at once.
        given: where the items come from.
        shard_size: items of a shard; the last one may have fewer.
        items: how many there are.
        shards: how many there are.
        listing_sha256: SHA-256 of the listing of all items: names, files, sizes, times of their last change.
    """

    version: str
    target: str
    header: DescriptorHeader
    backend: str | None
    head: str | None
    batch: int
    given: Given
    shard_size: int
    items: int = 0
    shards: int = 0
    listing_sha256: str = ""

    @property
    def sha256(self) -> str:
        """Return the hash of all of it, which the record of each shard repeats."""
        return record_hash(self.record)

    @property
    def record(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    def content(self) -> bytes:
        """Return the bytes of its file."""
        return seal(self.record, MANIFEST)


def read_manifest(content: bytes, name: str) -> Manifest:
    """Return the manifest in the bytes of a file, which is called `name` in errors.

    Raises: ArtifactError if it is damaged, or was written by another version of this package that keeps other fields.
    """
    return read_sealed(Manifest, content, name, MANIFEST)


def differences(was: Manifest, wanted: Manifest, *, apart: tuple[str, ...] = ()) -> list[str]:
    """Return in words what a run was asked for and another one is not, field by field; `apart` are not compared.

    The counts are not compared either: `wanted` has not been listed yet.
    """
    before, after = was.record, wanted.record
    return [
        f"{name} was {_shown(old)}, is {_shown(new)}"
        for name, old, new in _unequal(before, after)
        if name.split(".")[0] not in (*OF_THE_LISTING, *apart)
    ]


def _unequal(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the names of fields that differ, with both values, to the bottom of both records."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from _unequal(before.get(key), after.get(key), f"{name}.{key}" if name else key)
    elif before != after:
        yield name, before, after


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
