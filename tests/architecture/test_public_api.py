"""The public API is a test; so is what it costs to start, and what a machine without torch can still do."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import netvlad_deploy
from netvlad_deploy.artifact import OnnxArtifact

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx", "safetensors")

OF_TORCH = ("NetVLAD", "Pipeline", "export_onnx", "load_checkpoint")
"""Public names that nobody can use without torch."""

BLOCKED = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"):
    sys.modules[name] = None
sys.argv = ["netvlad-deploy", *sys.argv[1:]]
from netvlad_deploy.cli import main
main()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_public_names() -> None:
    assert netvlad_deploy.__all__ == [
        "BuildOptions", "Candidate", "EmbedOptions", "FitOptions", "GraphOptions", "ImageInput", "NetVLAD", "Pipeline",
        "Profile", "Verdict", "build_engine", "compare", "decode_image", "embed", "evaluate", "export_onnx", "fit",
        "load_artifact", "load_checkpoint", "load_reference", "measure", "open_runner", "read_descriptors",
    ]  # fmt: skip
    assert dir(netvlad_deploy) == netvlad_deploy.__all__


def test_no_public_name_is_a_room() -> None:
    """A sub-package that is imported would take the place of the function."""
    rooms = {path.stem for path in Path(netvlad_deploy.__file__).parent.iterdir()}
    assert not rooms & set(netvlad_deploy.__all__)


@pytest.mark.export
def test_every_public_name_loads_and_is_documented() -> None:
    for name in netvlad_deploy.__all__:
        assert getattr(netvlad_deploy, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = netvlad_deploy.nothing


@pytest.mark.parametrize("name", OF_TORCH)
def test_a_name_whose_package_is_missing_says_how_to_install_it(name: str) -> None:
    code = f"import sys; sys.modules['torch'] = None\nfrom netvlad_deploy import {name}"
    last = python("-c", code).stderr.splitlines()[-1]
    assert last.startswith(f"netvlad_deploy.errors.MissingDependencyError: {name} needs torch: ")
    assert f"{sys.executable} -m pip install " in last


def test_every_other_name_loads_without_any_of_the_heavy_packages() -> None:
    names = sorted(set(netvlad_deploy.__all__) - set(OF_TORCH))
    blocked = f"import sys; sys.modules.update(dict.fromkeys(({HEAVY!r} + ('PIL', 'matplotlib'))))"
    outcome = python("-c", f"{blocked}\nfrom netvlad_deploy import {', '.join(names)}")
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize(
    "statement", ["import netvlad_deploy", "import netvlad_deploy.cli", "import netvlad_deploy.workflow.validate"]
)
def test_nothing_heavy_is_imported_at_the_start(statement: str) -> None:
    loaded = python("-c", f"{statement}; import sys; print(*sorted(sys.modules))").stdout.split()
    assert "netvlad_deploy" in loaded
    assert not set(loaded) & set(HEAVY)


def test_help_imports_nothing_heavy() -> None:
    """How long it takes is a bar of `make bars`."""
    code = "import sys; sys.argv = ['netvlad-deploy', '--help']\nfrom netvlad_deploy.cli import main\ntry: main()\n"
    code += "finally: print(*sorted(sys.modules))"
    loaded = python("-c", code).stdout.split()
    assert "typer" in loaded
    assert not set(loaded) & set(HEAVY)


@pytest.mark.rtx
@pytest.mark.export
def test_every_verb_of_an_engine_runs_without_torch_and_onnx(
    exported: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocked for the workers of `bench`, too, which are processes of their own."""
    (tmp_path / "blocked").mkdir()
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors"):
        (tmp_path / "blocked" / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))
    engine, x, y = (str(tmp_path / name) for name in ("m.engine", "x.npy", "y.npy"))
    np.save(x, np.ones((1, 5, 16), np.float32))
    assert "no torch here" in python("-c", "import torch").stderr
    for arguments in (
        ["build", str(exported.path), "--flavor", "tensorrt-rtx", "-o", engine],
        ["inspect", engine],
        ["validate", engine, "--allow-not-run"],
        ["bench", engine, "--duration", "0.3", "--allow-not-run"],
        ["embed", engine, x, "-o", y],
    ):
        outcome = python("-m", "netvlad_deploy", *arguments)
        no_gpu = outcome.returncode == 69 and "no usable NVIDIA GPU" in outcome.stderr
        assert outcome.returncode == 0 or (arguments[0] == "embed" and no_gpu), outcome.stderr


def test_doctor_needs_nothing_heavy_and_names_the_missing_packages() -> None:
    """They are installed, so that none can be imported is a fault, and not a crash."""
    outcome = python("-c", BLOCKED, "doctor", "--json")
    assert outcome.returncode == 1, outcome.stderr
    blocked = ("onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "strict", "torch")
    assert json.loads(outcome.stdout)["broken"] == [f"backend {name}" for name in blocked]


@pytest.mark.parametrize(
    ("arguments", "package"),
    [(["export"], "torch"), (["validate", "m.onnx"], "onnxruntime")],
)
@pytest.mark.export
def test_a_missing_package_is_named_with_its_pip_line(
    exported: OnnxArtifact, arguments: list[str], package: str, tmp_path: Path
) -> None:
    arguments = [str(exported.path) if argument == "m.onnx" else argument for argument in arguments]
    if arguments[0] == "export":
        arguments += ["-o", str(tmp_path / "m.onnx")]
    outcome = python("-c", BLOCKED, *arguments)
    assert outcome.returncode == 69
    assert package in outcome.stdout + outcome.stderr
    assert " -m pip install " in outcome.stdout + outcome.stderr


def test_the_module_runs_as_a_command() -> None:
    assert "Usage: " in python("-m", "netvlad_deploy", "-h").stdout
