"""The limits of numbers and names on the command line in one table, with the reasons.

A number beyond its limit is a typing error, or would make a library fail or hang much later. Only the standard library
is imported, as in `errors`.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import UsageError

MAX_DIGITS: Final = 20
"""Digits of a number that are read: more than any limit has, and Python refuses numbers of 5,000."""


@dataclass(frozen=True)
class Limit:
    """The smallest and largest value of a number, and the reason for the largest."""

    least: float
    most: float
    reason: str

    def holds(self, value: float) -> bool:
        """Return True if a number is within the limits; NaN is not."""
        return self.least <= value <= self.most


LIMITS: Final[Mapping[str, Limit]] = {
    "batch": Limit(1, 65_536, "all of it stands in memory at once"),
    "budget_p99_ms": Limit(1e-6, 3_600_000, "one run takes no hour"),
    "bytes of input": Limit(1, 2**31, "it stands in memory once for each candidate"),
    "clusters": Limit(1, 65_536, "a descriptor has as many times D values"),
    "concurrency": Limit(1, 64, "each request has a thread and memory of its own"),
    "decoders": Limit(1, 256, "no more threads than a machine has cores are of use, and each holds an image"),
    "depth": Limit(8, 32, "no file of images holds more bits of grey"),
    "duration": Limit(0.1, 3_600, "seconds for each candidate: an hour shows what a day does"),
    "expect_cases": Limit(1, 10_000, "no artifact has as many cases"),
    "feature_norm": Limit(1e-12, 1e12, "FP32 squares of the values beyond overflow or vanish"),
    "feature_size": Limit(1, 65_536, "every cluster has as many values"),
    "ghost_clusters": Limit(0, 65_536, "they are clusters, too"),
    "height": Limit(1, 32_768, "no photo is larger"),
    "instances": Limit(1, 64, "each has the model in memory once more"),
    "max_regression": Limit(0, 1_000, "in percent: what may be eleven times as slow needs no budget"),
    "memory": Limit(1, 2**24, "in MiB: no machine has 16 TiB"),
    "min_recall": Limit(0, 1, "a share of the queries: 0.86 for 86 %"),
    "num_features": Limit(1, 1_048_576, "positions of an image of 16,384 x 16,384 at stride 16"),
    "parts": Limit(1, 100_000, "no cluster has as many machines"),
    "points of a sweep": Limit(1, 1_000, "each takes as long as a bench"),
    "positions": Limit(1, 2**31 - 1, "TensorRT counts them in 31 bits"),
    "samples": Limit(1, 200_000, "k-means sees no more of all images together"),
    "seed": Limit(0, 2**32 - 1, "scikit-learn takes no larger one"),
    "shard_size": Limit(1, 1_048_576, "its descriptors stand in memory at once"),
    "threads": Limit(1, 256, "no more threads than a machine has cores are of use, and each is started"),
    "top": Limit(1, 1_000, "nobody reads more matches of a query"),
    "values of a layer": Limit(1, 2**24, "K + G times D, and untrained: for trying things"),
    "whitening": Limit(1, 65_536, "it needs one image more than it has values"),
    "width": Limit(1, 32_768, "no photo is larger"),
    "within": Limit(0, 1_000_000, "places in one folder of images"),
    "workspace_mib": Limit(1, 2**20, "no GPU has a TiB of memory"),
}

MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 4_095
"""Longest name of a file, and longest path, on Linux."""


def check_limit(name: str, value: float) -> None:
    """Refuse a number outside the limits of its name; NaN is outside all limits.

    Raises: UsageError with the limits and the reason.
    """
    limit = LIMITS[name]
    if limit.holds(value):
        return
    reason = "" if value < limit.least else f" ({limit.reason})"
    try:
        found = f"{value:.12g}"
    except OverflowError:  # a whole number that no float can hold
        found = "a number of over 308 digits"
    raise UsageError(f"{name.replace('_', '-')} is {found}, expected {range_words(name)}{reason}")


def range_words(name: str) -> str:
    """Return the limits of a name in words.

    >>> range_words("depth")
    '8 to 32'
    """
    limit = LIMITS[name]
    return f"{limit.least:.12g} to {limit.most:.12g}"


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises: UsageError that lists them.

    >>> check_choice("precision", "int8", ("fp32", "fp16"))
    Traceback (most recent call last):
    netvlad_deploy.errors.UsageError: precision 'int8' is unknown: choose fp32 or fp16
    """
    if value not in choices:
        listed = f"one of {', '.join(choices)}" if len(choices) > 2 else " or ".join(choices)
        raise UsageError(f"{name} {value[:40]!r} is unknown: choose {listed}")


def whole_number(text: str) -> int:
    """Return the whole number that a text of digits says, cut to MAX_DIGITS: still beyond every limit.

    >>> whole_number("0064")
    64
    """
    return int(text.lstrip("0")[:MAX_DIGITS] or "0")


def check_path(name: str, text: str) -> None:
    """Refuse a path that no file can have; without this check its first use fails, in the words of the system.

    Raises: UsageError if it is empty, too long, holds a NUL, or is a link that leads to itself.
    """
    label = name.replace("_", "-")
    if not text:
        raise UsageError(f"{label} is empty: name a file or a folder")
    if "\0" in text:
        raise UsageError(f"{label} holds a NUL, which no name can: {text.replace(chr(0), '?')}")
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > MAX_NAME_BYTES:
        raise UsageError(f"{label} has a name of {longest} bytes, expected at most {MAX_NAME_BYTES}: {text[:40]}...")
    if (size_bytes := len(os.fsencode(text))) > MAX_PATH_BYTES:
        raise UsageError(f"{label} has {size_bytes} bytes, expected at most {MAX_PATH_BYTES}: {text[:40]}...")
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{label} is a link that leads to itself: {text}") from error
