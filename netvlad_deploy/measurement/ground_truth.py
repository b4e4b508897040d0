"""Which database images are right for a query: from a file, or from the order of two folders of one walk."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from netvlad_deploy.errors import InputError, UsageError

Positives: TypeAlias = Mapping[str, frozenset[str]]
"""The names of the right database images of each query."""


def load_positives(path: Path, queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Read `{"positives": {QUERY: [NAME, ...]}}`, or that mapping alone, in names of the two folders.

    Raises: InputError if the file is no such mapping, or names an image that is not in its folder.
    """
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a JSON file: {' '.join(str(error).split())}") from error
    mapping = record.get("positives", record) if isinstance(record, dict) else record
    if not isinstance(mapping, dict) or not all(_is_names(names) for names in mapping.values()):
        raise InputError(f'{path} is no ground truth: expected {{"positives": {{"query.jpg": ["database.jpg", ...]}}}}')
    _check_names(path, "query", mapping, queries)
    _check_names(path, "database", (name for names in mapping.values() for name in names), database)
    return {query: frozenset(names) for query, names in mapping.items()}


def positives_within(places: int, queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Return the images at most this many places from the query's own place, both folders in sorted order.

    Raises: UsageError if the folders differ in length: their places do not correspond.
    """
    if len(queries) != len(database):
        raise UsageError(
            f"--within counts places in two folders of one walk, got {len(queries)} queries and {len(database)} "
            "database images: give --ground-truth"
        )
    return {
        query: frozenset(database[max(0, place - places) : place + places + 1]) for place, query in enumerate(queries)
    }


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _check_names(path: Path, kind: str, named: Any, known: Sequence[str]) -> None:
    unknown = sorted(set(named) - set(known))
    if unknown:
        count = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(f"{path} names {kind} {unknown[0]}{count}, which is not in the {kind} folder")
