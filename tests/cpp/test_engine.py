"""The C++ runner takes an engine as the package does, on a double of TensorRT and CUDA that does its work on the host.

The double refuses wrong use, and ends a program with another status where something is left or used after its end.
"""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import EngineArtifact, FileReference, sidecar_path, stage_artifact
from netvlad_deploy.spec.build_options import BuildFigures, BuildOptions, Gpu
from netvlad_deploy.spec.images import ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.spec.layouts import LAYOUTS
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.support.sidecar import seal, unseal
from tests.cpp.native import AS_IT_IS, ROOT, Native, View, answers_of
from tests.cpp.test_pixels import expected, noise
from tests.modules import RANGE

pytestmark = pytest.mark.cpp

LENGTH = 24
FLOAT32 = np.dtype(np.float32)
PROFILES = ("1x8x8,2x32x32,4x64x96", "1x8x8,1x12x16,1x20x20")
GPU = Gpu(name="Double GPU", compute_capability="8.7", driver="13.0")
NO_FIGURES = BuildFigures(build_ms=1, host_bytes=2**20, activation_bytes=None, weight_bytes=None, kernels=())


def write(
    path: Path,
    *,
    images: ImageInput = AS_IT_IS,
    profiles: tuple[str, ...] = PROFILES,
    built: str = "10.13.3.9",
    gpu: Gpu = GPU,
    content: dict[str, Any] | None = None,
    **options: Any,
) -> EngineArtifact:
    """Write an engine of the double with its sidecar; `content` are parts of the engine that the sidecar denies."""
    ranges = tuple(ImageProfile.parse(text) for text in profiles)
    dtype = LAYOUTS[images.layout].dtype
    artifact = EngineArtifact(
        path=path,
        spec=NetVLADSpec(num_clusters=4, feature_size=6),
        precision="fp32",
        inputs=("image:0",),
        outputs=("descriptor:0",),
        dtypes={"image:0": dtype, "descriptor:0": "float32"},
        range=RANGE,
        origin="m.pth",
        parent=FileReference(name="m.onnx", sha256="1" * 64),
        reference=FileReference(name="m.reference.npz", sha256="0" * 64),
        preprocessing="none",
        images=images,
        versions={"tensorrt": built},
        options=BuildOptions(profiles=ranges, **options),
        flags=(),
        gpu=gpu,
        machine={"cores": "2"},
        targets=(),
        figures=NO_FIGURES,
    )
    shapes = [length for each in ranges for shape in artifact.input_shapes(each)["image:0"] for length in shape]
    parts: dict[str, Any] = {"word": "double", "input": "image:0", "type": 5 if dtype == "uint8" else 0}
    parts |= {"output": "descriptor:0", "out_type": 0, "length": LENGTH, "format": 0, "profiles": len(ranges)}
    words = [str(part) for part in (parts | (content or {})).values()] + [str(length) for length in shapes]
    with stage_files(force=True) as staging:
        return stage_artifact(staging, artifact, " ".join(words).encode())


def described(view: View, images: ImageInput) -> Array:
    """Return what the engine of the double makes of a view."""
    pixels = expected(replace(view, prepared=images)).astype(np.float64)
    if images.layout.startswith("grey"):
        shares = np.array([19595, 38470, 7471])
        pixels = np.floor((pixels @ shares + 0x8000) / 2**16)[..., None]
    if images.layout.endswith("nchw"):
        pixels = pixels.transpose(2, 0, 1)
    values, number = pixels.reshape(-1), np.arange(pixels.size)
    return np.array([(values * ((number + k) % 7 + 1)).mean() for k in range(LENGTH)], np.float32)


def engine_probe(native: Native, *arguments: str | Path) -> tuple[int, str, str]:
    """Return exit status, output and errors of the program that uses the double by itself."""
    command = [str(native.folder / "engine_probe"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_engine_gets_the_pixels_of_its_layout(native: Native, tmp_path: Path, layout: str) -> None:
    images = ImageInput(resize=Resize.parse("40"), layout=layout)
    artifact = write(tmp_path / "m.engine", images=images)
    views = [View(noise(60, 81, 3), colour="bgr", gap=5), View(noise(12, 9, 3)), View(noise(40, 33), colour="grey")]
    views.append(View(noise(13, 9, 3)))
    for view, got in zip(views, native.descriptors(artifact.path, views), strict=True):
        assert not isinstance(got, str), got
        is_small = max(view.pixels.shape[:2]) <= 20
        np.testing.assert_allclose(got, described(view, images) + is_small, rtol=1e-6)


def test_the_smallest_profile_that_holds_the_image_is_taken(native: Native, tmp_path: Path) -> None:
    path = write(tmp_path / "m.engine").path
    small, large = View(noise(20, 20, 3)), View(noise(21, 20, 3))
    too_large, below = View(noise(65, 20, 3)), View(noise(8, 7, 3))
    answers = native.descriptors(path, [small, large, small, too_large, below])
    for answer, view, profile in zip(answers, (small, large, small), (1, 0, 1), strict=False):
        assert not isinstance(answer, str), answer
        np.testing.assert_allclose(answer, described(view, AS_IT_IS) + profile, rtol=1e-6)
    assert isinstance(answers[4], str)
    assert answers[3] == (
        "an image of 1x65x20 is outside every profile (1x8x8 to 4x64x96; 1x8x8 to 1x20x20): build with a wider range"
    )
    only = write(path, profiles=("2x8x8,2x8x8,4x20x20",)).path
    assert "is outside every profile (2x8x8 to 4x20x20)" in str(native.descriptors(only, [small])[0])


def test_every_call_that_fails_is_an_error_in_one_line_and_the_next_run_is_right(
    native: Native, tmp_path: Path
) -> None:
    artifact = write(tmp_path / "m.engine")
    small, large = View(noise(16, 20, 3)), View(noise(30, 20, 3))
    wanted = [described(small, AS_IT_IS) + 1] * 2 + [described(large, AS_IT_IS), described(small, AS_IT_IS) + 1]
    given, log = b"".join(view.case() for view in (small, small, large, small)), tmp_path / "calls"
    native.run("describe", artifact.path, given=given, DOUBLE_CALLS=str(log))
    calls = dict(line.split() for line in log.read_text().splitlines())
    assert len(calls) == 18
    assert (calls["cudaMalloc"], calls["setOptimizationProfileAsync"]) == ("3", "3")  # kept while they are large enough
    inside = set()
    for call in calls:
        for which in ("", ":1", ":2", ":3"):
            answers = answers_of(native.run("describe", artifact.path, given=given, DOUBLE_FAIL=call + which), FLOAT32)
            errors = [answer for answer in answers if isinstance(answer, str)]
            assert all(f"{call} failed: " in error for error in errors), errors
            assert all("told to fail" in error or "cudaError" in error for error in errors), errors
            assert errors or which, call
            if len(answers) == len(wanted):  # the engine was opened
                inside |= {call} if errors else set()
                assert not which or len(errors) <= 1
                for answer, each in zip(answers, wanted, strict=True):
                    assert isinstance(answer, str) or np.allclose(answer, each, rtol=1e-6, atol=0), call + which
    assert inside >= {"cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "enqueueV3", "setTensorAddress"}
    assert b"cudaGetDeviceCount found none" in native.run("describe", artifact.path, DOUBLE_NO_GPU="1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"built": "10.3.0"}, "it was built by tensorrt 10.3.0, this is 10.13.3.9"),
        ({"built": "10.13.3.8"}, "it was built by tensorrt 10.13.3.8, this is 10.13.3.9"),
        ({"built": "10.14.0", "version_compatible": True}, "it was built by tensorrt 10.14.0"),
        ({"built": "9.3.0", "version_compatible": True}, "it was built by tensorrt 9.3.0"),
        ({"built": "unknown"}, "it was built by tensorrt unknown"),
        ({"gpu": replace(GPU, name="Orin")}, "it was built for Orin (8.7), this is Double GPU (8.7)"),
        ({"gpu": replace(GPU, compute_capability="8.6")}, "built for Double GPU (8.6), this is Double GPU (8.7)"),
        ({"content": {"input": "images"}}, "it has descriptor:0 (output float32), images (input uint8, "),
        ({"content": {"type": 0}}, "image:0 (input float32, 1x8x8x3 to 2x32x32x3 to 4x64x96x3, 1x8x8x3 to "),
        ({"content": {"out_type": 1}}, "descriptor:0 (output data type 1)"),
        ({"content": {"format": 1}}, " in a format of its own"),
        ({"content": {"profiles": 1}}, "it has descriptor:0 (output float32), image:0 (input uint8, 1x8x8x3 to"),
        ({"content": {"word": "no-double"}}, "TensorRT: deserializeCudaEngine failed: no engine"),
        ({"content": {"word": "double-with-code"}}, "deserializeCudaEngine failed: host code is not allowed"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    native: Native, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write(tmp_path / "m.engine", **changes).path
    (answer,) = native.descriptors(path, [View(noise(9, 9, 3))])
    assert str(answer).startswith(f"{path}: "), answer
    assert words in str(answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"built": "10.13.3"},
        {"built": "10.13.3.post1"},
        {"built": "10.3.0", "version_compatible": True, "content": {"word": "double-with-code"}},
        {"gpu": replace(GPU, name="another", compute_capability="9.0"), "hardware_compatible": True},
    ],
)
def test_an_engine_that_fits_runs(native: Native, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path / "m.engine", **changes).path
    (answer,) = native.descriptors(path, [View(noise(9, 9, 3))])
    assert not isinstance(answer, str), answer


def test_a_changed_engine_is_refused_before_anything_of_cuda_or_tensorrt_is_called(
    native: Native, tmp_path: Path
) -> None:
    path = write(tmp_path / "m.engine").path
    content, log = path.read_bytes(), tmp_path / "calls"
    for at in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        answer = native.run("describe", path, DOUBLE_CALLS=str(log)).decode()
        assert answer == f"error {path} is not the file that its sidecar describes: export or build again\n"
        assert log.read_text() == ""
    path.write_bytes(content)
    record = unseal(sidecar_path(path).read_bytes(), "it")
    rtx = {**record["options"], "flavor": "tensorrt-rtx"}
    bent = {**record["options"], "profiles": [{"batch": {"min": 2, "opt": 1, "max": 1}}]}
    for change, words in (
        ({"options": rtx}, "its engine is one of tensorrt-rtx, this runner takes tensorrt's"),
        ({"options": bent}, "a profile has no order"),
        ({"options": {**rtx, "flavor": "tensorrt", "profiles": []}}, "its engine has no profiles"),
        ({"gpu": None}, "it does not say which GPU its engine was built for"),
        ({"versions": {}}, "it lacks tensorrt"),
    ):
        sidecar_path(path).write_bytes(seal({**record, "kind": "engine", **change}))
        assert native.load([path]) == [f"error {sidecar_path(path)}: {words}: export or build again"]


def test_threads_share_an_engine_on_a_gpu_that_is_not_theirs(native: Native, tmp_path: Path) -> None:
    path = write(tmp_path / "m.engine").path
    assert engine_probe(native, "threads", path) == (0, "same\n" * 4, "")


def test_the_double_refuses_wrong_use(native: Native, tmp_path: Path) -> None:
    engine = tmp_path / "raw.engine"
    engine.write_text("double images 5 descriptor 0 4 0 1 " + "1 8 8 3 " * 2 + "1 16 16 3")

    assert engine_probe(native, "misuse", engine) == (0, "", "")
    assert engine_probe(native, "leak") == (97, "", "double: 1 of device memory left\n")
    code, _, report = engine_probe(native, "peek")
    assert code not in (0, 97)
    assert "use-after-poison" in report


def test_without_tensorrt_an_engine_is_refused_by_name(native: Native, tmp_path: Path) -> None:
    path = write(tmp_path / "m.engine").path
    command = [str(native.folder / "without_tensorrt"), str(path), "a.ppm"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 65
    assert f"{path} is an engine, and this program was built without TensorRT" in done.stderr
    source = (ROOT / "examples" / "cpp" / "CMakeLists.txt").read_text()
    assert "has never run on a GPU" in source
