"""A real `tritonserver` serves this package's pipelines to the real `tritonclient`: what it answers, refuses, survives.

The server and its client have an environment of their own, which `make test` builds where it can.
"""

import io
import os
import re
import signal
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.retrieval.embed_images import embed_images
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import Resize
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.workflow.package import package_triton
from tests.serving import triton
from tests.serving.triton import Client, Server, inputs

pytestmark = [pytest.mark.triton, pytest.mark.export, pytest.mark.ort, pytest.mark.xdist_group("triton")]

SIZE = (64, 80)
ROUNDING = 2e-6
"""Most that a value of a unit descriptor differs where a batch has another size: a few FP32 roundings."""


def encoded(seed: int, size: tuple[int, int], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(golden_image(*size, seed=seed)).save(stream, kind)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that says it is as large as this."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IDAT", zlib.compress(bytes(1 << 16)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


PHOTOS = {
    "a.jpg": encoded(1, (90, 120), "JPEG"),
    "b.png": encoded(2, (64, 80), "PNG"),
    "c.jpg": encoded(3, (200, 130), "JPEG"),
    "d.png": encoded(4, (33, 50), "PNG"),
}
TRUNCATED = PHOTOS["c.jpg"][:400]


@pytest.fixture(scope="module")
def folder(tiny: OnnxArtifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photos, pipelines and a repository of them, `stretched` and `free`."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "photos").mkdir()
    for name, content in PHOTOS.items():
        (folder / "photos" / name).write_bytes(content)
    for name, resize in (("stretched", Resize(size=SIZE)), ("free", Resize())):
        artifact = triton.with_resize(tiny, folder / f"{name}.onnx", resize)
        package_triton(artifact.path, folder / "repository", name=name, batch=4)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, client: Client) -> Iterator[Server]:
    with triton.running(folder / "repository", folder / "log", client) as server:
        yield server


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[str, Array]:
    """Return what `embed` computes of the photos (N,P), by model."""
    files, _ = find_images([folder / "photos"])
    found = {}
    for name in ("stretched", "free"):
        with open_runner(folder / f"{name}.onnx") as runner:
            found[name] = embed_images(runner, runner._artifact.images, files, batch=1).descriptors  # type: ignore[attr-defined]
    return found


def assert_near(found: Array | str, right: Array) -> None:
    assert not isinstance(found, str), found
    assert np.abs(found - right).max() < ROUNDING


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["stretched", "free"])
def test_the_descriptors_are_those_of_embed(server: Server, right: dict[str, Array], model: str, protocol: str) -> None:
    for place, content in enumerate(PHOTOS.values()):
        found = server.infer(model, inputs(content), protocol)
        assert_near(found, right[model][place])
    assert_near(server.infer(model, inputs([*PHOTOS.values()]), protocol), right[model])


def test_pixels_are_prepared_by_the_rule_as_files_are(server: Server, right: dict[str, Array], folder: Path) -> None:
    pixels = np.asarray(Image.open(folder / "photos" / "b.png"))
    assert_near(server.infer("free", inputs(pixels[None])), right["free"][1])
    large = np.asarray(Image.open(folder / "photos" / "a.jpg"))
    found = server.infer("stretched", inputs(np.stack([large, large])), "http")
    assert_near(found, right["stretched"][0])


def test_many_clients_get_what_one_gets_and_a_bad_image_is_its_sender_s_alone(
    server: Server, right: dict[str, Array]
) -> None:
    given = [*PHOTOS.values(), TRUNCATED, b"no image"]
    nothing = np.empty(0, np.float32)
    for model in ("stretched", "free"):
        expected = [*right[model], nothing, nothing]
        done = server.load(model, given, expected, clients=12, rounds=20)
        assert (len(done["times"]), done["refused"], done["errors"]) == (160, 80, [])
        assert done["worst"] < ROUNDING
    (statistics,) = server.statistics("stretched")["model_stats"]
    assert statistics["execution_count"] < statistics["inference_count"]  # several requests were computed together


REFUSED: dict[str, tuple[Any, str]] = {
    "no image": (inputs(b"no image"), "image: not recognised as an image"),
    "empty": (inputs(b""), "image: an empty file"),
    "truncated": (inputs(TRUNCATED), "image: damaged or not supported"),
    "bomb": (inputs(bomb(30_000, 30_000)), "image: too large"),
    "bad one of several": (inputs([PHOTOS["a.jpg"], TRUNCATED]), "image 1: damaged or not supported"),
    "too many": (inputs([PHOTOS["b.png"]] * 5), "batch-size must be <= 4"),
    "none": (inputs([]), "'image'"),
    "no input": ([], "0 inputs"),
    "both": (
        [*inputs(PHOTOS["b.png"]), *inputs(np.zeros((1, 64, 80, 3), np.uint8))],
        "a request has image or pixels, got image and pixels",
    ),
    "float pixels": (inputs(np.zeros((1, 64, 80, 3), np.float32)), "data-type is 'FP32'"),
    "grey pixels": (inputs(np.zeros((1, 64, 80, 1), np.uint8)), "unexpected shape"),
    "one axis": (inputs(np.zeros(4, np.uint8)), "unexpected shape"),
    "no rows": (inputs(np.zeros((1, 0, 80, 3), np.uint8)), "shape (1, 0, 80, 3), expected at least one image"),
    "another input": (inputs(b"x", "photo"), "unexpected inference input 'photo'"),
}


@pytest.mark.parametrize("given", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_request_is_refused_with_a_line_and_the_server_lives(
    server: Server, right: dict[str, Array], given: tuple[Any, str]
) -> None:
    request, words = given
    answer = server.infer("stretched", request)
    assert isinstance(answer, str), answer
    assert words in answer
    assert "Traceback" not in answer
    assert_near(server.infer("stretched", inputs(PHOTOS["b.png"])), right["stretched"][1])


def test_a_killed_model_process_is_not_started_again_but_loaded_anew_and_a_killed_server_starts_again(
    folder: Path, client: Client, right: dict[str, Array]
) -> None:
    """The server says that it is ready although the model is gone: docs/triton.md says so."""
    options = ("--model-control-mode=explicit", "--load-model=stretched")
    with triton.running(folder / "repository", folder / "log2", client, *options) as server:
        (stub,) = server.children()
        os.kill(stub, signal.SIGKILL)
        answer = server.infer("stretched", inputs(PHOTOS["b.png"]))
        assert "is not healthy" in str(answer)
        assert server.call("is_server_ready") == server.call("is_model_ready", "stretched") == {"answer": True}
        lost = server.left()
        assert "error" not in server.call("unload_model", "stretched")
        ends = time.monotonic() + 20
        while server.call("is_model_ready", "stretched")["answer"] and time.monotonic() < ends:
            time.sleep(0.05)
        assert "error" not in server.call("load_model", "stretched")
        assert_near(server.infer("stretched", inputs(PHOTOS["b.png"])), right["stretched"][1])
        (stub,) = server.children()
        server.stop(signal.SIGKILL)
        ends = time.monotonic() + 20
        while triton.lives(stub) and time.monotonic() < ends:
            time.sleep(0.05)
        if triton.lives(stub):  # most end with their server, and some wait for a lock that it held
            os.kill(stub, signal.SIGKILL)
        lost += server.left()
        server.start()
        assert_near(server.infer("stretched", inputs(PHOTOS["b.png"])), right["stretched"][1])
        for name in lost:  # what a killed process had in shared memory nobody removes
            (triton.SHARED_MEMORY / name).unlink(missing_ok=True)


def test_a_model_that_is_another_is_not_served(folder: Path, client: Client, tmp_path: Path) -> None:
    """The two pipelines differ in the rule alone, so their graphs have one hash, and their sidecars two."""
    for name in ("swapped", "stale", "plain"):
        package_triton(folder / "stretched.onnx", tmp_path / "repository", name=name)
    swapped, stale = tmp_path / "repository" / "swapped" / "1", tmp_path / "repository" / "stale" / "1"
    for file in ("model.onnx", "model.onnx.json"):  # both, so that they fit each other
        (swapped / file).write_bytes((folder / "repository" / "free" / "1" / file).read_bytes())
    (stale / "tiny.reference.npz").write_bytes(b"another")
    options = ("--exit-on-error=false", "--strict-readiness=false")
    with triton.running(tmp_path / "repository", tmp_path / "log", client, *options) as server:
        assert [server.call("is_model_ready", name)["answer"] for name in ("plain", "swapped", "stale")] == [
            True,
            False,
            False,
        ]
        said = server.said()
    for file in ("swapped/1/model.onnx.json", "stale/1/tiny.reference.npz"):
        assert re.search(rf"{file} has SHA-256 \w+, the artifact was made with \w+: it is stale", said), said
    assert "Traceback" not in said


@pytest.mark.skipif(np.__version__.startswith("1."), reason="this environment has a NumPy that the server fits")
def test_a_numpy_for_which_the_binding_was_not_built_is_refused(folder: Path, client: Client, tmp_path: Path) -> None:
    """The packages of this very test, which have NumPy 2: without the check the descriptors would be empty."""
    server = Server(folder / "repository", tmp_path / "log", client, "--exit-on-error=true")
    (packages,) = (triton.ENVIRONMENT / "lib").glob("python*/site-packages")
    server._command[:1] = ["env", f"PYTHONPATH={packages}", sys.executable]
    try:
        with pytest.raises(AssertionError, match="reads wrong values under NumPy 2"):
            server.start()
    finally:
        server.stop()
    assert "numpy<2" in server.said()
