"""What a user would pick instead, as candidates of bench: made, found, refused with a reason, and never a wrong one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import MissingDependencyError, RunError, UsageError
from netvlad_deploy.export.limit import export_limit, products_model
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.export.straight import export_straight
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runtime.open_runner import Candidate, candidates_of, open_runner
from netvlad_deploy.runtime.torch_runner import TorchRunner, check_compiler
from netvlad_deploy.runtime.unfolded import Unfolded, unfolded_module
from netvlad_deploy.spec.backends import LIMIT, PEERS, STRAIGHT, TORCH, TORCH_COMPILE
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES, LOCAL_DESCRIPTORS
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.peers import prepared, with_peers
from netvlad_deploy.workflow.source import Source
from tests.command import Command
from tests.modules import features, make_module
from tests.pipelines import tiny_pipeline
from tools.bench_table import write_vocabulary

pytestmark = [pytest.mark.export, pytest.mark.ort]


def ready(artifact: OnnxArtifact, *backends: str, unfolded: Unfolded | None = None) -> dict[str, Candidate]:
    """Return the prepared candidates by name, the limit among them."""
    candidates = candidates_of([artifact.path], backends, unfolded=unfolded)
    with prepared(candidates) as found:
        return {one.name: one for one in (*found.candidates, *filter(None, [found.limit]))}


def test_straight_is_the_unfolded_module_of_the_same_weights(exported: OnnxArtifact, tmp_path: Path) -> None:
    module = unfolded_module(exported, Unfolded())
    straight = export_straight(module, exported, tmp_path / "s.onnx")
    assert "BatchNormalization" in {node.op_type for node in onnx.load(straight.path).graph.node}
    x = features(3, 20, 16)
    with open_runner(straight) as runner, open_runner(exported, backend="oracle") as oracle:
        assert runner.outputs == (DESCRIPTOR,)
        assert np.abs(runner.run({FEATURES: x})[DESCRIPTOR] - oracle.run({FEATURES: x})[DESCRIPTOR]).max() < 1e-6


def test_straight_of_a_pipeline(tiny: OnnxArtifact, tmp_path: Path) -> None:
    straight = export_straight(tiny_pipeline(), tiny, tmp_path / "s.onnx")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), dtype=np.uint8)
    with open_runner(straight) as runner, open_runner(tiny) as ours:
        assert np.abs(runner.run({IMAGES: images})[DESCRIPTOR] - ours.run({IMAGES: images})[DESCRIPTOR]).max() < 1e-5


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)])
def test_the_limit_of_a_head_is_its_two_products(exported: OnnxArtifact, tmp_path: Path, backend: str) -> None:
    limit = export_limit(exported, tmp_path / "limit.onnx")
    assert [node.op_type for node in onnx.load(limit.path).graph.node] == ["MatMul", "Transpose", "MatMul"]
    x = features(2, 9, 16)
    with open_runner(limit, backend=backend) as runner:
        products = runner.run({FEATURES: x})[DESCRIPTOR]
    weight = np.full((16, 7), 1 / 16)
    assert np.abs(products - (x @ weight).transpose(0, 2, 1) @ x).max() < 1e-4


def test_the_products_are_as_much_work_as_the_layers() -> None:
    """N D (K+G) and N D K multiplications: of both products together 2 K + G columns."""
    (weight,) = onnx.load_from_string(products_model(32, 64, 8)).graph.initializer
    assert weight.dims == [32, 68]


@pytest.mark.parametrize("name", ["tiny", "half"])
def test_the_limit_of_a_pipeline_is_its_backbone(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> None:
    artifact: OnnxArtifact = request.getfixturevalue(name)
    limit = export_limit(artifact, tmp_path / "limit.onnx")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), dtype=np.uint8)
    with open_runner(limit) as runner, open_runner(artifact) as whole, whole.tapped() as tapped:
        assert runner.outputs == (LOCAL_DESCRIPTORS,)
        expected = tapped.run({IMAGES: images})[LOCAL_DESCRIPTORS]
        assert np.array_equal(runner.run({IMAGES: images})[LOCAL_DESCRIPTORS], expected)


def test_peers_are_for_bench_alone(exported: OnnxArtifact) -> None:
    for backend in PEERS:
        with pytest.raises(UsageError, match=f"backend {backend} is for bench alone: choose one of onnxruntime, "):
            open_runner(exported, backend=backend)


def test_a_head_is_unfolded_from_its_reference_file(exported: OnnxArtifact, module: NetVLAD) -> None:
    found = unfolded_module(exported, Unfolded())
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in module.state_dict().items())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Return a pipeline exported from a checkpoint that stands beside it; do not change either."""
    folder = tmp_path_factory.mktemp("pipeline")
    checkpoint = write_vocabulary(folder / "v.safetensors", "alexnet", (64, 80))
    return export(Source(checkpoint=checkpoint), folder / "p.onnx", GraphOptions())


def test_a_pipeline_is_unfolded_from_the_parent_beside_it(pipeline: OnnxArtifact) -> None:
    found = ready(pipeline, TORCH, STRAIGHT, LIMIT)
    assert list(found) == ["p.onnx on torch", "p.onnx on straight", "limit of p.onnx on onnxruntime"]
    assert not any(one.reason for one in found.values())
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), dtype=np.uint8)
    with found["p.onnx on torch"].open_timed(threads=1) as runner, open_runner(pipeline) as ours:
        assert np.abs(runner.run({IMAGES: images})[DESCRIPTOR] - ours.run({IMAGES: images})[DESCRIPTOR]).max() < 1e-5


def test_a_checkpoint_that_is_missing_or_another_is_a_reason(pipeline: OnnxArtifact, tmp_path: Path) -> None:
    for path in (pipeline.path, pipeline.path.with_name("p.onnx.json"), pipeline.reference_path):
        shutil.copy(path, tmp_path)
    moved = replace(pipeline, path=tmp_path / "p.onnx")
    found = ready(moved, TORCH, STRAIGHT)
    assert {one.reason for one in found.values()} == {
        "p.onnx is unfolded from its checkpoint v.safetensors, which is not beside it: pass --checkpoint FILE"
    }
    (tmp_path / "v.safetensors").write_bytes(b"another")
    assert "it is stale" in ready(moved, TORCH)["p.onnx on torch"].reason
    given = Unfolded(checkpoint=pipeline.path.with_name("v.safetensors"))
    assert not ready(moved, TORCH, unfolded=given)["p.onnx on torch"].reason


def test_a_pipeline_from_a_seed_needs_a_checkpoint(tiny: OnnxArtifact) -> None:
    reason = ready(tiny, TORCH_COMPILE)["tiny.onnx on torch-compile"].reason
    assert reason == "tiny.onnx is unfolded from its checkpoint: pass --checkpoint FILE"


def test_without_a_compiler_torch_compile_is_not_run(exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MissingDependencyError, match=r"needs the C\+\+ compiler no-such-compiler, which is not"):
        check_compiler()
    assert "no-such-compiler" in ready(exported, TORCH_COMPILE)["m.onnx on torch-compile"].reason


def test_torch_compile_runs_what_was_compiled(module: NetVLAD, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def planted(given: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(given)
        return lambda *tensors: 2 * given(*tensors)

    monkeypatch.setattr(torch, "compile", planted)
    monkeypatch.setattr("netvlad_deploy.runtime.torch_runner.check_compiler", lambda: None)
    x = features(2, 5, 16)
    once, twice = (TorchRunner(module, compiled=flag).run({FEATURES: x})[DESCRIPTOR] for flag in (False, True))
    assert np.array_equal(2 * once, twice)
    assert compiled == [module]


def test_a_failure_of_torch_compile_is_one_line(module: NetVLAD, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("InductorError:\n  no such kernel")

    monkeypatch.setattr(torch, "compile", lambda _: fails)
    monkeypatch.setattr("netvlad_deploy.runtime.torch_runner.check_compiler", lambda: None)
    with pytest.raises(RunError, match=r"^torch\.compile failed: InductorError: no such kernel$"):
        TorchRunner(module, compiled=True).run({FEATURES: features(1, 3, 16)})


def test_all_peers_leave_out_what_cannot_run(
    exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = candidates_of([exported.path], [TORCH])
    everyone = with_peers(asked)
    assert [one.backend for one in everyone] == [TORCH, "openvino", TORCH_COMPILE, STRAIGHT, LIMIT]
    at_once = with_peers(candidates_of([exported.path], []), concurrency=2)
    assert [one.backend for one in at_once] == [None, "openvino", STRAIGHT, LIMIT]
    with prepared(everyone, drop=everyone[1:]) as found:
        assert found.candidates[0].backend == TORCH
        assert f"m.onnx on {STRAIGHT}" in [one.name for one in found.candidates]
        assert f"m.onnx on {TORCH_COMPILE}" not in [one.name for one in found.candidates]
        assert found.limit is not None
    assert "left out: m.onnx on torch-compile: torch.compile needs the C++ compiler" in caplog.text


def test_a_wrong_peer_is_not_timed_and_the_others_are(exported: OnnxArtifact, tmp_path: Path) -> None:
    torch.save({"state_dict": make_module(6, 16, 2, seed=9).state_dict()}, tmp_path / "other.pt")
    wrong = Unfolded(checkpoint=tmp_path / "other.pt")
    candidates = candidates_of([exported.path], ["onnxruntime", TORCH, STRAIGHT, LIMIT], unfolded=wrong)
    report = bench(candidates, num_features=20, duration_s=0.1, threads=1)
    ours, theirs, straight, limit = report.candidates
    assert ours.verdict is Verdict.PASS
    assert ours.over_limit is None or ours.over_limit.value > 0
    for one in (theirs, straight):
        assert one.verdict is Verdict.NOT_RUN
        assert "computes something else than m.onnx on onnxruntime, so it was not timed: 1 - cosine" in one.reason
    assert limit.name == report.limit == "limit of m.onnx on onnxruntime"
    assert limit.runs > 0


@pytest.mark.openvino
def test_the_command_line_takes_peers(exported: OnnxArtifact, command: Command, tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8), tmp_path / "m.onnx")
    words = ("bench", artifact.path, "--backend", "openvino", "--backend", "limit", "--duration", "0.1", "--json")
    outcome = command(*map(str, words), "--checkpoint", str(artifact.reference_path))
    assert outcome.code == 0
    assert '"limit of m.onnx on openvino"' in outcome.out
