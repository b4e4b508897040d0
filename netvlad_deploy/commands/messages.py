"""Messages on standard error: how many there are, each on one line."""

import logging
import sys
from typing import Annotated, TextIO

import typer

from netvlad_deploy.errors import UsageError
from netvlad_deploy.report.escape import printable

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each step, with the seconds since the start.")]

_LOGGER = logging.getLogger("netvlad_deploy")
_LEVELS = {(False, False): logging.INFO, (True, False): logging.WARNING, (False, True): logging.DEBUG}
"""The least level of a message that is said, by quiet and verbose."""


class _OneLineFormatter(logging.Formatter):
    """Put a message on one line, even if a name in it has line breaks; after the seconds if each step is said."""

    def format(self, record: logging.LogRecord) -> str:
        line = printable(super().format(record))
        return f"{record.relativeCreated / 1e3:8.3f} s  {line}" if _LOGGER.level == logging.DEBUG else line


class _StandardError(logging.StreamHandler[TextIO]):
    """Write to standard error as it is at that moment: a bar on a terminal puts a stream of its own there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Return standard error."""
        return sys.stderr


def open_messages() -> None:
    """Send the messages of this package to standard error, as many as without an option."""
    handler = _StandardError()
    handler.setFormatter(_OneLineFormatter())
    _LOGGER.handlers = [handler]
    _LOGGER.setLevel(logging.INFO)


def choose_messages(*, quiet: bool, verbose: bool) -> None:
    """Say less or more from now on; what was chosen before the verb holds behind it.

    Raises: UsageError if both were chosen, before the verb or behind it.
    """
    quiet, verbose = quiet or _LOGGER.level == logging.WARNING, verbose or _LOGGER.level == logging.DEBUG
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other: leave one of them out")
    _LOGGER.setLevel(_LEVELS[quiet, verbose])
