"""Builds on the double of the binding."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import DeviceUnavailableError
from netvlad_deploy.spec.build_options import BuildOptions, Gpu
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.tensorrt import api as trt_api
from netvlad_deploy.tensorrt import builder, engine
from netvlad_deploy.tensorrt.api import MODULES
from netvlad_deploy.tensorrt.engine import build_engine
from tests.double.builder import BuilderWorld
from tests.double.core import VERSIONS
from tests.double.graph import write_graph
from tests.double.machine import Machine, install

ORIN = Gpu(name="Orin", compute_capability="8.7", driver="12.6")
PROFILES = (Profile.parse("1x1,2x5,4x9"), Profile.parse("1x7"))

Build = Callable[..., EngineArtifact]
Open = Callable[..., BuilderWorld]


def files(folder: Path) -> set[str]:
    """Return the names of the files in the folder, without the sources of a build and the lock of a timing cache."""
    sources = {"m.onnx", "m.onnx.json", "m.reference.npz", ".timings.lock"}
    return {path.name for path in folder.iterdir()} - sources


@pytest.fixture
def open_world(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Return a function that installs a binding for builds here, with a GPU for the standard package, none for RTX."""

    def opened(version: str, **arguments: Any) -> BuilderWorld:
        world = BuilderWorld(version, **arguments)
        monkeypatch.setitem(sys.modules, MODULES[world.flavor], world.binding)

        def one_gpu(*, extra: str) -> SimpleNamespace:
            if world.rtx:
                raise DeviceUnavailableError("no GPU")
            assert extra == "tensorrt"
            return SimpleNamespace(gpu=lambda: ORIN, device=lambda: 2, cudaSetDevice=world.devices.append)

        for module in (builder, engine, trt_api):
            monkeypatch.setattr(module, "Cuda", one_gpu)
        monkeypatch.setattr(engine, "build_apart", builder.build_here)
        return world

    return opened


@pytest.fixture(params=VERSIONS)
def world(request: pytest.FixtureRequest, open_world: Open) -> BuilderWorld:
    return open_world(request.param)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a function that builds the graph in the test's folder."""
    graph = write_graph(tmp_path)

    def built(world: BuilderWorld, *, cache: bool = False, force: bool = False, **options: Any) -> EngineArtifact:
        chosen = BuildOptions(flavor=world.flavor, **{"profiles": PROFILES, **options})
        timing_cache = tmp_path / "timings" if cache else None
        return build_engine(graph, tmp_path / "m.engine", chosen, timing_cache=timing_cache, force=force)

    return built


STANDARD = tuple(version for version in VERSIONS if not version.startswith("rtx"))


@pytest.fixture(params=STANDARD)
def standard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version of the standard TensorRT in turn."""
    return install(monkeypatch, request.param)


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version in turn."""
    return install(monkeypatch, request.param)
