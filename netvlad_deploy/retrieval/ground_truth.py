"""The database images that are right for a query: from a file, or from the order of two folders of one walk."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.support.arrays import Array, Arrays, Float64, read_arrays
from netvlad_deploy.support.formats import reading, said

LOG = logging.getLogger(__name__)

Positives: TypeAlias = Mapping[str, frozenset[str]]
"""The names of the right database images of each query."""

LARGEST_TRUTH_BYTES: Final = 2**28
"""A larger file of JSON is not read: this holds the names of some millions of right images."""

QUERY_PLACES, DATABASE_PLACES, RADIUS = "utmQ", "utmDb", "posDistThr"
NAMES: Final = {QUERY_PLACES: "qImage", DATABASE_PLACES: "dbImage"}
"""The arrays of a published ground truth, and those of the names in the order of its rows.

Source: QVPR/Patch-NetVLAD, patchnetvlad/tools/datasets.py; the names as in Nanne/pytorch-NetVlad, pittsburgh.py.
"""


def load_positives(path: Path, queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Read `{"positives": {QUERY: [NAME, ...]}}` or that mapping alone from JSON, or the places of all images.

    Places are an `.npz` file of `utmQ` (N,2), `utmDb` (M,2) and `posDistThr`, the largest distance of a right image.
    Rows are those of the names `qImage` and `dbImage`, or else of the sorted folders.

    Raises: InputError if the file is neither, or its names or counts are not those of the two folders.
    """
    if path.suffix.lower() == ".npz":
        return _within_reach(path, queries, database)
    with reading(path):
        size = path.stat().st_size
        if size > LARGEST_TRUTH_BYTES:
            raise InputError(
                f"{path} has {size} bytes, of a ground truth in JSON at most {LARGEST_TRUTH_BYTES} are read"
            )
        content = path.read_bytes()
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file ({said(error)}): name JSON or .npz") from error
    mapping = record.get("positives", record) if isinstance(record, dict) else record
    if not isinstance(mapping, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in mapping.values()
    ):
        raise InputError(f'{path} is no ground truth: expected {{"positives": {{"query.jpg": ["database.jpg", ...]}}}}')
    _check_names(path, "query", mapping, queries)
    _check_names(path, "database", (name for names in mapping.values() for name in names), database)
    return {query: frozenset(names) for query, names in mapping.items()}


def positives_within(places: int, queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Return the images at most this many places from the query's own place, both folders in sorted order.

    Raises: UsageError if the folders differ in length: their places do not correspond; or if their order by letters,
        as it is here, and that by numbers, as they were taken, are not the same.
    """
    if len(queries) != len(database):
        raise UsageError(
            f"--within counts places in two folders of one walk, got {len(queries)} queries and {len(database)} "
            "database images: give --ground-truth"
        )
    for names in (queries, database) if places or list(queries) != list(database) else ():
        if unsure := _unsure_place(names):
            at, by_letters, by_numbers = unsure
            raise UsageError(
                f"--within counts places, and place {at} may be {by_letters} (sorted by letters) or {by_numbers} (by "
                "numbers): write all numbers with as many digits, or give --ground-truth"
            )
    return {
        query: frozenset(database[max(0, place - places) : place + places + 1]) for place, query in enumerate(queries)
    }


def _within_reach(path: Path, queries: Sequence[str], database: Sequence[str]) -> Positives:
    """Return the images at most the file's own distance from the place of each query."""
    arrays = read_arrays(path, (*NAMES, *NAMES.values(), RADIUS))  # other arrays are not read
    expected = f"{QUERY_PLACES} (N,2), {DATABASE_PLACES} (M,2) and {RADIUS}"
    if not isinstance(arrays, dict) or not {QUERY_PLACES, DATABASE_PLACES, RADIUS} <= set(arrays):
        held = ", ".join(arrays) if isinstance(arrays, dict) else "one array"
        raise InputError(f"{path} is no ground truth: of {expected} it holds {held or 'nothing'}")
    asked, known = (_places(path, key, arrays, names) for key, names in zip(NAMES, (queries, database), strict=True))
    radius = arrays[RADIUS]
    if asked.shape[1] != known.shape[1] or radius.size != 1 or radius.dtype.kind not in "iuf" or not radius.item() >= 0:
        raise InputError(f"{path} is no ground truth: places and their largest distance must be numbers: {expected}")
    positives = {}
    for query, place in zip(queries, asked, strict=True):
        near = np.linalg.norm(known - place, axis=1) <= float(radius.item())
        positives[query] = frozenset(database[index] for index in np.flatnonzero(near).tolist())
    return positives


def _places(path: Path, key: str, arrays: Arrays, names: Sequence[str]) -> Float64:
    """Return the place (N,2) of each image in a folder."""
    places, listed = arrays[key], arrays.get(NAMES[key])
    if places.ndim != 2 or places.dtype.kind not in "iuf":
        raise InputError(f"{path}: {key} is {places.dtype} {places.shape}, expected numbers (images, 2)")
    if not np.isfinite(places).all():
        raise InputError(f"{path}: {key} has places that are not finite: leave their images out")
    if len(places) != (len(names) if listed is None else listed.size):
        count = f"{len(names)} images are in the folder" if listed is None else f"{NAMES[key]} has {listed.size} names"
        raise InputError(f"{path}: {key} has {len(places)} rows, {count}: both must be of the same images")
    rows = _sorted_rows(path, key, names) if listed is None else _named_rows(path, NAMES[key], listed, names)
    return places[rows].astype(np.float64)


def _sorted_rows(path: Path, key: str, names: Sequence[str]) -> list[int]:
    """Return the rows of a sorted folder, where nothing says in which order they are.

    Raises: InputError if the order by letters and that by numbers, which Patch-NetVLAD's lists have, are not the same.
    """
    if unsure := _unsure_place(names):
        at, by_letters, by_numbers = unsure
        raise InputError(
            f"{path}: row {at} of {key} may be {by_letters} (sorted by letters) or {by_numbers} (by numbers): add "
            f"the names in the order of the rows as {NAMES[key]}"
        )
    LOG.info("%s names no images: the rows of %s are taken in the order of the sorted folder", path, key)
    return list(range(len(names)))


def _unsure_place(names: Sequence[str]) -> tuple[int, str, str] | None:
    """Return the first place where names sorted by letters and by numbers differ, with both names; None if nowhere."""
    pairs = zip(sorted(names), sorted(names, key=_by_number), strict=True)
    return next(((at, *pair) for at, pair in enumerate(pairs) if pair[0] != pair[1]), None)


def _by_number(name: str) -> list[str | int]:
    """Return a name in pieces, text and number in turn: d9 comes before d10."""
    return [int(piece) if place % 2 else piece for place, piece in enumerate(re.split(r"([0-9]+)", name))]


def _named_rows(path: Path, key: str, listed: Array, names: Sequence[str]) -> list[int]:
    """Return the row of each image in a folder, by names that may begin further up.

    Raises: InputError if they are not the names of these images.
    """
    if listed.dtype.kind != "U":
        raise InputError(f"{path}: {key} is {listed.dtype}, expected names as text")
    parts = [str(name).removeprefix("./").split("/") for name in listed.ravel()]
    for start in range(max(map(len, parts), default=0)):
        rows = {"/".join(each[start:]): row for row, each in enumerate(parts)}
        if len(rows) == len(parts) and set(rows) == set(names):
            return [rows[name] for name in names]
    first = next((name for name in names if not any(str(each).endswith(name) for each in listed.ravel())), "")
    missing = f", it lacks {first}" if first else ""
    raise InputError(f"{path}: {key} has {len(parts)} names, the folder {len(names)} images{missing}: they must agree")


def _check_names(path: Path, kind: str, named: Any, known: Sequence[str]) -> None:
    unknown = sorted(set(named) - set(known))
    if unknown:
        count = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise InputError(f"{path} names {kind} {unknown[0]}{count}, which is not in the {kind} folder")
