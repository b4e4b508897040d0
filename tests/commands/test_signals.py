"""Ctrl-C and its relatives give one line and the right exit code and leave no file, at any moment of a verb."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netvlad_deploy import cli
from netvlad_deploy.artifact import OnnxArtifact
from tests.command import Command, error_of
from tests.processes import HANG_S, alive, until

ROOT = Path(__file__).parents[2]
ENDS = [
    (signal.SIGINT, 130, "error: interrupted"),
    (signal.SIGTERM, 143, "error: terminated"),
    (signal.SIGHUP, 129, "error: hung up"),
]

SESSION = ".ses"
"""Name of the file that ONNX Runtime itself keeps in the temporary folder, for all processes and for good."""


@pytest.fixture(autouse=True)
def hang_up_ends() -> Iterator[None]:
    """Take SIGHUP as a terminal gives it: `nohup` has it ignored, by the processes that a test starts, too."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


def become(monkeypatch: pytest.MonkeyPatch, verb: str, work: Callable[[], None]) -> None:
    """Give a verb other work."""
    work.__name__ = verb
    for command in cli.app.registered_commands:
        if command.callback is not None and command.callback.__name__ == verb:
            monkeypatch.setattr(command, "callback", work)


@pytest.mark.parametrize("verb", [verb.__name__ for verb in cli.VERBS])
def test_ctrl_c_is_one_line_in_every_verb(command: Command, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    become(monkeypatch, verb, lambda: signal.raise_signal(signal.SIGINT))
    outcome = command(verb)
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "error: interrupted\n")


@pytest.mark.parametrize(("number", "code", "line"), ENDS)
def test_each_signal_has_its_line_and_its_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, line: str
) -> None:
    before = [signal.getsignal(each) for each, *_ in ENDS]
    become(monkeypatch, "doctor", lambda: signal.raise_signal(number))
    outcome = command("doctor")
    assert (outcome.code, outcome.err) == (code, f"{line}\n")
    assert [signal.getsignal(each) for each, *_ in ENDS] == before


def swallowed() -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def turned_into_an_error() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("torch._C could not be initialised") from error


def met_in_the_clean_up() -> None:
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("work", "code"), [(swallowed, 130), (turned_into_an_error, 130), (met_in_the_clean_up, 143)])
def test_a_signal_is_the_reason_even_if_it_is_lost_on_its_way(
    command: Command, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None], code: int
) -> None:
    become(monkeypatch, "doctor", lambda: work())
    outcome = command("doctor")
    assert outcome.code == code
    assert error_of(outcome.err) == ("error: interrupted" if code == 130 else "error: terminated")


def test_nohup_is_respected(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        become(monkeypatch, "doctor", lambda: signal.raise_signal(signal.SIGHUP))
        assert command("doctor").code == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_ctrl_c_during_the_first_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-m", "netvlad_deploy", "doctor"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (130, "", "error: interrupted\n")


@pytest.mark.export
@pytest.mark.ort
@pytest.mark.parametrize(("number", "code", "line"), ENDS)
def test_a_signal_ends_bench_and_its_workers(
    tmp_path: Path, exported: OnnxArtifact, number: signal.Signals, code: int, line: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "netvlad_deploy", "bench", str(exported.path), "--duration", "600"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "NETVLAD_TEST": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    while "rounds" not in process.stderr.readline():
        assert process.poll() is None
    assert len(alive("NETVLAD_TEST", str(tmp_path))) == 2
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out) == (code, "")
    assert error_of(err) == line
    assert alive("NETVLAD_TEST", str(tmp_path)) == []
    assert {path.name for path in tmp_path.iterdir()} <= {SESSION}


@pytest.mark.export
@pytest.mark.ort
def test_a_killed_bench_leaves_neither_workers_nor_files(tmp_path: Path, exported: OnnxArtifact) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "netvlad_deploy", "bench", str(exported.path), "--duration", "600"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "NETVLAD_TEST": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    while "rounds" not in process.stderr.readline():
        assert process.poll() is None
    process.kill()
    process.wait()
    until(lambda: not alive("NETVLAD_TEST", str(tmp_path)))
    process.stderr.close()
    assert {path.name for path in tmp_path.iterdir()} <= {SESSION}


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


@pytest.mark.export
@pytest.mark.ort
@pytest.mark.parametrize("variables", LOCALES)
def test_names_of_any_alphabet_in_any_locale(tmp_path: Path, exported: OnnxArtifact, variables: dict[str, str]) -> None:
    folder = tmp_path / "папка"
    shutil.copytree(exported.path.parent, folder)

    def run(*words: str) -> "subprocess.CompletedProcess[bytes]":
        line = [sys.executable, "-m", "netvlad_deploy", *words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, timeout=HANG_S, check=False)

    validated = run("validate", "папка/m.onnx", "--junit", "папка/отчёт.xml")
    assert validated.returncode == 0, validated.stderr
    assert (folder / "отчёт.xml").is_file()
    missing = run("inspect", "папка/нет.onnx")
    assert (missing.returncode, missing.stderr.count(b"\n")) == (65, 1)
    named = run("inspect", "папка/m.onnx")
    assert named.returncode == 0, named.stderr
    expected = "папка/m.onnx" if "LC_ALL" in variables else r"\u043f\u0430\u043f\u043a\u0430/m.onnx"
    assert named.stdout.decode().startswith(expected)


@pytest.mark.parametrize(("number", "code", "line"), ENDS)
def test_the_exit_code_is_ours_where_python_would_end_by_sigint(
    tmp_path: Path, number: signal.Signals, code: int, line: str
) -> None:
    """As in a dataclass that is being made, whose methods are a text for `exec`, of `python -m`."""
    work = f"signal.raise_signal({int(number)})"
    (tmp_path / "verb.py").write_text(
        f"import signal; from netvlad_deploy import cli; cli.app = lambda **_: exec({work!r}); cli.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "verb"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, f"{line}\n")
