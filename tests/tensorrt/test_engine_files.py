"""Files a build refuses before it works: sources that are stale, targets that are in the way."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from netvlad_deploy.errors import (
    ArtifactError,
    BuildError,
    MissingDependencyError,
    NetVLADDeployError,
    OutputError,
    UsageError,
)
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.images import ImageProfile
from netvlad_deploy.tensorrt import api as trt_api
from netvlad_deploy.tensorrt import builder
from netvlad_deploy.tensorrt.engine import build_engine
from tests.double.builder import BuilderWorld
from tests.double.graph import GRAPH, write_graph
from tests.tensorrt.conftest import Build, Open, files


def test_a_timing_cache_is_no_file_that_the_build_writes(open_world: Open, build: Build, tmp_path: Path) -> None:
    open_world("10.3")
    for name in ("m.engine", "m.engine.json", "m.engine.log"):
        with pytest.raises(UsageError, match=f"{name} is read or written here, it cannot be the timing cache too"):
            build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", timing_cache=tmp_path / name)


def test_files_in_the_way_are_refused_before_any_work(world: BuilderWorld, build: Build, tmp_path: Path) -> None:
    for name in ("m.engine", "m.engine.json", "m.engine.log"):
        (tmp_path / name).write_text("in the way")
        with pytest.raises(NetVLADDeployError, match=f"{name} exists already"):
            build(world)
        (tmp_path / name).unlink()
    assert world.journal == []


def test_a_head_takes_no_profile_of_images(open_world: Open, build: Build, tmp_path: Path) -> None:
    world = open_world("10.3")
    with pytest.raises(UsageError, match="takes features, got a profile of batch 1:1:1, height 8:8:8, width 9:9:9"):
        build(world, profiles=(ImageProfile.parse("1x8x9"),))
    assert files(tmp_path) == set()


def test_a_target_is_an_engine_by_its_name(open_world: Open, build: Build, tmp_path: Path) -> None:
    open_world("10.3")
    with pytest.raises(UsageError, match=r"m\.plan does not end in \.engine: name the target m\.engine"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.plan")


def test_tf32_is_for_fp32_graphs(open_world: Open, build: Build, tmp_path: Path) -> None:
    open_world("10.3")
    (tmp_path / "half").mkdir()
    graph = write_graph(tmp_path / "half", precision="fp16")
    with pytest.raises(UsageError, match="TF32 is for FP32 graphs"):
        build_engine(graph, tmp_path / "m.engine", BuildOptions(tf32=True))


def test_turing_is_refused_before_the_builder_starts(open_world: Open, build: Build, tmp_path: Path) -> None:
    world = open_world("rtx-1.7.1")
    with pytest.raises(UsageError, match=r"SM75 \(Turing\) .*m\.onnx is fp32: export with --precision fp16, or leave"):
        build(world, compute_capabilities=("SM89", "SM75"))
    assert world.journal == []
    (tmp_path / "half").mkdir()
    graph = write_graph(tmp_path / "half", precision="fp16")
    options = BuildOptions(flavor="tensorrt-rtx", compute_capabilities=("SM75",))
    assert build_engine(graph, tmp_path / "m.engine", options).targets == ("SM75",)


def test_a_stale_reference_file_is_refused(world: BuilderWorld, build: Build, tmp_path: Path) -> None:
    (tmp_path / "m.reference.npz").write_bytes(b"others")
    with pytest.raises(ArtifactError, match=r"m\.reference\.npz has SHA-256 .* stale"):
        build(world)
    assert world.journal == []


def test_a_graph_that_is_swapped_after_it_was_loaded_is_not_built(
    world: BuilderWorld, build: Build, tmp_path: Path
) -> None:
    good = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(good.replace(b"mask", b"mosk"))
    with pytest.raises(ArtifactError, match=r"m\.onnx has SHA-256 .* its sidecar says"):
        build(world)
    assert (world.journal, files(tmp_path)) == ([], set())


def test_a_graph_that_is_swapped_while_the_builder_works_is_built_as_it_was(
    world: BuilderWorld, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent of an engine is the file whose hash it records: the parser has those bytes, and no path."""
    good = (tmp_path / "m.onnx").read_bytes()
    create_network = world.binding.Builder.create_network

    def swap(*arguments: int) -> object:
        (tmp_path / "m.onnx").write_bytes(good.replace(b"mask", b"mosk"))
        return create_network(*arguments)

    monkeypatch.setattr(world.binding.Builder, "create_network", swap)
    built = build(world)
    assert built.parent is not None
    assert built.parent.sha256 == hashlib.sha256(good).hexdigest()
    assert json.loads(built.path.read_bytes())["graph"] == GRAPH


def test_an_engine_that_the_disk_does_not_take_leaves_nothing(
    world: BuilderWorld, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(builder, "write_hashed", full)
    with pytest.raises(OutputError, match=r"^the engine cannot be written: No space left on device$"):
        build(world)
    assert files(tmp_path) == set()


def test_an_engine_is_no_source(world: BuilderWorld, build: Build, tmp_path: Path) -> None:
    artifact = build(world)
    with pytest.raises(ArtifactError, match="expected an ONNX file to build from"):
        build_engine(artifact.path, tmp_path / "again.engine")


def test_an_engine_of_other_types_is_not_written(world: BuilderWorld, build: Build, tmp_path: Path) -> None:
    tensor = "[ { Name: x, Dimensions: [1], Datatype: Half }]"
    layer = f"Name: g, LayerType: gemm, Inputs: {tensor}, Constants: [], Outputs: {tensor}, TacticName: t, StreamId: 0"
    world.messages.append(("VERBOSE", f"Layers:\n{layer}\n"))
    with pytest.raises(BuildError, match="graph in fp32 has other types in g: nothing was written"):
        build(world)
    assert files(tmp_path) == set()


def test_a_timing_cache_that_cannot_be_read_is_named(open_world: Open, build: Build, tmp_path: Path) -> None:
    (tmp_path / "timings").mkdir()
    with pytest.raises(OutputError, match=r"timing cache .*timings cannot be read: Is a directory"):
        build(open_world("10.3"), cache=True)


def test_a_binding_without_its_libraries_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*_: object, **__: object) -> None:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(trt_api, "require", no_library)
    with pytest.raises(MissingDependencyError, match=r"without its libraries \(libnvinfer.*pip install 'tensorrt"):
        trt_api.open_tensorrt("tensorrt")
