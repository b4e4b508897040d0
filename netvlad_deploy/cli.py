"""The command line: parse, run a verb, and turn every error into one line and an exit code.

Results go to standard output, as text or as JSON; progress and errors go to standard error.
"""

import contextlib
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import typer

from netvlad_deploy.commands.export import build, deploy, export, precision
from netvlad_deploy.commands.fit import fit
from netvlad_deploy.commands.measure import bench, doctor, inspect, validate
from netvlad_deploy.commands.output import flush_errors, standard_streams
from netvlad_deploy.commands.retrieve import embed, evaluate
from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.flags import checked
from netvlad_deploy.report.escape import printable

VERBS = (export, build, validate, bench, embed, evaluate, fit, inspect, deploy, precision, doctor)

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export a trained NetVLAD to ONNX, build a TensorRT engine, prove parity, measure latency.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    app.command()(checked(verb))

INTERNAL_ERROR = 70
INTERRUPTED = 130


def main() -> None:
    """Run the command line; every error becomes one line on standard error and its exit code."""
    try:
        with _interruptible() as interrupts, standard_streams():
            _log_to_standard_error()
            app()
    except NetVLADDeployError as error:
        _fail("interrupted" if interrupts else str(error), INTERRUPTED if interrupts else error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last door: a fault of this package, with its trace
        traceback.print_exc()
        _fail(f"internal error ({type(error).__name__}): please report the lines above", INTERNAL_ERROR)


class _Line(logging.Formatter):
    """A message on one line, whatever the names in it hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logger = logging.getLogger("netvlad_deploy")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Record Ctrl-C while raising it: torch's exporter turns the exception into one of its own."""
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    flush_errors()
    raise SystemExit(exit_code)
