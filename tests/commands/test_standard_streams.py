"""Standard streams that are closed, full, or read by somebody who has gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact

pytestmark = pytest.mark.export

COMMAND = f"{sys.executable} -m netvlad_deploy"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(exported: OnnxArtifact) -> Path:
    """Return the folder of the artifact `m.onnx`."""
    return exported.path.parent


@pytest.mark.parametrize("verb", ["doctor", "inspect m.onnx", "inspect m.onnx --json", "--help", "export --help"])
def test_a_full_standard_output_is_exit_73(verb: str, folder: Path) -> None:
    outcome = shell(f"{COMMAND} {verb} > /dev/full", folder)
    assert outcome.returncode == 73
    assert outcome.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("verb", ["inspect m.onnx", "--help", "export --help"])
def test_a_reader_that_has_gone_ends_quietly(verb: str, folder: Path) -> None:
    outcome = shell(f"{{ {COMMAND} {verb}; echo $? >&2; }} | head -c0", folder)
    assert outcome.stderr == "141\n"


def test_a_closed_standard_output_is_said_before_the_work(tmp_path: Path) -> None:
    outcome = shell(f"{COMMAND} export --clusters 2 --feature-size 4 >&-", tmp_path)
    assert outcome.returncode == 73
    assert outcome.stderr == "error: standard output is closed: send it to /dev/null if it is not wanted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_a_lost_standard_error_changes_no_exit_code_and_no_result(stream: str, folder: Path) -> None:
    outcome = shell(f"{COMMAND} inspect none.onnx {stream}", folder)
    assert (outcome.returncode, outcome.stdout) == (65, "")
    outcome = shell(f"{COMMAND} inspect m.onnx {stream}", folder)
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("m.onnx  fp32")


def test_libraries_that_print_change_nothing_where_streams_are_closed(tmp_path: Path) -> None:
    outcome = shell(f"{COMMAND} doctor <&- 2>&-", tmp_path)
    assert outcome.returncode == 0
    assert "netvlad-deploy" in outcome.stdout


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Otherwise the text that a library prints at the level of the system would stand in that file."""
    code = (
        "import os, sys\nfrom netvlad_deploy.commands.output import standard_streams\n"
        "with standard_streams():\n    print(os.open('result', os.O_CREAT | os.O_WRONLY) > 2)\n"
    )
    (tmp_path / "code.py").write_text(code)
    outcome = subprocess.run(
        ["bash", "-c", f"{sys.executable} code.py <&- 2>&-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert outcome.stdout == "True\n"
