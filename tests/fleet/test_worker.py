"""A worker by itself, without Ray: what it checks before it begins, and what it answers."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.bulk.plan import Plan, load_plan
from netvlad_deploy.bulk.shards import find_shard
from netvlad_deploy.errors import RunError, UsageError
from netvlad_deploy.fleet.embed_on_ray import embed_on_ray, needs_gpu
from netvlad_deploy.fleet.worker import Worker, request_for
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.workflow.embed import EmbedOptions, Part, embed
from tests.command import Command

pytestmark = [pytest.mark.ort, pytest.mark.export]


@pytest.fixture
def plan(tmp_path: Path, tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """Return the plan of four images in two shards, of which the second is done; this process works in its folder."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 40, 3), 60 * number, np.uint8)).save(f"photos/{number}.png")
    options = EmbedOptions(shard_size=2)
    embed(Candidate(path=tiny.path), [Path("photos")], Path("made"), options, part=Part(index=1, count=2))
    yield load_plan(Path("made"))
    os.chdir(tmp_path)


def request(plan: Plan, tiny: OnnxArtifact, changes: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return {**request_for(plan, Candidate(path=tiny.path), None), **changes}


def test_a_worker_elsewhere_computes_what_the_driver_planned(plan: Plan, tiny: OnnxArtifact, tmp_path: Path) -> None:
    asked = request(plan, tiny)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")  # as a node's worker is
    worker = Worker()
    assert worker.open(asked, 1)["versions"]["onnxruntime"]
    assert worker.embed(0)["done"]["descriptors"] == 2
    assert worker.embed(0)["done"] == worker.embed(0)["done"]
    assert find_shard(plan, 0) is not None
    assert worker.embed(7)["error"] == "ArtifactError"


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"package": "0.0.9, code abc"}, "UsageError", "driver has 0.0.9, code abc: install the same on all nodes"),
        ({"manifest_sha256": "0" * 64}, "InputError", "holds another plan than on the driver: all nodes must share"),
        ({"folder": "/nowhere"}, "InputError", "/nowhere cannot be entered (No such file or directory): all nodes"),
        ({"seen": ["photos", "/nowhere"]}, "InputError", "/nowhere is not there: all nodes must share a file system"),
    ],
)
def test_a_node_that_sees_something_else_says_so(
    plan: Plan, tiny: OnnxArtifact, changes: dict[str, Any], error: str, words: str
) -> None:
    answer = Worker().open(request(plan, tiny, changes), 1)
    assert answer["error"] == error
    assert words in answer["reason"]


def test_a_node_with_another_artifact_says_so(plan: Plan, tiny: OnnxArtifact, half: OnnxArtifact) -> None:
    other = Candidate(path=half.path).request
    answer = Worker().open(request(plan, tiny, {"candidate": other}), 1)
    assert answer["error"] == "ArtifactError"
    assert "the plan in" in answer["reason"]
    gone = {**other, "path": "/nowhere/tiny.onnx"}
    assert Worker().open(request(plan, tiny, {"candidate": gone}), 1)["error"] == "ArtifactError"


def test_what_runs_on_a_gpu_needs_one(tiny: OnnxArtifact) -> None:
    backends = {None: False, "onnxruntime": False, "openvino": False, "onnxruntime-cuda": True, "tensorrt": True}
    assert {backend: needs_gpu(Candidate(path=tiny.path, backend=backend)) for backend in backends} == backends


def test_ray_is_refused_with_what_it_does_not_go_with(command: Command, tiny: OnnxArtifact, plan: Plan) -> None:
    base = ("embed", str(tiny.path), "photos", "-o", "x.npz", "--ray", "local")
    for more in (("--shard", "0/2"), ("--merge",)):
        said = command(*base, *more)
        assert said.code == 2
        assert "--ray computes all shards and joins them: leave --shard and --merge out" in said.err
    said = command(*base, "--runtime-cache", "kernels")
    assert said.code == 2
    assert "leave it out with --ray" in said.err
    assert not Path("x.npz.parts").exists()
    with pytest.raises(UsageError, match=r"ray://10\.0\.0\.1 is for Ray's client: run this on a node of the cluster"):
        embed_on_ray("ray://10.0.0.1", plan, Candidate(path=tiny.path), [0], done=lambda _: None)


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("Failed to connect to GCS. The program will terminate.\n", "the Ray cluster does not answer any more: run"),
        ("first\nlast\n", "the driver ended: last"),
    ],
)
def test_a_driver_that_dies_is_explained(
    tiny: OnnxArtifact, plan: Plan, monkeypatch: pytest.MonkeyPatch, printed: str, words: str
) -> None:
    class Dying(contextlib.nullcontext[None]):
        def __enter__(self) -> Any:
            return self

        def send(self, request: Mapping[str, Any]) -> None:
            Path(request["log"]).write_text(printed)

        def receive(self) -> None:
            raise RunError("the driver ended")

    monkeypatch.setattr("netvlad_deploy.fleet.embed_on_ray.Child", lambda *_, **__: Dying())
    with pytest.raises(RunError, match=words):
        embed_on_ray("auto", plan, Candidate(path=tiny.path), [0], done=lambda _: None)
