"""The backend openvino: FP32 whatever the processor prefers, the same verdicts as elsewhere, errors in our words."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import MissingDependencyError, RunError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.runtime.openvino_runner import OpenVinoRunner, probe
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, STAGES
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.embed import embed
from netvlad_deploy.workflow.validate import validate
from tests.modules import features, make_module
from tests.processes import HANG_S

pytestmark = [pytest.mark.export, pytest.mark.ort, pytest.mark.openvino]


def on_openvino(artifact: OnnxArtifact) -> Candidate:
    return Candidate(path=artifact.path, backend="openvino")


@pytest.mark.parametrize("name", ["exported", "masked", "tiny", "half"])
def test_artifacts_pass_every_case(request: pytest.FixtureRequest, name: str) -> None:
    report = validate(on_openvino(request.getfixturevalue(name)))
    assert report.verdict is Verdict.PASS
    assert len(report.cases) >= 6


def test_extreme_cases_pass_in_either_precision(tmp_path: Path) -> None:
    """Ghosts that win by 100, scales from 1e-4 to 1e4, logits that only FP16 rounds."""
    for precision in ("fp32", "fp16"):
        artifact = export_onnx(make_module(8, 64, 4), tmp_path / f"{precision}.onnx", GraphOptions(precision=precision))
        report = validate(on_openvino(artifact))
        assert report.verdict is Verdict.PASS
        assert {"ghosts win by 100", "L2-normalised x 10000", "empty clusters"} <= {case.name for case in report.cases}


def test_bfloat16_is_off_and_denormals_stay(exported: OnnxArtifact) -> None:
    with OpenVinoRunner(exported, threads=1) as runner:
        assert "float32" in str(runner._compiled.get_property("INFERENCE_PRECISION_HINT"))
        assert runner._compiled.get_property("CPU_DENORMALS_OPTIMIZATION") is False
        assert runner._compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert "LATENCY" in str(runner._compiled.get_property("PERFORMANCE_HINT"))


def test_an_fp16_graph_says_what_it_is_computed_in(half: OnnxArtifact, tiny: OnnxArtifact) -> None:
    for backend in ("openvino", "onnxruntime"):
        with open_runner(half, backend=backend) as wide, open_runner(tiny, backend=backend) as single:
            assert (wide.conditions, single.conditions) == ("FP16 computed in FP32", "")


def test_several_heads_run_and_pass(tmp_path: Path) -> None:
    heads = Heads({"first": make_module(3, 8), "second": make_module(4, 12, 1)})
    report = validate(on_openvino(export_onnx(heads, tmp_path / "heads.onnx")))
    assert report.verdict is Verdict.PASS


def test_stages_inside_are_shown_and_a_wrong_one_is_named(module: NetVLAD, tmp_path: Path) -> None:
    plain = export_onnx(module, tmp_path / "m.onnx")
    feeds = {FEATURES: features(2, 7, 16)}
    with open_runner(plain, backend="openvino") as runner, runner.tapped() as tapped:
        assert set(tapped.outputs) >= {DESCRIPTOR, "assignment_logits", "soft_assignment", "mean_residual"}
        assert set(tapped.outputs) <= set(STAGES)
        got, seen = runner.run(feeds), tapped.run(feeds)
        assert np.allclose(got[DESCRIPTOR], seen[DESCRIPTOR], atol=1e-7)
    other = export_onnx(make_module(6, 16, 2, seed=5), tmp_path / "other.onnx")
    swapped = replace(plain, path=other.path, sha256=other.sha256)  # the graph of other weights, judged by the oracle
    report = validate(Candidate.of(swapped, backend="openvino"))
    assert report.verdict is Verdict.FAIL
    assert report.departure is not None
    assert report.departure.tensor == "assignment_logits"


def test_local_descriptors_of_a_pipeline_are_shown(tiny: OnnxArtifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 56, 3), dtype=np.uint8)
    before = images.copy()
    with open_runner(tiny, backend="openvino") as runner, runner.tapped() as tapped:
        assert tapped.run({IMAGES: images})["local_descriptors"].shape[::2] == (1, 8)
    assert np.array_equal(images, before)


def test_external_data_is_read_from_a_private_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "LARGEST_INSIDE", 0)
    artifact = export_onnx(make_module(256, 1024), tmp_path / "large.onnx")
    assert artifact.external_data is not None
    monkeypatch.chdir(tmp_path.parent)
    before = sorted(tmp_path.iterdir())
    with open_runner(artifact, backend="openvino") as runner, open_runner(artifact) as other:
        feeds = {FEATURES: features(1, 4, 1024)}
        assert np.abs(runner.run(feeds)[DESCRIPTOR] - other.run(feeds)[DESCRIPTOR]).max() < 1e-6
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("content", [b"", b"\x32\x01x"])
def test_a_graph_that_openvino_refuses_is_one_line(exported: OnnxArtifact, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    broken = replace(exported, path=tmp_path / "m.onnx", sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(RunError, match="OpenVINO cannot load") as caught:
        OpenVinoRunner(broken)
    assert "\n" not in str(caught.value)


def test_a_run_that_openvino_refuses_is_one_line(exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_runner(exported, backend="openvino") as runner:
        monkeypatch.setattr(OpenVinoRunner, "check_feeds", lambda _, feeds: feeds)
        with pytest.raises(RunError, match=r"OpenVINO failed: .*incompatible") as caught:
            runner.run({FEATURES: features(2, 3, 5)})
    assert "\n" not in str(caught.value)


def test_without_the_package_it_is_not_run(
    exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("No module named 'openvino'", name="openvino")

    importer: Callable[..., Any] = absent
    monkeypatch.setattr("netvlad_deploy.support.require.importlib.import_module", importer)
    with pytest.raises(MissingDependencyError, match=r"openvino cannot be imported .* install"):
        probe()
    report = validate(on_openvino(exported))
    assert report.verdict is Verdict.NOT_RUN
    assert "openvino" in report.reason


def test_probe_says_version_and_processor() -> None:
    version, _, processor = probe().partition(": ")
    assert version[0].isdigit()
    assert processor


CLOSED = {
    "in the order of opening": "one, two = runner(), runner(); one.close(); two.close(); del one, two",
    "in another thread": "opened = [runner()]; thread = Thread(target=opened.clear); thread.start(); thread.join()",
}
"""Ways to release runners after which OpenVINO, left to itself, leaves this thread a signal stack without memory."""


@pytest.mark.parametrize("way", CLOSED)
def test_ctrl_c_is_handled_after_runners_are_closed(exported: OnnxArtifact, way: str) -> None:
    """A signal for which there is no stack kills the process, and nothing is said."""
    lines = [
        "import signal, sys",
        "from threading import Thread",
        "from netvlad_deploy.artifact import load_artifact",
        "from netvlad_deploy.runtime.openvino_runner import OpenVinoRunner",
        "runner = lambda: OpenVinoRunner(load_artifact(sys.argv[1]))",
        CLOSED[way],
        "try:",
        "    signal.raise_signal(signal.SIGINT)",
        "except KeyboardInterrupt:",
        "    print('handled')",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(exported.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "handled\n", "")


def test_embed_takes_it(exported: OnnxArtifact, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", features(3, 5, 16))
    embed(on_openvino(exported), [tmp_path / "x.npy"], tmp_path / "y.npy")
    assert np.load(tmp_path / "y.npy").shape == (3, 96)
