"""The examples in docstrings run, and what users call has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import netvlad_deploy

ROOT = Path(netvlad_deploy.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert outcome.attempted
    assert not outcome.failed
