"""Bars and colours on a terminal; plain lines in pipes, and where nobody wants more."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import HANG_S

ROOT = Path(__file__).parents[2]
VERB = """
import logging, os, signal, sys
from netvlad_deploy import cli
from netvlad_deploy.report.doctor import Check, Diagnosis
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support import progress
from netvlad_deploy.workflow import doctor

def diagnose():
    sheep = progress.Progress("counting", 4, "sheep", line_s=0.0)
    sheep.advance()
    logging.getLogger("netvlad_deploy.fold").warning("one is black")
    sheep.advance()
    if os.environ.get("INTERRUPT"):
        signal.raise_signal(signal.SIGINT)
    sheep.advance()
    sheep.advance()
    checks = tuple(Check(name=f"check {each.value}", verdict=each) for each in (Verdict.PASS, Verdict.FAIL))
    return Diagnosis(machine={"system": "PASS"}, packages={}, extras={}, gpu=None, checks=checks, broken=("it",))

doctor.diagnose = diagnose
cli.main()
"""
"""The verb doctor, with sheep to count in place of packages."""

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LINES = [f"counting: {done} of 4 sheep" for done in range(5)]


@dataclass(frozen=True)
class Seen:
    code: int
    out: str
    """What a terminal got, or the pipe of standard output."""
    err: str = ""


def environment(variables: dict[str, str]) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    return {**others, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", **variables}


def on_a_terminal(*words: str, **variables: str) -> Seen:
    """Return what a terminal gets of the verb."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    line = [sys.executable, "-c", VERB, *words]
    process = subprocess.Popen(line, stdin=its, stdout=its, stderr=its, env=environment(variables))
    os.close(its)
    text = b""
    with os.fdopen(ours, "rb", buffering=0) as stream:
        while True:
            try:
                text += stream.read(65536)
            except OSError:  # the other end is closed, as Linux says it
                break
    return Seen(process.wait(timeout=HANG_S), text.decode())


def piped(*words: str, **variables: str) -> Seen:
    line = [sys.executable, "-c", VERB, *words]
    done = subprocess.run(line, env=environment(variables), capture_output=True, text=True, check=False)
    return Seen(done.returncode, done.stdout, done.stderr)


def test_a_terminal_gets_bars_and_colours_and_keeps_its_cursor() -> None:
    seen = on_a_terminal("doctor")
    assert seen.code == 1
    assert "counting" in seen.out
    assert "━" in seen.out
    assert "one is black\r\n" in ESCAPE.sub("", seen.out), "a message stands above the bar"
    assert seen.out.rindex("\x1b[?25h") > seen.out.rindex("\x1b[?25l")
    assert "\x1b[32mPASS\x1b[0m" in seen.out
    assert "\x1b[1;31mFAIL\x1b[0m" in seen.out
    result = seen.out[seen.out.rindex("\x1b[?25h") :]
    assert "━" not in result
    assert "system: PASS" in result


def test_a_pipe_gets_lines() -> None:
    seen = piped("doctor", FORCE_COLOR="1")
    assert seen.err.splitlines() == [*LINES[:2], "one is black", *LINES[2:]]
    assert "\x1b" not in seen.out + seen.err
    assert seen.out.startswith("system: PASS")


@pytest.mark.parametrize("option", ["-q", "--quiet"])
def test_quiet_has_neither_bars_nor_lines(option: str) -> None:
    seen = on_a_terminal(option, "doctor")
    assert seen.out.startswith("one is black\r\nsystem: PASS")
    assert piped("doctor", option).err == "one is black\n"


def test_who_wants_no_colours_gets_none() -> None:
    seen = on_a_terminal("doctor", NO_COLOR="1")
    assert "0 of 4 sheep" in seen.out
    assert not re.search(r"\x1b\[[0-9;]+m", seen.out)
    assert "PASS     check PASS" in seen.out
    assert "\x1b" not in on_a_terminal("doctor", TERM="dumb").out


def test_json_has_no_colours() -> None:
    out = on_a_terminal("doctor", "--json").out
    assert "\x1b" not in out[out.index("{") :]


def test_ctrl_c_leaves_the_terminal_clean() -> None:
    seen = on_a_terminal("doctor", INTERRUPT="1")
    assert seen.code == 130
    assert seen.out.rindex("\x1b[?25h") > seen.out.rindex("\x1b[?25l")
    assert seen.out.endswith("\x1b[1;31merror:\x1b[0m interrupted\r\n")
