"""The line that installs missing packages, and no others, from a checkout and from a wheel."""

import inspect
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.support import require as room
from netvlad_deploy.support.require import install_line, optional_packages, pip_line, require

ROOT = Path(__file__).parents[2]
METADATA = (
    "numpy>=1.24",
    'torch>=2.6; extra == "export"',
    'onnx<2,>=1.17; extra == "export"',
    "scikit-learn >=1.3 ; extra == 'fit'",
    "pillow; extra == 'fit'",
)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Yield the installed packages, by name with version, beside this package with the metadata above."""
    versions: dict[str, str] = {}
    monkeypatch.setattr("importlib.metadata.requires", lambda _: list(METADATA))
    monkeypatch.setattr(room, "installed_version", versions.get)
    optional_packages.cache_clear()
    yield versions
    optional_packages.cache_clear()


def arguments(line: str) -> list[str]:
    """Return the arguments of pip, which runs in this very environment."""
    words = shlex.split(line)
    assert words[:3] == [sys.executable, "-m", "pip"]
    return words[3:]


def test_only_missing_packages_are_installed(installed: dict[str, str]) -> None:
    assert arguments(install_line("export")) == ["install", "torch>=2.6", "onnx<2,>=1.17"]
    installed["torch"] = "2.13"
    assert arguments(install_line("export")) == ["install", "onnx<2,>=1.17"]
    assert arguments(install_line("fit")) == ["install", "scikit-learn>=1.3", "pillow"]


def test_broken_packages_are_installed_anew(installed: dict[str, str]) -> None:
    installed.update(torch="2.13", onnx="1.23")
    assert arguments(install_line("export")) == ["install", "--force-reinstall", "torch>=2.6", "onnx<2,>=1.17"]


def test_without_metadata_the_checkout_is_installed(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(install_line("matlab")) == ["install", "-e", f"{ROOT}[matlab]"], "metadata older than the code"

    def missing(_: str) -> list[str]:
        from importlib.metadata import PackageNotFoundError

        raise PackageNotFoundError

    monkeypatch.setattr("importlib.metadata.requires", missing)
    optional_packages.cache_clear()
    assert arguments(install_line("export")) == ["install", "-e", f"{ROOT}[export]"]


def test_the_error_has_the_line(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    installed["torch"] = "2.13"
    with pytest.raises(MissingDependencyError) as caught:
        require("onnx", extra="export")
    assert str(caught.value).endswith(f": {pip_line('install', 'onnx<2,>=1.17')}")


def test_every_extra_that_is_asked_for_is_one_of_the_package() -> None:
    import re

    project = (ROOT / "pyproject.toml").read_text()
    declared = set(re.findall(r"^([\w-]+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    asked = set()
    for path in (ROOT / "netvlad_deploy").rglob("*.py"):
        asked |= set(re.findall(r"""(?:extra=|install_line\()["']([\w-]+)["']""", path.read_text()))
    assert asked
    assert asked <= declared


def test_strict_emulation_does_not_ask_for_torch() -> None:
    from netvlad_deploy.runtime import onnxruntime_runner, strict_runner

    for module in (strict_runner, onnxruntime_runner):
        assert 'require("onnx", extra="strict")' in Path(inspect.getfile(module)).read_text()
    assert 'strict = ["onnx>=1.17"]' in (ROOT / "pyproject.toml").read_text()


def test_no_hint_names_a_package_that_no_registry_has() -> None:
    for path in (ROOT / "netvlad_deploy").rglob("*.py"):
        assert "netvlad-deploy[" not in path.read_text(), path.name


def test_every_hint_is_made_in_one_place() -> None:
    """Else it names another Python than the one that runs, or other versions than the metadata."""
    package = ROOT / "netvlad_deploy"
    assert [path.name for path in package.rglob("*.py") if "pip install" in path.read_text()] == []
