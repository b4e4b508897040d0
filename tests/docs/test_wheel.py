"""A wheel that installs alone, and an editable install whose types a checker finds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of what the build reads: it leaves files beside it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "netvlad_deploy", folder / "netvlad_deploy", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "build" / "lib" / "netvlad_deploy").mkdir(parents=True)
    (folder / "build" / "lib" / "netvlad_deploy" / "gone.py").write_text("")
    return folder


def run(folder: Path, *arguments: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(argument) for argument in arguments]
    outcome = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, f"{words}\n{outcome.stdout}{outcome.stderr}"
    return outcome.stdout


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    run(checkout, "make", "wheel", f"PYTHON={sys.executable}")
    (built,) = (checkout / "dist").iterdir()
    return built


def test_a_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "netvlad_deploy"]  # new ones, too
    assert names == set(run(ROOT, *listed).splitlines())
    assert {"netvlad_deploy/py.typed", "netvlad_deploy/report/page.html"} <= names


def test_a_wheel_installs_alone(wheel: Path, tmp_path: Path) -> None:
    run(tmp_path, sys.executable, "-m", "venv", "fresh")
    binaries = tmp_path / "fresh" / "bin"
    run(tmp_path, binaries / "python", "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    assert run(tmp_path, binaries / "netvlad-deploy", "--version").startswith("netvlad-deploy 0.")
    assert "From a trained NetVLAD" in run(tmp_path, binaries / "netvlad-deploy", "--help")
    diagnosis = run(tmp_path, binaries / "netvlad-deploy", "doctor")
    assert "torch missing, onnx missing" in diagnosis
    assert f"{binaries / 'python'} -m pip install 'torch>=2.6' 'onnx>=1.17'" in diagnosis, "a line that works here"
    outcome = subprocess.run(
        [binaries / "netvlad-deploy", "export"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 69
    assert f"{binaries / 'python'} -m pip install 'torch>=2.6'" in outcome.stderr


def test_an_editable_install_is_a_path(checkout: Path, tmp_path: Path) -> None:
    """Mypy and pyright follow a path in a `.pth` file; they do not run the finder that setuptools writes otherwise."""
    code = f"import setuptools.build_meta as backend; print(backend.build_editable({str(tmp_path)!r}))"
    name = run(checkout, sys.executable, "-c", code).split()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        (pth,) = (each for each in archive.namelist() if each.endswith(".pth"))
        assert archive.read(pth).decode().strip() == str(checkout)
        assert not [each for each in archive.namelist() if each.endswith(".py")]
    assert (checkout / "netvlad_deploy" / "py.typed").exists()
