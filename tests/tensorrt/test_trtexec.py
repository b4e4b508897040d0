"""The line of NVIDIA's own tool has the options that the engine was built with."""

from pathlib import Path

import pytest

from netvlad_deploy.spec.build_options import RTX, BuildOptions
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.tensorrt.build_log import trtexec_line
from tests.tensorrt.conftest import PROFILES, Build, Open

FIRST = "--minShapes=features:1x1x3,mask:1x1 --optShapes=features:2x5x3,mask:2x5 --maxShapes=features:4x9x3,mask:4x9"
SECOND = "--minShapes=features:1x7x3,mask:1x7 --optShapes=features:1x7x3,mask:1x7 --maxShapes=features:1x7x3,mask:1x7"


def line(artifact: object, folder: Path, cache: Path | None = None) -> str:
    return trtexec_line(artifact, cache).replace(f"{folder}/", "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "typed"), [("10.3", " --stronglyTyped"), ("10.16", " --stronglyTyped"), ("11.0", "")]
)
def test_a_plain_build(open_world: Open, build: Build, tmp_path: Path, version: str, typed: str) -> None:
    artifact = build(open_world(version), profiles=PROFILES[:1])
    assert line(artifact, tmp_path) == (
        f"trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference{typed} --noTF32 --profilingVerbosity=detailed "
        f"{FIRST}"
    )


def test_every_option(open_world: Open, build: Build, tmp_path: Path) -> None:
    options = {"tf32": True, "workspace_mib": 512, "optimization_level": 0}
    artifact = build(open_world("11.4"), **options, hardware_compatible=True, version_compatible=True)
    assert line(artifact, tmp_path, Path("the timings")) == (
        "trtexec --onnx=m.onnx --saveEngine=m.engine --skipInference --profilingVerbosity=detailed "
        "--memPoolSize=workspace:512 --builderOptimizationLevel=0 --hardwareCompatibilityLevel=ampere+ "
        f"--versionCompatible '--timingCacheFile=the timings' --profile=0 {FIRST} --profile=1 {SECOND}"
    )


def test_rtx_has_a_tool_of_its_own(open_world: Open, build: Build, tmp_path: Path) -> None:
    artifact = build(open_world("rtx-1.7.1"), profiles=PROFILES[:1], compute_capabilities=("SM89", "SM120"))
    assert line(artifact, tmp_path) == (
        f"tensorrt_rtx --onnx=m.onnx --saveEngine=m.engine --skipInference {FIRST} --computeCapabilities=89,120"
    )


def test_the_options_are_those_of_the_artifact(open_world: Open, build: Build, tmp_path: Path) -> None:
    artifact = build(open_world("rtx-1.7.1"), profiles=(Profile.parse("1x7"),))
    assert artifact.options == BuildOptions(flavor=RTX, profiles=(Profile.parse("1x7"),))
    assert line(artifact, tmp_path).endswith(SECOND)
