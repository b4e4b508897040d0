"""What a terminal may get: colours of verdicts, and a cursor that moves."""

import os
import re
from typing import Any

RED = "1;31"
COLOURS = {"PASS": "32", "FAIL": RED, "NOT_RUN": "33", "NOT_JUDGED": "35"}
"""The colour of each verdict, beside its word. Source: ECMA-48, Select Graphic Rendition."""

_VERDICT = re.compile(rf"^({'|'.join(COLOURS)})(?=\s|$)")


def is_plain(stream: Any) -> bool:
    """Return True if a stream is no terminal that obeys control sequences: a file, a pipe, or TERM says "dumb"."""
    return not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown")


def has_colours(stream: Any) -> bool:
    """Return True if a stream is a terminal whose user has not asked for text without colours.

    Source: https://no-color.org: NO_COLOR with any value that is not empty.
    """
    return not is_plain(stream) and not os.environ.get("NO_COLOR")


def painted(text: str, colour: str) -> str:
    r"""Return a text in a colour.

    >>> painted("FAIL", RED)
    '\x1b[1;31mFAIL\x1b[0m'
    """
    return f"\x1b[{colour}m{text}\x1b[0m"


def with_verdict_painted(line: str) -> str:
    r"""Return a line with the verdict that it starts with in its colour.

    >>> with_verdict_painted("NOT_RUN  m.engine"), with_verdict_painted("PASSED")
    ('\x1b[33mNOT_RUN\x1b[0m  m.engine', 'PASSED')
    """
    return _VERDICT.sub(lambda found: painted(found[1], COLOURS[found[1]]), line)
