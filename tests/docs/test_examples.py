"""The examples in docstrings run, and what users call has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import netvlad_deploy
from netvlad_deploy.cli import VERBS

ROOT = Path(netvlad_deploy.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)

NEEDS = {"netvlad_deploy.tensorrt.engine": pytest.mark.rtx}
pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(name, ())) for name in MODULES])
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    outcome = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize("name", netvlad_deploy.__all__)
def test_a_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(netvlad_deploy, name).__doc__ or "")


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_a_verb_has_an_example(verb: str) -> None:
    assert ">>>" in (ROOT / "workflow" / f"{verb}.py").read_text()
