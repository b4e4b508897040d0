"""Run the command line inside the test's process, as `netvlad-deploy` does."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from netvlad_deploy.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def error_of(err: str) -> str:
    """Return the last line of standard error, which must be the one line of an error."""
    lines = err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in err
    return lines[-1]


def run_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[object, ...]
) -> Outcome:
    """Return the exit code and what was printed."""
    monkeypatch.setattr("sys.argv", ["netvlad-deploy", *(str(argument) for argument in arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        main()
    captured = capfd.readouterr()
    return Outcome(code=int(exit_info.value.code or 0), out=captured.out, err=captured.err)
