"""The command line: parse, run a verb, and turn every error into one line and an exit code.

Results go to standard output, as text or as JSON; progress and errors go to standard error.
"""

import contextlib
import io
import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

import typer

from netvlad_deploy.commands.export import build, deploy, export, precision
from netvlad_deploy.commands.fit import fit
from netvlad_deploy.commands.flags import checked
from netvlad_deploy.commands.measure import bench, doctor, inspect, validate
from netvlad_deploy.commands.output import flush_errors, standard_streams
from netvlad_deploy.commands.retrieve import embed, evaluate
from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.support.scratch import sweep

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
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""What ends a verb with everything cleaned up, and how the error says it. The exit code is 128 and its number."""


class _Signalled(KeyboardInterrupt):
    """A signal ends the verb.

    It is no plain KeyboardInterrupt: where one leaves the text of an `exec`, as dataclasses are made of, `python -m`
    kills itself by SIGINT in the end, whoever has caught it and whatever the exit code.

    Source: CPython, Python/pythonrun.c, run_eval_code_obj.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main() -> None:
    """Run the command line; every error becomes one line on standard error and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not if it is closed
            stream.reconfigure(errors="backslashreplace")
    try:
        with _signals(), standard_streams():
            _log_to_standard_error()
            sweep()
            app()
    except _Signalled as end:
        _fail(SIGNALS[signal.Signals(end.number)], 128 + end.number)
    except NetVLADDeployError as error:
        _fail(str(error), error.exit_code)
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
def _signals() -> Iterator[None]:
    """Raise _Signalled at a signal, and once more in the end, whatever has become of it on its way.

    Torch's exporter and a failing import turn it into errors of their own, and typer ends without a word.
    """
    received: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        received.append(number)
        raise _Signalled(number)

    caught = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in caught}  # nohup ignores SIGHUP, and so does this
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            raise _Signalled(received[0])


def _fail(message: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    flush_errors()
    raise SystemExit(exit_code)
