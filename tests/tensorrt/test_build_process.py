"""The fresh process of a build, on a double of the binding that the process imports by its usual name."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import BuildError, DeviceUnavailableError
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.tensorrt.build_process import build_apart
from netvlad_deploy.tensorrt.builder import BuildRequest, Built, build_here
from netvlad_deploy.tensorrt.engine import build_engine
from tests.double.builder import BuilderWorld
from tests.double.graph import write_graph
from tests.processes import HANG_S, alive, until
from tests.tensorrt.conftest import ORIN, PROFILES, Open, files

BINDING = f"""
import os, signal, sys, time
from types import SimpleNamespace
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.errors import DeviceUnavailableError
from netvlad_deploy.tensorrt import builder
from tests.double.builder import BuilderWorld

world = BuilderWorld("10.3")
builder.Cuda = lambda extra: SimpleNamespace(
    gpu=lambda: {ORIN!r}, cudaSetDevice=lambda device: os.write(2, b"GPU %d\\n" % device)
)
sys.modules[__name__] = world.binding
"""


@pytest.fixture
def graph(tmp_path: Path) -> OnnxArtifact:
    return write_graph(tmp_path)


@pytest.fixture
def binding(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a binding that only other processes import, since this one has a double already."""
    folder = tmp_path_factory.mktemp("binding")
    (folder / "tensorrt.py").write_text(BINDING)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{Path(__file__).parents[2]}")
    return folder / "tensorrt.py"


def request(graph: OnnxArtifact, **changes: object) -> BuildRequest:
    whole = BuildRequest(
        source=graph,
        external=None,
        target=graph.path.with_name("built"),
        options=BuildOptions(workspace_mib=7, tf32=True, profiles=PROFILES),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_fresh_process_builds_the_same_engine_as_this_one(
    graph: OnnxArtifact, binding: Path, open_world: Open
) -> None:
    apart = build_apart(request(graph, timing_cache=graph.path.with_name("timings")))
    assert (graph.path.parent / "timings").is_file()
    assert hashlib.sha256(graph.path.with_name("built").read_bytes()).hexdigest() == apart.sha256
    open_world("10.3")
    here = build_here(request(graph))

    def timeless(built: Built) -> Built:
        return replace(built, build_ms=0, host_bytes=0, lines=tuple(replace(line, thread=0) for line in built.lines))

    assert timeless(apart) == timeless(here)
    assert 0 < apart.host_bytes < 2**30
    assert apart.gpu == ORIN


def test_the_process_works_on_the_gpu_that_it_is_given(
    graph: OnnxArtifact, binding: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_apart(request(graph, device=3))
    assert "GPU 3\n" in capfd.readouterr().err


def test_errors_and_log_of_the_process_are_those_of_its_parent(
    graph: OnnxArtifact, binding: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with binding.open("a") as stream:
        stream.write("world.on_step = lambda: print('of a library')\n")
    with caplog.at_level(logging.INFO):
        build_apart(request(graph))
    assert caplog.messages == ["build: Building engine"]
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "of a library" in captured.err
    with binding.open("a") as stream:
        stream.write("def gone(extra): raise DeviceUnavailableError('no GPU')\nbuilder.Cuda = gone\n")
    with pytest.raises(DeviceUnavailableError, match=r"^no GPU$"):
        build_apart(request(graph))


ENDS = [
    ("os.kill(os.getpid(), signal.SIGSEGV)", "the process of the builder was killed by SIGSEGV"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, as a system does that has no memory left"),
    ("os._exit(3)", "the process of the builder ended with exit code 3"),
]


@pytest.mark.parametrize(("end", "message"), ENDS)
def test_a_builder_that_dies_is_an_error_and_leaves_nothing(
    graph: OnnxArtifact, binding: Path, tmp_path: Path, end: str, message: str
) -> None:
    with binding.open("a") as stream:
        stream.write(f"world.on_step = lambda: {end}\n")
    with pytest.raises(BuildError, match=message):
        build_engine(graph, tmp_path / "m.engine")
    assert files(tmp_path) == set()


def start(graph: OnnxArtifact, binding: Path) -> "subprocess.Popen[str]":
    """Start a build on the command line whose builder never ends; return when it works.

    It says so by a file: on standard error its parent writes too, and lines of two processes may run into each other.
    """
    at_work = binding.with_name("at_work")
    with binding.open("a") as stream:
        stream.write(f"def step():\n    open({str(at_work)!r}, 'w').close()\n    time.sleep(600)\n")
        stream.write("world.on_step = step\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "netvlad_deploy", "build", str(graph.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NETVLAD_TEST": str(binding.parent)},
    )
    until(at_work.exists)
    return process


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "error: interrupted"), (signal.SIGTERM, 143, "error: terminated")],
)
def test_a_signal_ends_a_builder_at_once_and_leaves_nothing(
    graph: OnnxArtifact, binding: Path, tmp_path: Path, number: signal.Signals, code: int, line: str
) -> None:
    process = start(graph, binding)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG_S)
    *log, last = err.splitlines()
    assert (process.returncode, out, last) == (code, "", line)
    assert all(said.startswith("build: ") for said in log)
    assert alive("NETVLAD_TEST", str(binding.parent)) == []
    assert files(tmp_path) == set()


def test_a_builder_ends_with_its_parent(graph: OnnxArtifact, binding: Path) -> None:
    process = start(graph, binding)
    assert len(alive("NETVLAD_TEST", str(binding.parent))) == 2
    process.kill()
    process.communicate(timeout=HANG_S)
    until(lambda: not alive("NETVLAD_TEST", str(binding.parent)))


def test_only_a_graph_with_external_data_is_parsed_with_its_path(
    graph: OnnxArtifact, open_world: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world("10.3")
    paths: list[str | None] = []
    parse = world.binding.OnnxParser.parse

    def seen(self: object, content: bytes, path: str | None = None) -> bool:
        paths.append(path)
        return bool(parse(self, content, path))

    monkeypatch.setattr(world.binding.OnnxParser, "parse", seen)
    build_here(request(graph))
    build_here(request(graph, external=str(graph.path)))
    assert paths == [None, str(graph.path)]


def test_an_engine_for_other_architectures_than_asked_for_is_no_engine(
    open_world: Open, graph: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the builder works for another architecture than it has agreed to."""
    world: BuilderWorld = open_world("rtx-1.7.1")
    config = world.binding.IBuilderConfig
    read = config.get_compute_capability
    world.on_step = lambda: monkeypatch.setattr(
        config, "get_compute_capability", lambda *_: world.binding.ComputeCapability.SM75
    )
    options = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("SM89",), profiles=PROFILES)
    with pytest.raises(BuildError, match=r"did not keep compute capabilities: got \('SM75',\), expected \('SM89',\)"):
        build_engine(graph, tmp_path / "m.engine", options)
    monkeypatch.setattr(config, "get_compute_capability", read)
    world.on_step = lambda: None
    assert load_artifact(build_engine(graph, tmp_path / "m.engine", options).path)
