"""The C++ runner gives an image the descriptor that the package gives it, and takes no file that was changed."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact, sidecar_path
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.support.sidecar import seal, unseal
from tests.cpp.native import Native, View
from tests.cpp.test_pixels import expected, noise, pillow
from tests.pipelines import tiny_pipeline

pytestmark = [pytest.mark.cpp, pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def robot(tiny: OnnxArtifact, tmp_path: Path) -> Path:
    """Return the tiny pipeline, with a rule in its sidecar, under a name beyond ASCII in a folder of the test."""
    path = tmp_path / "robot é.onnx"
    shutil.copy(tiny.path, path)
    record = unseal(sidecar_path(tiny.path).read_bytes(), "it")
    record["images"]["resize"]["size"] = [48, 64]
    record["origin"] = 'weights of "Zoë" \U0001f916 \\ \n'
    sidecar_path(path).write_bytes(seal(record))
    return path


def test_descriptors_are_those_of_the_package(native: Native, robot: Path) -> None:
    views = [View(noise(70, 90, 3)), View(noise(33, 129, 3), colour="bgr", gap=7), View(noise(50, 50), colour="grey")]
    found = native.descriptors(robot, views)
    images = load_artifact(robot).images
    assert images is not None
    with open_runner(robot) as runner:
        for view, got in zip(views, found, strict=True):
            wanted = runner.run({IMAGES: expected(replace(view, prepared=images))[None]})["descriptor"][0]
            assert not isinstance(got, str), got
            assert np.abs(got - wanted).max() < 1e-5
            assert np.linalg.norm(wanted) > 0.9


@pytest.mark.parametrize("layout", ["grey", "rgb-nchw"])
def test_it_feeds_a_graph_of_another_layout_as_the_package_does(native: Native, tmp_path: Path, layout: str) -> None:
    names = GraphOptions(layout=layout, tensor_names="image:0,descriptor:0")
    artifact = export_onnx(tiny_pipeline(), tmp_path / "m.onnx", names)
    image = noise(40, 56, 3)
    with open_runner(artifact) as runner:
        wanted = runner.run({IMAGES: image[None]})["descriptor"][0]
    (got,) = native.descriptors(artifact.path, [View(image)])
    assert not isinstance(got, str), got
    assert np.abs(got - wanted).max() < 1e-5


def test_the_program_prints_a_line_for_each_image(native: Native, robot: Path) -> None:
    image, folder = noise(70, 90, 3), robot.parent
    pillow.fromarray(image).save(folder / "a.ppm")
    pillow.fromarray(image[..., 0]).save(folder / "b.pgm")
    (folder / "cut.ppm").write_bytes((folder / "a.ppm").read_bytes()[:-1])

    def run(*names: str) -> tuple[int, str, str]:
        command = [str(native.folder / "runner" / "netvlad-describe"), str(robot), *names]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, printed, errors = run("a.ppm", "b.pgm")
    assert (code, errors) == (0, "")
    got = np.array([line.split() for line in printed.splitlines()], np.float32)
    wanted = native.descriptors(robot, [View(image), View(image[..., 0].copy(), colour="grey")])
    assert np.array_equal(got, np.array(wanted))
    assert run()[0] == 2
    assert run("cut.ppm") == (65, "", "netvlad-describe: cut.ppm ends before its last pixel\n")
    assert run("none.ppm") == (65, "", "netvlad-describe: none.ppm is missing, or cannot be read\n")
    assert "is no binary PPM or PGM image of 8 bits" in run(robot.name)[2]


def test_a_changed_byte_is_refused(native: Native, robot: Path) -> None:
    missing = robot.with_name("none.onnx")
    assert native.load([robot, missing]) == ["ok", f"error {missing}.json is missing, or no file"]
    content = bytearray(robot.read_bytes())
    content[len(content) // 2] ^= 1
    for changed in (content, content[:-1]):
        robot.write_bytes(changed)
        assert native.load([robot]) == [
            f"error {robot} is not the file that its sidecar describes: export or build again"
        ]
    robot.write_bytes(content + b"more")
    assert "bytes, at most" in native.load([robot])[0]


CHANGES: list[tuple[Callable[[str], str], str]] = [
    (lambda text: text.replace('"fp32"', '"fp16"', 1), "it was changed after it was written"),
    (lambda text: text.replace("artifact/4", "artifact/3"), "it was changed after it was written"),
    (lambda text: text + " ", "it was changed after it was written"),
    (lambda text: text.replace('"crop": null', '"crop": null,\n    "crop": null'), "or one stands twice"),
    (lambda text: text[:200], "not JSON: "),
    (lambda text: "", "not JSON: "),
    (lambda text: "[" * 100_000, "not JSON: values are nested too deep"),
    (lambda text: "[]\n", "it is no object"),
    (lambda text: "{}\n", "it lacks sidecar_sha256"),
]
RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"images": None}, "it takes local descriptors, not images"),
    ({"outputs": ["descriptor", "b"], "dtypes": {}}, "it has several outputs, or none"),
    ({"dtypes": {"images": "uint8", "descriptor": "float16"}}, "its descriptor is float16, expected float32"),
    ({"external_data": {"name": "x", "sha256": "y"}}, "its weights stand in a file of their own"),
    ({"images": {"crop": None, "resize": {}}}, "it lacks size"),
    ({"size_bytes": -1}, "expected a whole number"),
    ({"precision": 16}, "expected a string"),
]


def test_a_sidecar_that_was_changed_or_is_not_for_this_runner_is_refused(native: Native, robot: Path) -> None:
    sidecar = sidecar_path(robot)
    text = sidecar.read_text()
    record = unseal(text.encode(), "it")
    sharp = json.loads(json.dumps(record["images"]))
    sharp["resize"]["filter"] = "sharp"
    sealed = [(seal({**record, **change}).decode(), words) for change, words in RECORDS]
    sealed.append((seal({**record, "images": sharp}).decode(), "the filter sharp is not known to this runner"))
    bent = {**record["images"], "layout": "yuv"}
    sealed.append((seal({**record, "images": bent}).decode(), "the layout yuv is not known to this runner"))
    for content, words in [*((change(text), words) for change, words in CHANGES), *sealed]:
        sidecar.write_text(content)
        (answer,) = native.load([robot])
        assert answer.startswith(f"error {sidecar}: ")
        assert words in answer
        assert answer.endswith(": export or build again")
    sidecar.write_bytes(seal({**record, "kind": "engine"}))
    assert native.load([robot]) == [f"error {sidecar}: it lacks options: export or build again"]
    sidecar.write_bytes(seal({**record, "kind": "tflite"}))
    (refused,) = native.descriptors(robot, [])
    assert refused == f"{robot} is of the kind tflite, expected onnx or engine"


def test_garbage_for_a_sidecar_or_a_model_is_an_error_and_nothing_else(native: Native, robot: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, whose report would end the probe."""
    random = np.random.default_rng(0)
    text = sidecar_path(robot).read_bytes()
    paths = [robot.with_name(f"{number}.onnx") for number in range(300)]
    for path in paths:
        content = bytearray(text)
        for _ in range(random.integers(1, 4)):
            at, length = int(random.integers(0, len(content))), int(random.integers(1, 40))
            part = [
                bytes([random.choice(list(b'{}[]",:\\u0e-tfn\x00\xff'))]),
                b"",
                content[at:] + content[at:][:length],
            ]
            content[at : at + length] = part[random.integers(0, 3)]
        sidecar_path(path).write_bytes(content)
    answers = native.load(paths)
    assert len(answers) == len(paths)
    assert all(answer.startswith("error ") for answer in answers)
    assert len({answer.partition(".json: ")[2].partition(" at byte")[0] for answer in answers}) > 5
    garbage = b"\x08\x07garbage"
    robot.write_bytes(garbage)
    record = {**unseal(text, "it"), "sha256": hashlib.sha256(garbage).hexdigest(), "size_bytes": len(garbage)}
    sidecar_path(robot).write_bytes(seal(record))
    (refused,) = native.descriptors(robot, [])
    assert str(refused).startswith("ONNX Runtime: ")


def test_a_library_older_than_the_headers_is_refused(native: Native, robot: Path) -> None:
    answer = native.run("describe", robot, LD_LIBRARY_PATH=str(native.folder / "old")).decode()
    assert answer.startswith("error ONNX Runtime 0.9.0 is older than the headers of version 1.")
