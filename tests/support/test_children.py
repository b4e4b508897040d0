"""Processes that end with their parent, talk in messages, and keep standard output clean."""

import logging
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from netvlad_deploy.errors import ParityError, UsageError
from netvlad_deploy.support.children import Channel, Child, ending
from tests.processes import alive, until

JOB = """
import logging, os, sys, time
from netvlad_deploy.errors import UsageError

def serve(channel):
    message, content = channel.receive()
    print("of a library")
    logging.getLogger("netvlad_deploy.job").warning("%d bytes", len(content))
    channel.send({"path": sys.path, "words": message["words"]}, content[::-1])
    channel.receive()
    raise UsageError("wrong " + message["words"])
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "a_job.py").write_text(JOB)
    monkeypatch.syspath_prepend(tmp_path)
    return "a_job"


def test_a_child_answers_logs_and_raises_its_own_error(
    job: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytes(range(256)) * 5000  # more than a pipe holds
    with Child(job, "it") as child:
        child.send({"words": "Слова\n"}, content)
        message, answer = child.receive()
        assert message == {"path": sys.path, "words": "Слова\n"}
        assert answer == content[::-1]
        child.send({})
        with pytest.raises(UsageError, match=r"^wrong Слова\n$"):
            child.receive()
    assert caplog.messages == [f"{len(content)} bytes"]
    assert caplog.records[0].name == "netvlad_deploy.job"
    assert caplog.records[0].levelno == logging.WARNING
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("of a library\n")


def test_a_child_that_dies_is_named(job: str) -> None:
    with Child(job, "the worker", failure=ParityError) as child:
        os.kill(child._process.pid, 11)
        with pytest.raises(ParityError, match=r"^the worker was killed by SIGSEGV$"):
            child.receive()
        with pytest.raises(ParityError, match=r"^the worker was killed by SIGSEGV$"):
            child.send({"words": ""}, bytes(1 << 20))


def test_a_module_that_is_not_there_ends_with_a_trace(capfd: pytest.CaptureFixture[str]) -> None:
    with Child("no_such_module", "the worker") as child, pytest.raises(Exception, match=r"ended with exit code 1$"):
        child.receive()
    assert "No module named 'no_such_module'" in capfd.readouterr().err


def test_leaving_kills_and_leaves_no_zombie(job: str) -> None:
    with Child(job, "it") as child:
        number = child._process.pid
        assert Path(f"/proc/{number}").exists()
    assert not Path(f"/proc/{number}").exists()


PARENT = """
import sys, time
from netvlad_deploy.support.children import Child

sys.path.insert(0, sys.argv[1])
child = Child("busy", "it")
child.send({})
child.receive()
print("busy", flush=True)
time.sleep(600)
"""
BUSY = """
import time

def serve(channel):
    channel.receive()
    channel.send({})
    while True:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("started", [True, False])
def test_a_child_ends_with_its_parent_at_work_and_before(tmp_path: Path, started: bool) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    marker = str(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "NETVLAD_TEST": marker},
    )
    assert process.stdout is not None
    if started:
        assert process.stdout.readline() == b"busy\n"
    else:
        until(lambda: len(alive("NETVLAD_TEST", marker)) == 2)  # it is there, and has not yet begun
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not alive("NETVLAD_TEST", marker))


def test_half_a_message_is_the_end() -> None:
    written = BytesIO()
    Channel(BytesIO(), written).send({"a": 1}, b"content")
    for length in (0, 5, len(written.getvalue()) - 1):
        with pytest.raises(EOFError):
            Channel(BytesIO(written.getvalue()[:length]), BytesIO()).receive()
    assert Channel(BytesIO(written.getvalue()), BytesIO()).receive() == ({"a": 1}, b"content")


def test_endings_in_words() -> None:
    assert ending(3) == "ended with exit code 3"
    assert ending(-9) == "was killed by SIGKILL, as a system does that has no memory left"
    assert ending(-250) == "was killed by signal 250"
