"""`doctor` describes this machine, and machines where packages are missing or broken."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from netvlad_deploy.report.doctor import Check, Diagnosis, Extra, diagnosis_lines
from netvlad_deploy.spec.backends import BACKENDS, NO_GRAPHS
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.require import installed_version, optional_packages
from netvlad_deploy.workflow import doctor
from netvlad_deploy.workflow.doctor import diagnose
from tests.command import Command
from tests.double.onnxruntime import CUDA, TENSORRT, OnnxRuntime

pytestmark = [pytest.mark.export, pytest.mark.ort]

TRIED = (Verdict.PASS, Verdict.NOT_RUN, Verdict.FAIL)
ORIN = Gpu(name="Orin", compute_capability="8.7", driver="12.6")


def check_of(diagnosis: Diagnosis, name: str) -> Check:
    (check,) = (check for check in diagnosis.checks if check.name == name)
    return check


def install(folder: Path, name: str, module: str = "") -> None:
    """Write the files of a package as pip does: its metadata, and a module whose import runs this code."""
    info = folder / f"{name.replace('-', '_')}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    if module:
        (folder / f"{name.replace('-', '_')}.py").write_text(module)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder of packages before all others."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("tensorrt", None)


@pytest.mark.rtx
def test_this_machine(command: Command) -> None:
    outcome = command("doctor", "--json")
    assert outcome.code == 0
    record = json.loads(outcome.out)
    assert record["schema"] == "netvlad-deploy/doctor/2"
    assert record["packages"]["onnxruntime"] == installed_version("onnxruntime")
    assert record["machine"]["python"] == sys.version.split()[0]
    assert record["broken"] == []
    verdicts = {check["name"]: check["verdict"] for check in record["checks"]}
    works = ("packages that bring onnxruntime", "build engines with tensorrt-rtx", "backend strict", "backend torch")
    assert {verdicts[name] for name in (*works, "backend onnxruntime", "backend oracle")} == {"PASS"}
    assert all(check["detail"] for check in record["checks"] if check["verdict"] != "PASS"), "a reason is missing"
    for backend in set(BACKENDS) - {NO_GRAPHS}:
        assert any(name.split(",")[0] == f"backend {backend}" for name in verdicts), backend


def test_every_extra_has_its_purpose_and_its_install_line() -> None:
    assert set(doctor.PURPOSES) == set(optional_packages()) - {"dev"}
    for name, extra in diagnose().extras.items():
        assert extra.purpose == doctor.PURPOSES[name]
        assert bool(extra.cure) == bool(extra.missing)


def test_text_shows_broken_checks_first() -> None:
    checks = tuple(Check(name=each.value.lower(), verdict=each, detail=f"why {each.value}") for each in TRIED)
    diagnosis = Diagnosis(
        machine={"power_mode": "15W"},
        packages={"numpy": "2.4", "torch": None, "onnx": "1.23"},
        extras={
            "export": Extra(
                purpose="checkpoints", packages=("torch", "onnx"), missing=("torch",), cure="pip install torch"
            )
        },
        gpu=ORIN,
        checks=checks,
        broken=("fail",),
    )
    assert diagnosis_lines(diagnosis) == [
        "power mode: 15W",
        "packages: numpy 2.4",
        "extra   for          packages                  what to do if it is wanted",
        "export  checkpoints  torch missing, onnx 1.23  pip install torch",
        "verdict  check    detail",
        "FAIL     fail     why FAIL",
        "PASS     pass     why PASS",
        "NOT_RUN  not_run  why NOT_RUN",
    ]


def test_a_missing_package_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(doctor, "installed_version", lambda _: None)
    diagnosis = diagnose()
    for name in ("build engines with tensorrt", "backend tensorrt, tensorrt engines"):
        check = check_of(diagnosis, name)
        assert check.verdict is Verdict.NOT_RUN
        assert check.detail.endswith("-m pip install 'tensorrt>=10.3'")
    assert not diagnosis.broken


@pytest.mark.parametrize("kind", ["ImportError", "OSError", "ValueError", "AttributeError"])
def test_a_binding_that_cannot_be_imported_is_broken(command: Command, site: Path, kind: str) -> None:
    install(site, "tensorrt", f"raise {kind}('libnvinfer.so.11 is missing')")
    outcome = command("doctor")
    assert outcome.code == 1
    broken = [line for line in outcome.out.splitlines() if line.startswith("FAIL")]
    assert [line[9:49].strip() for line in broken] == [
        "build engines with tensorrt",
        "backend tensorrt, tensorrt engines",
    ]
    assert all("libnvinfer.so.11" in line for line in broken)


def test_tensorrt_without_a_driver_cannot_build(command: Command, site: Path) -> None:
    """Output of TensorRT beside its logger stays out of the JSON."""
    install(
        site,
        "tensorrt",
        "import os\nos.write(1, b'noise')\n__version__ = '11.4'\nclass ILogger: ...\n"
        "def Builder(logger):\n    raise TypeError('factory function returned nullptr')\n",
    )
    outcome = command("doctor", "--json")
    assert outcome.code == 0
    assert "noise" in outcome.err
    checks = {check["name"]: check for check in json.loads(outcome.out)["checks"]}
    assert checks["build engines with tensorrt"]["verdict"] == "NOT_RUN"
    assert "tensorrt 11.4 cannot build here: no usable NVIDIA GPU" in checks["build engines with tensorrt"]["detail"]


def test_a_torch_without_its_libraries_is_broken(monkeypatch: pytest.MonkeyPatch, site: Path) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    (site / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    diagnosis = diagnose()
    assert diagnosis.broken == ("backend torch",)
    assert "libcudart" in check_of(diagnosis, "backend torch").detail


def test_packages_that_break_each_other_are_broken_with_their_cure(command: Command, site: Path) -> None:
    install(site, "onnxruntime-gpu")
    outcome = command("doctor", "--json")
    assert outcome.code == 1
    record = json.loads(outcome.out)
    assert record["packages"]["onnxruntime-gpu"] == "1.2.3"
    assert record["broken"][:2] == ["packages that bring onnxruntime", "backend onnxruntime"]
    assert "-m pip uninstall -y onnxruntime onnxruntime-gpu, then " in record["checks"][0]["detail"]


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Cuda", lambda extra: SimpleNamespace(gpu=lambda: ORIN))
    diagnosis = diagnose()
    assert diagnosis.gpu == ORIN
    check = check_of(diagnosis, "GPU")
    assert (check.verdict, check.detail) == (Verdict.PASS, "Orin, compute capability 8.7, driver for CUDA 12.6")
    assert "Orin" in "\n".join(diagnosis_lines(diagnosis))


@pytest.mark.rtx
def test_a_missing_cuda_binding_does_not_blame_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX is installed and works; the package beside it is missing."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setattr(doctor, "CUDA_PACKAGES", ("no-such-package",))
    check = check_of(diagnose(), "backend tensorrt, tensorrt-rtx engines")
    assert check.verdict is Verdict.NOT_RUN
    assert "cuda.bindings" in check.detail


def test_gpu_providers_are_tried_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = OnnxRuntime(monkeypatch, CUDA, TENSORRT)
    assert check_of(diagnose(), "backend onnxruntime-cuda").verdict is Verdict.PASS
    runtime.unloaded = True
    check = check_of(diagnose(), "backend onnxruntime-cuda")
    assert check.verdict is Verdict.NOT_RUN, "the package lists the provider, and it cannot be used"
    assert "\n" not in check.detail
    runtime.unloaded, runtime.creation = False, RuntimeError("something\nelse")
    diagnosis = diagnose()
    assert diagnosis.broken == ("backend onnxruntime-cuda", "backend onnxruntime-tensorrt")
    assert check_of(diagnosis, "backend onnxruntime-cuda").detail.endswith("something else")
