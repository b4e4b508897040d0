"""The command line: parse, run a verb, and turn every error into one line and an exit code.

Results go to standard output, as text or as JSON; progress and errors go to standard error.
"""

import contextlib
import io
import logging
import platform
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

from netvlad_deploy.commands.as_command import VerbCommand, as_command
from netvlad_deploy.commands.bars import bars_on_a_terminal
from netvlad_deploy.commands.bench import bench
from netvlad_deploy.commands.embed import embed
from netvlad_deploy.commands.export import adopt, build, deploy, export, fit, precision
from netvlad_deploy.commands.index import index, search
from netvlad_deploy.commands.measure import doctor, evaluate, inspect, validate
from netvlad_deploy.commands.messages import Quiet, Verbose, choose_messages, open_messages
from netvlad_deploy.commands.output import flush_errors, standard_streams
from netvlad_deploy.commands.package import package
from netvlad_deploy.commands.terminal import RED, has_colours, painted
from netvlad_deploy.errors import InputError, NetVLADDeployError
from netvlad_deploy.report.escape import printable
from netvlad_deploy.support.require import DISTRIBUTION, installed_version
from netvlad_deploy.support.scratch import sweep

LOG = logging.getLogger(__name__)

VERBS = (
    *(export, adopt, build, validate, bench, embed, index, search, evaluate, fit, inspect, deploy, precision, package),
    doctor,
)

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a trained NetVLAD to a proven ONNX graph and TensorRT engine, and to descriptors, an index, a server.",
    epilog="Begin with: export CHECKPOINT, then validate. COMMAND --help lists the options of a command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in VERBS:
    app.command(cls=VerbCommand)(as_command(verb))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{DISTRIBUTION} {installed_version(DISTRIBUTION) or '(not installed: no version is known)'}")
        raise typer.Exit


@app.callback()
def every_verb(
    version: Annotated[  # noqa: ARG001 - its callback has the answer
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Do what holds for every verb."""
    choose_messages(quiet=quiet, verbose=verbose)
    LOG.debug("%s %s, Python %s", DISTRIBUTION, installed_version(DISTRIBUTION), platform.python_version())


INTERNAL_ERROR = 70
"""Exit code for a fault of this package. Source: EX_SOFTWARE of sysexits.h."""

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
"""Signals after which a verb cleans up and ends, and the word of the error; the exit code is 128 + the signal."""


class _Signalled(KeyboardInterrupt):
    """A signal that ends the verb.

    It is a class of its own, since Python remembers a plain KeyboardInterrupt that leaves code run by `exec`, such as
    the code of a dataclass: `python -m` then kills itself by SIGINT in the end, although it was caught.

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
            open_messages()
            sweep()
            with bars_on_a_terminal():
                app(prog_name=DISTRIBUTION)
    except _Signalled as end:
        _fail(SIGNALS[signal.Signals(end.number)], 128 + end.number)
    except NetVLADDeployError as error:
        _fail(str(error), error.exit_code)
    except PermissionError as error:  # of a path in a folder that is closed to this user: even `Path.exists` raises it
        _fail(f"{error.filename or 'a file'} cannot be looked at: {error.strerror}", InputError.exit_code)
    except Exception as error:  # noqa: BLE001 - a fault of this package: its trace is printed
        traceback.print_exc()
        _fail(f"internal error ({type(error).__name__}): please report the lines above", INTERNAL_ERROR)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise _Signalled at a signal, and once more at the end of the `with`.

    On its way up the first one may be lost: torch's exporter and a failing import turn it into errors of their own, and
    typer exits without a message.
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
    """Print the message as one line on standard error, and exit."""
    with contextlib.suppress(OSError):
        word = painted("error:", RED) if has_colours(sys.stderr) else "error:"
        print(f"{word} {printable(' '.join(message.split()))}", file=sys.stderr)
    flush_errors()
    raise SystemExit(exit_code)
