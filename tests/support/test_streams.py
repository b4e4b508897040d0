"""Descriptor 1 leads back where it led after many threads redirected it, and so does text in the C library's buffer."""

import ctypes
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.streams import stdout_to_stderr
from netvlad_deploy.workflow.validate import validate
from tests.processes import HANG_S

THREADS = 8


def where() -> tuple[int, int]:
    status = os.fstat(1)
    return status.st_dev, status.st_ino


def test_threads_that_overlap_leave_standard_output_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    """Each begins while the one before is inside and ends after it: the last to leave restores."""
    before, inside = where(), []
    entered = [threading.Event() for _ in range(THREADS + 1)]
    left = [threading.Event() for _ in range(THREADS + 1)]
    entered[0].set()
    left[0].set()

    def work(number: int) -> None:
        assert entered[number].wait(HANG_S)
        with stdout_to_stderr():
            entered[number + 1].set()
            assert entered[THREADS].wait(HANG_S)
            assert left[number].wait(HANG_S)
            inside.append(where())
            os.write(1, b"inside\n")
        left[number + 1].set()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert len(inside) == THREADS
    assert before not in inside
    assert where() == before
    os.write(1, b"after\n")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("after\n", "inside\n" * THREADS)


def test_threads_at_random_leave_standard_output_where_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    before, start = where(), threading.Barrier(THREADS)

    def work(_: int) -> None:
        start.wait(HANG_S)
        for _ in range(200):
            with stdout_to_stderr():
                os.write(1, b".")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert where() == before
    assert capfd.readouterr().out == ""


def test_an_error_inside_restores_it_and_so_does_nesting() -> None:
    before = where()
    with pytest.raises(ValueError, match="inside"), stdout_to_stderr(), stdout_to_stderr():
        raise ValueError("inside")
    assert where() == before


def test_text_in_the_buffer_of_the_c_library_does_not_come_out_later(tmp_path: Path) -> None:
    """Printed by a native library to a file or pipe, it stays in a buffer of the process until that is full."""
    saved, target = os.dup(1), os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    library = ctypes.CDLL(None)
    library.fflush(None)
    os.dup2(target, 1)
    try:
        with stdout_to_stderr():
            library.printf(b"[W] printed by the compiler\n")
        os.write(1, b"{}")
        library.fflush(None)
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(target)
    assert (tmp_path / "out").read_text() == "{}"


@pytest.mark.export
@pytest.mark.ort
def test_validating_in_threads_leaves_standard_output_where_it_was(
    exported: OnnxArtifact, capfd: pytest.CaptureFixture[str]
) -> None:
    before = where()
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: validate(Candidate(path=exported.path)), range(4)))
    assert {report.verdict for report in reports} == {Verdict.PASS}
    assert where() == before
    os.write(1, b"{}")
    assert capfd.readouterr().out == "{}"
