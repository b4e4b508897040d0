"""How large a number on the command line may be, and how long a name: one table, with the reasons.

A number beyond its limit is a slip of the hand, or ends in an error or a hang of a library far below. Standard library
only, like `errors`.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import UsageError

DIGITS: Final = 20
"""More than any limit has: Python refuses to read 5,000."""


@dataclass(frozen=True)
class Limit:
    """The least and the most that a number may be, and why no more."""

    least: float
    most: float
    reason: str

    def holds(self, value: float) -> bool:
        """Return whether a number is within: NaN never is."""
        return self.least <= value <= self.most


LIMITS: Final[Mapping[str, Limit]] = {
    "batch": Limit(1, 65_536, "all of it stands in memory at once"),
    "budget_p99_ms": Limit(1e-6, 3_600_000, "one run takes no hour"),
    "bytes of input": Limit(1, 2**31, "it stands in memory once for each candidate"),
    "clusters": Limit(1, 65_536, "a descriptor has as many times D values"),
    "depth": Limit(8, 32, "no file of images holds more bits of grey"),
    "duration": Limit(0.1, 3_600, "seconds for each candidate: an hour shows what a day does"),
    "feature_norm": Limit(1e-12, 1e12, "FP32 squares of the values beyond overflow or vanish"),
    "feature_size": Limit(1, 65_536, "every cluster has as many values"),
    "ghost_clusters": Limit(0, 65_536, "they are clusters, too"),
    "height": Limit(1, 32_768, "no photo is larger"),
    "num_features": Limit(1, 1_048_576, "positions of an image of 16,384 x 16,384 at stride 16"),
    "positions": Limit(1, 2**31 - 1, "TensorRT counts them in 31 bits"),
    "samples": Limit(1, 200_000, "k-means sees no more of all images together"),
    "seed": Limit(0, 2**32 - 1, "scikit-learn takes no larger one"),
    "threads": Limit(1, 256, "no more threads than a machine has cores are of use, and each is started"),
    "values of a layer": Limit(1, 2**24, "K + G times D, and untrained: for trying things"),
    "whitening": Limit(1, 65_536, "it needs one image more than it has values"),
    "width": Limit(1, 32_768, "no photo is larger"),
    "within": Limit(0, 1_000_000, "places in one folder of images"),
    "workspace_mib": Limit(1, 2**20, "no GPU has a TiB of memory"),
}

NAME_BYTES: Final = 255
PATH_BYTES: Final = 4_095
"""What Linux takes as the name of a file, and as a path."""


def check_limit(name: str, value: float) -> None:
    """Refuse a number that is outside the limits of its name; NaN is outside of all.

    Raises: UsageError with the limits and the reason.
    """
    limit = LIMITS[name]
    if limit.holds(value):
        return
    reason = "" if value < limit.least else f" ({limit.reason})"
    raise UsageError(f"{name.replace('_', '-')} is {value:.12g}, expected {range_words(name)}{reason}")


def range_words(name: str) -> str:
    """Return the limits of a name in words."""
    limit = LIMITS[name]
    return f"{limit.least:.12g} to {limit.most:.12g}"


def whole_number(text: str) -> int:
    """Return the number that digits say; of too many, one that is beyond every limit."""
    return int(text.lstrip("0")[:DIGITS] or "0")


def check_path(name: str, text: str) -> None:
    """Refuse what no file can be called, which else shows at its first use, in the words of the system.

    Raises: UsageError if it is empty, too long, holds a NUL, or is a link that leads to itself.
    """
    what = name.replace("_", "-")
    if not text:
        raise UsageError(f"{what} is empty: name a file or a folder")
    if "\0" in text:
        raise UsageError(f"{what} holds a NUL, which no name can: {text.replace(chr(0), '?')}")
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > NAME_BYTES:
        raise UsageError(f"{what} has a name of {longest} bytes, expected at most {NAME_BYTES}: {text[:40]}...")
    if len(os.fsencode(text)) > PATH_BYTES:
        raise UsageError(f"{what} has {len(os.fsencode(text))} bytes, expected at most {PATH_BYTES}: {text[:40]}...")
    try:
        Path(text).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{what} is a link that leads to itself: {text}") from error
