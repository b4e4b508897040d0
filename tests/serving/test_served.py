"""Requests and their answers without a server: which images are computed together, and whose error is whose."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.serving import pytriton, served
from netvlad_deploy.serving.served import Served
from netvlad_deploy.serving.triton_model import KNOWN, ServedModel, check_binding
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.items import Content
from netvlad_deploy.support.arrays import Array, Arrays
from netvlad_deploy.support.files import sha256_file
from netvlad_deploy.workflow.package import package_triton
from tests.double.triton import binding

pytestmark = [pytest.mark.export, pytest.mark.ort]

SMALL, LARGE = golden_image(32, 40, seed=1), golden_image(64, 48, seed=2)


def encoded(pixels: Array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tiny: OnnxArtifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return package_triton(tiny.path, tmp_path_factory.mktemp("served") / "repository").folder


def open_served(folder: Path, **options: Any) -> Served:
    sha256 = sha256_file(folder / "model.onnx.json")
    return Served(
        folder / "model.onnx", **{"sidecar_sha256": sha256, "gpu": False, "threads": 1, "batch": 2, **options}
    )


def test_images_of_one_size_are_computed_together_whichever_request_they_are_of(
    folder: Path, tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_served(folder)
    shapes: list[tuple[int, ...]] = []
    run = opened._runner._run

    def spied(feeds: Arrays) -> Arrays:
        shapes.append(feeds[IMAGES].shape)
        return run(feeds)

    monkeypatch.setattr(opened._runner, "_run", spied)
    requests: list[list[Content]] = [
        [encoded(SMALL), LARGE],
        [b"no image"],
        [LARGE],
        [SMALL, encoded(SMALL)],
        [SMALL, b""],
    ]
    answers = opened.answer(requests)
    assert shapes == [(2, 32, 40, 3), (2, 32, 40, 3), (2, 64, 48, 3)]
    assert [str(answers[place]).partition(" (")[0] for place in (1, 4)] == [
        "image: not recognised as an image",
        "image 1: an empty file",
    ]
    with open_runner(tiny) as runner:
        small, large = (runner.run({IMAGES: pixels[None]})["descriptor"] for pixels in (SMALL, LARGE))
    for place, right in ((0, [small, large]), (2, [large]), (3, [small, small])):
        answer = answers[place]
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(answer, np.concatenate(right), atol=2e-6)
    assert opened.answer([]) == []
    opened.close()


def test_a_batch_that_fails_is_computed_image_by_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_served(folder)
    run = opened._runner.run

    def failing(feeds: Feeds) -> Arrays:
        if (feeds[IMAGES] == 7).all(axis=(1, 2, 3)).any():
            raise RunError("seven")
        return run(feeds)

    monkeypatch.setattr(opened._runner, "run", failing)
    good, bad, other = opened.answer([[SMALL], [np.full_like(SMALL, 7)], [SMALL]])
    assert isinstance(good, np.ndarray)
    assert isinstance(other, np.ndarray)
    assert str(bad) == "seven"
    opened.close()


def test_what_is_too_large_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_served(folder)
    monkeypatch.setattr(served, "MOST_IMAGE_BYTES", 10)
    monkeypatch.setattr(served, "MAX_PIXELS", 100)
    long, wide = opened.answer([[bytes(11)], [SMALL]])
    assert str(long) == "image has 11 bytes, expected at most 10: send a smaller one"
    assert str(wide) == "image has shape (32, 40, 3), expected at most 100 pixels"
    opened.close()


def test_a_tensor_without_images_is_its_own_requests_loss(folder: Path) -> None:
    model = ServedModel()
    model._served = open_served(folder)
    model._triton = binding()
    empty = [np.empty(shape, object) for shape in ((0,), (1, 0), (0, 1), ())]
    given = [{"image": SimpleNamespace(as_numpy=lambda values=values: values)} for values in empty]
    good = {"pixels": SimpleNamespace(as_numpy=lambda: SMALL[None])}
    *refused, answered = model.execute([*given, good])
    assert [str(each) for each in refused] == [
        f"image has shape {each.shape}, expected at least one image" for each in empty
    ]
    assert answered[0].shape[0] == 1
    model.finalize()


def test_a_sidecar_of_another_hash_is_not_opened(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model.onnx.json has SHA-256 \w+, .* package it again"):
        open_served(folder, sidecar_sha256="0" * 64)


class Tensor:
    """A tensor of a binding that gives back what `change` makes of the values."""

    change: Any = staticmethod(lambda values: values)

    def __init__(self, _: str, values: Array) -> None:
        self._values = values

    @classmethod
    def from_dlpack(cls, name: str, other: "Tensor") -> "Tensor":
        return cls(name, cls.change(other._values))

    def as_numpy(self) -> Array:
        return self._values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values[:0], "reads wrong values under NumPy"),
        (lambda values: values + 1, "reads wrong values under NumPy"),
        (lambda values: values.astype(np.float64), "numpy<2"),
        (lambda values: values.no_such_method(), "binding to NumPy does not work"),
    ],
)
def test_a_binding_that_changes_a_known_array_is_refused(
    change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = SimpleNamespace(Tensor=Tensor, TritonModelException=RuntimeError)
    check_binding(module)
    monkeypatch.setattr(Tensor, "change", staticmethod(change))
    with pytest.raises(DeviceUnavailableError, match=words):
        check_binding(module)
    assert len(set(KNOWN.ravel().tolist())) == KNOWN.size


def test_the_server_of_pytriton_is_laid_out_for_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = "{}.{}".format(*sys.version_info)
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        f"python_backend_stubs/{version}/{pytriton.STUB}",
    ):
        (tmp_path / "server" / name).parent.mkdir(parents=True)
        (tmp_path / "server" / name).touch()
    (tmp_path / "backends").mkdir()
    pytriton.lay_out(tmp_path / "server", tmp_path / "backends")
    laid = {path.name for path in (tmp_path / "backends" / "python").iterdir() if path.exists()}
    assert laid == {"libtriton_python.so", pytriton.STUB}
    arguments = ["--model-repository=r", "--http-address=0.0.0.0"]
    command, environment = pytriton.command_of(tmp_path / "server", tmp_path / "backends", arguments, {"PATH": "/bin"})
    assert command[0].endswith("bin/tritonserver")
    assert "--grpc-address=127.0.0.1" in command
    assert not {"--http-address=127.0.0.1"} & set(command)
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    monkeypatch.setattr(sys, "version_info", (3, 99))
    with pytest.raises(MissingDependencyError, match=f"not for Python 3.99, but for {version}"):
        pytriton.lay_out(tmp_path / "server", tmp_path / "other")
