"""The page on Python: its blocks run one after the other in one process, and a type checker finds nothing in them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import netvlad_deploy

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.rtx, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text()
SCRIPT = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "page.py").write_text(SCRIPT)
    outcome = subprocess.run([sys.executable, "page.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[0] == "(2, 32768) PASS"
    assert "['0.png', '1.png', '2.png'] (3, 12)" in lines
    assert any(line.startswith(("1.0", "0.9999")) for line in lines), "one photo by the same rule, and one file"
    assert lines[-1].startswith(("no usable NVIDIA GPU on this machine", "cuda:0 torch.Size([2, 32768])"))


def test_a_type_checker_takes_the_page_and_sees_what_is_wrong(tmp_path: Path) -> None:
    """Checked by the options of `make lint`, with its cache."""
    planted = ["open_runner(1)", "embed(place, photos)", "output.shape + 1"]
    (tmp_path / "page.py").write_text("\n".join((SCRIPT, *planted)))
    command = [sys.executable, "-m", "mypy", str(tmp_path / "page.py")]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {int(line) for line in re.findall(r"page\.py:(\d+): error", outcome.stdout)}
    first = SCRIPT.count("\n") + 2
    assert found == set(range(first, first + len(planted))), outcome.stdout


def test_every_public_name_stands_on_the_page() -> None:
    """Each is used, or said where it is of use."""
    assert [name for name in netvlad_deploy.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []
