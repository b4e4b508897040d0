"""What is proven before an engine is deserialised, on doubles of all six TensorRT versions."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import ArtifactError, RunError
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.tensorrt.loader import EngineTensor, LoadedEngine
from tests.double.machine import GPU, PROFILES, Machine

DESERIALISED = "Runtime.deserialize_cuda_engine"


@pytest.fixture
def artifact(machine: Machine, tmp_path: Path) -> EngineArtifact:
    return machine.engine(tmp_path / "m.engine")


def refused(machine: Machine, artifact: EngineArtifact, message: str) -> None:
    """Check that an engine is refused before it is deserialised, with the command that builds it again."""
    with pytest.raises(ArtifactError, match=message) as caught:
        LoadedEngine(artifact)
    assert str(caught.value).endswith(artifact.cure)
    assert DESERIALISED not in machine.world.journal


def test_every_changed_byte_is_refused_before_it_is_deserialised(machine: Machine, artifact: EngineArtifact) -> None:
    good = artifact.path.read_bytes()
    for position in range(len(good)):
        artifact.path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        refused(machine, artifact, "its sidecar says")


def test_a_file_that_changed_since_its_sidecar_was_read_is_refused(machine: Machine, artifact: EngineArtifact) -> None:
    artifact.path.write_bytes(artifact.path.read_bytes() + b" ")
    refused(machine, artifact, "its sidecar says")


def test_a_file_that_is_gone_is_an_artifact_error(artifact: EngineArtifact) -> None:
    artifact.path.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        LoadedEngine(artifact)


def test_another_version_is_refused(machine: Machine, artifact: EngineArtifact) -> None:
    other = replace(artifact, versions={artifact.flavor: "9.9.9"})
    refused(machine, other, rf"it was built by {artifact.flavor} 9.9.9, this is {machine.module.__version__}: ")


@pytest.mark.parametrize(
    ("built", "running", "fits"),
    [
        ("10.3.0", "10.3.0", True),
        ("10.3.0", "10.13.2", True),
        ("10.13.2", "10.3.0", False),
        ("10.3.0", "11.0.0", False),
    ],
)
def test_a_version_compatible_engine_runs_on_later_versions_of_its_major(
    standard: Machine, tmp_path: Path, built: str, running: str, fits: bool
) -> None:
    artifact = standard.engine(tmp_path / "m.engine", version_compatible=True)
    artifact = replace(artifact, versions={"tensorrt": built})
    standard.module.__version__ = running
    if fits:
        assert LoadedEngine(artifact).runtime.engine_host_code_allowed
    else:
        refused(standard, artifact, "it was built by")


def test_host_code_is_not_allowed_to_other_engines(artifact: EngineArtifact) -> None:
    assert not LoadedEngine(artifact).runtime.engine_host_code_allowed


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (Gpu(name="Other", compute_capability="8.7", driver=""), r"this is Double GPU \(8.7\)"),
        (Gpu(name="Double GPU", compute_capability="8.6", driver=""), r"this is Double GPU \(8.7\)"),
        (None, "it was built for None"),
    ],
)
def test_another_gpu_is_refused(standard: Machine, tmp_path: Path, gpu: Gpu | None, message: str) -> None:
    refused(standard, standard.engine(tmp_path / "m.engine", gpu=gpu), message)


def test_another_driver_is_none_of_our_business(machine: Machine, tmp_path: Path) -> None:
    LoadedEngine(machine.engine(tmp_path / "m.engine", gpu=replace(GPU, driver="99.9")))


@pytest.mark.parametrize(("major", "fits"), [(7, False), (8, True), (12, True)])
def test_a_hardware_compatible_engine_runs_from_ampere_on(
    standard: Machine, tmp_path: Path, major: int, fits: bool
) -> None:
    standard.cuda.gpu.major = major
    standard.cuda.gpu.minor = 0
    artifact = standard.engine(tmp_path / "m.engine", hardware_compatible=True)
    if fits:
        LoadedEngine(artifact)
    else:
        refused(standard, artifact, r"this is Double GPU \(7.0\)")


@pytest.mark.parametrize(
    ("targets", "fits"),
    [
        (("SM87",), True),
        (("SM86", "SM89"), False),
        (("SM80 and later",), True),
        (("SM120 and later",), False),
        (("CURRENT",), False),
    ],
)
def test_an_rtx_engine_runs_on_its_architectures(
    machine: Machine, tmp_path: Path, targets: tuple[str, ...], fits: bool
) -> None:
    artifact = machine.engine(tmp_path / "m.engine", targets=targets)
    if fits:
        LoadedEngine(artifact)
    else:
        refused(machine, artifact, f"it was built for {', '.join(targets)}")


def test_all_that_differs_is_said_at_once(machine: Machine, artifact: EngineArtifact) -> None:
    other = replace(artifact, versions={artifact.flavor: "1.0"}, targets=("SM75",))
    refused(machine, other, r"it was built by .* 1.0, this is .*; it was built for SM75, this is Double GPU")


def test_rtx_is_asked_whether_the_engine_is_valid(
    machine: Machine, artifact: EngineArtifact, caplog: pytest.LogCaptureFixture
) -> None:
    world: Any = machine.world
    world.validity = "INVALID"
    if not world.rtx:
        LoadedEngine(artifact)
        return
    refused(machine, artifact, r"is not valid here \(7\)")
    world.validity = "SUBOPTIMAL"
    with caplog.at_level(logging.WARNING):
        LoadedEngine(artifact)
    assert "not at its best (7)" in caplog.text


def test_an_engine_that_does_not_load_is_quoted(machine: Machine, artifact: EngineArtifact) -> None:
    machine.world.failing.add(DESERIALISED)
    with pytest.raises(RunError, match="cannot be loaded: the engine is damaged"):
        LoadedEngine(artifact)


@pytest.mark.parametrize("change", ["inputs", "outputs", "dtypes", "profiles"])
def test_a_sidecar_that_says_other_tensors_is_refused(artifact: EngineArtifact, change: str) -> None:
    other = {
        "inputs": {"inputs": ("features", "mask"), "dtypes": {**artifact.dtypes, "mask": "bool"}},
        "outputs": {"outputs": ("features", "descriptor")},
        "dtypes": {"dtypes": {**artifact.dtypes, "features": "float16"}},
        "profiles": {"options": replace(artifact.options, profiles=PROFILES[:1])},
    }[change]
    with pytest.raises(ArtifactError, match="its sidecar says"):
        LoadedEngine(replace(artifact, **other))  # type: ignore[arg-type]


def test_the_tensors_are_described(machine: Machine, tmp_path: Path) -> None:
    loaded = LoadedEngine(machine.engine(tmp_path / "m.engine", masked=True, half=True))
    features, mask, descriptor = loaded.tensors()
    assert features == EngineTensor(
        name="features",
        mode="input",
        dtype="float16",
        shape=(-1, -1, 3),
        format="LINEAR",
        profiles=(((1, 1, 3), (2, 5, 3), (4, 9, 3)), ((1, 100, 3), (1, 300, 3), (2, 400, 3))),
    )
    assert (mask.dtype, mask.profiles[1]) == ("bool", ((1, 100), (1, 300), (2, 400)))
    assert (descriptor.mode, descriptor.shape, descriptor.profiles) == ("output", (-1, 6), ())
    assert loaded.memory_bytes() == (4 * 4 * 9 * 3, 4 * 2 * 400 * 3)
