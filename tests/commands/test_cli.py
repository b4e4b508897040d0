"""The verbs that need no GPU, by the command line: output, files and exit codes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.cli import VERBS
from netvlad_deploy.errors import ExportError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.fold_head import fold
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.runtime import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.verdict import Verdict
from tests.command import Command, error_of
from tests.modules import features, make_module
from tests.processes import HANG_S

pytestmark = [pytest.mark.export, pytest.mark.ort]


class TestExport:
    def test_as_typed_in_the_mission(self, command: Command, tmp_path: Path) -> None:
        outcome = command("export", "--clusters", 64)
        assert outcome.code == 0
        assert "K=64 D=512 G=0, descriptor 32768 (d*K+k), weights: untrained, seed 0" in outcome.out
        assert "no checkpoint given: the weights are initialised from seed 0, untrained" in outcome.err
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "netvlad.onnx",
            "netvlad.onnx.json",
            "netvlad.reference.npz",
        ]

    def test_a_checkpoint_names_the_target_and_decides_the_sizes(self, command: Command, checkpoint: Path) -> None:
        outcome = command("export", checkpoint, "--json")
        assert outcome.code == 0
        record = json.loads(outcome.out)
        assert record["schema"] == "netvlad-deploy/export/1"
        assert record["path"] == "best.onnx"
        assert record["spec"]["num_clusters"] == 6
        assert record["spec"]["num_ghost_clusters"] == 2
        assert record["parent"]["name"] == "best.pth.tar"

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--clusters", "0"], 2, "clusters is 0, expected 1 to 65536"),
            (["--opset", "3"], 2, "opset 3 is outside"),
            (["--prefix", "head"], 2, "--prefix needs a checkpoint"),
            (["best.pth.tar", "--seed", "3"], 2, "--seed is for untrained weights"),
            (["-o", "m.pt"], 2, "m.pt does not end in .onnx: name the target m.onnx"),
            (["none.pt"], 65, "none.pt is missing"),
            (["best.pth.tar", "--clusters", "32"], 2, "has num_clusters 6, the options say 32"),
            (["best.pth.tar", "--no-batch-norm"], 2, "has batch_norm True, the options say False"),
            (["best.pth.tar", "--prefix", "head"], 65, "holds no NetVLAD behind --prefix head"),
            (["-o", "none/m.onnx"], 73, "none/m.onnx cannot be written: there is no folder none"),
        ],
    )
    def test_bad_input(
        self, command: Command, checkpoint: Path, tmp_path: Path, arguments: list[str], code: int, message: str
    ) -> None:
        outcome = command("export", *arguments)
        assert (outcome.code, outcome.out) == (code, "")
        assert message in error_of(outcome.err)
        assert [path.name for path in tmp_path.iterdir()] == ["best.pth.tar"]

    def test_an_existing_target_needs_force(self, command: Command, tmp_path: Path) -> None:
        arguments = ("export", "--clusters", 2, "--feature-size", 4)
        assert command(*arguments).code == 0
        before = (tmp_path / "netvlad.onnx").read_bytes()
        outcome = command(*arguments, "--seed", 1)
        assert outcome.code == 2
        assert "exists already: choose another name or pass --force" in error_of(outcome.err)
        assert (tmp_path / "netvlad.onnx").read_bytes() == before
        assert command(*arguments, "--seed", 1, "--force").code == 0
        assert (tmp_path / "netvlad.onnx").read_bytes() != before

    def test_an_unwritable_folder(self, command: Command) -> None:
        outcome = command("export", "--clusters", 2, "-o", "/proc/m.onnx")
        assert outcome.code == 73
        assert "/proc/m" in error_of(outcome.err)
        assert "cannot be written" in outcome.err


class TestValidate:
    def test_pass_fail_and_junit(self, command: Command, exported: OnnxArtifact, tmp_path: Path) -> None:
        outcome = command("validate", exported.path, "--junit", "parity.xml", "--json")
        assert outcome.code == 0
        assert json.loads(outcome.out)["verdict"] == "PASS"
        assert 'failures="0"' in (tmp_path / "parity.xml").read_text()

    @pytest.mark.parametrize("fault", ["eps", "gamma", "mean"])
    def test_a_fault_in_the_fold_fails_a_plain_validate(
        self, command: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        def faulty(module: NetVLAD, options: GraphOptions) -> object:
            broken = make_module(6, 16, 2)
            broken.load_state_dict(module.state_dict())
            norm = broken.batch_norm
            assert norm is not None
            assert norm.running_mean is not None
            if fault == "eps":
                norm.eps = 0.0
            elif fault == "gamma":
                norm.weight.data[[0, 1]] = norm.weight.data[[1, 0]]
            else:
                norm.running_mean[3] = 0
            return fold(broken, options)

        monkeypatch.setattr(onnx_model, "fold", faulty)
        assert command("export", checkpoint).code == 0
        outcome = command("validate", "best.onnx")
        assert outcome.code == 1
        assert outcome.out.startswith("FAIL  best.onnx against oracle")

    def test_against_an_older_export(self, command: Command, checkpoint: Path, exported: OnnxArtifact) -> None:
        command("export", checkpoint, "--opset", 20)
        assert command("validate", "best.onnx", "--against", exported.path).code == 0
        assert command("validate", "best.onnx", "--against", checkpoint).code == 0
        command("export", "--clusters", 6, "--feature-size", 16, "--ghost-clusters", 2)
        outcome = command("validate", "best.onnx", "--against", "netvlad.onnx")
        assert outcome.code == 1
        assert outcome.out.startswith("FAIL  best.onnx against netvlad.onnx")

    def test_nothing_is_compared_with_itself(self, command: Command, exported: OnnxArtifact) -> None:
        for options in (("--backend", "oracle"), ("--against", exported.path)):
            outcome = command("validate", exported.path, *options)
            assert outcome.code == 2
            assert "compared with itself, which proves nothing" in error_of(outcome.err)

    def test_junit_overwrites_no_model(self, command: Command, exported: OnnxArtifact) -> None:
        before = exported.path.read_bytes()
        outcome = command("validate", exported.path, "--junit", exported.path)
        assert outcome.code == 2
        assert exported.path.read_bytes() == before

    def test_a_stale_reference_is_refused(self, command: Command, checkpoint: Path, tmp_path: Path) -> None:
        command("export", checkpoint)
        command("export", "--clusters", 6, "--feature-size", 16, "-o", "other.onnx")
        (tmp_path / "other.reference.npz").replace(tmp_path / "best.reference.npz")
        outcome = command("validate", "best.onnx")
        assert outcome.code == 65
        assert "best.reference.npz has SHA-256" in error_of(outcome.err)


@pytest.mark.parametrize("batch", ["8:1:64", "x"])
def test_a_bad_range_is_a_usage_error(command: Command, exported: OnnxArtifact, batch: str) -> None:
    outcome = command("build", exported.path, "--batch", batch)
    assert outcome.code == 2
    assert "range" in error_of(outcome.err)


class TestBench:
    def test_backends_side_by_side(self, command: Command, exported: OnnxArtifact) -> None:
        arguments = ("bench", exported.path, "--backend", "torch", "--backend", "onnxruntime")
        outcome = command(*arguments, "--num-features", 5, "--duration", 0.3)
        assert outcome.code == 0
        assert "m.onnx on torch" in outcome.out
        assert "m.onnx on onnxruntime" in outcome.out

    def test_a_broken_budget_is_exit_1(self, command: Command, exported: OnnxArtifact) -> None:
        outcome = command("bench", exported.path, "--num-features", 5, "--duration", 0.3, "--budget-p99-ms", 1e-6)
        assert outcome.code == 1
        assert "the budget is 1e-06 ms" in outcome.out

    def test_a_sweep_is_kept_and_goes_on(self, command: Command, exported: OnnxArtifact) -> None:
        sweep = ("bench", exported.path, "--num-features", 5, "--duration", 0.1, "-o", "s.jsonl", "--json")
        assert json.loads(command(*sweep, "--sweep", "batch=1").out)["kept"] == 0
        report = json.loads(command(*sweep, "--sweep", "batch=1,2").out)
        assert (report["schema"], report["verdict"]) == ("netvlad-deploy/sweep/1", "PASS")
        assert (report["kept"], [point["place"]["batch"] for point in report["points"]]) == (1, [1, 2])
        for options, said in (
            (("--sweep", "batch=1", "--budget-p99-ms", 1), "--budget-p99-ms is for one point, not for a sweep"),
            (("--sweep", "batch=1", "--baseline", "b.json"), "--baseline is for one point, not for a sweep"),
            ((), "--output keeps the points of a sweep: pass --sweep"),
        ):
            outcome = command(*sweep, *options)
            assert (outcome.code, said in error_of(outcome.err)) == (2, True)
        assert "there is nothing to measure" in error_of(command("bench").err)


class TestEmbed:
    def test_array_and_sequences(
        self, command: Command, exported: OnnxArtifact, masked: OnnxArtifact, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "x.npy", features(3, 5, 16))
        outcome = command("embed", exported.path, "x.npy", "-o", "y.npy")
        assert (outcome.code, outcome.out) == (0, "y.npy  3 x 96\n")
        descriptors = np.load(tmp_path / "y.npy")
        assert (descriptors.shape, descriptors.dtype) == ((3, 96), np.dtype(np.float32))
        np.savez(tmp_path / "x.npz", allow_pickle=False, a=features(3, 5, 16)[0], b=features(1, 2, 16)[0])
        assert command("embed", masked.path, "x.npz", "-o", "y.npz").code == 0
        with np.load(tmp_path / "y.npz") as archive:
            assert archive["names"].tolist() == ["a", "b"]
            assert np.abs(archive["descriptors"][0] - descriptors[0]).max() < 1e-6

    @pytest.mark.parametrize(
        ("array", "code", "message"),
        [
            (np.ones((2, 15), np.float32), 65, "expected (num_features, 16)"),
            (np.ones((1, 2, 15), np.float32), 65, "expected (num_features, 16)"),
            (np.ones((1, 2, 16)), 65, "float64, expected float32"),
            (np.ones((1, 0, 16), np.float32), 65, "there is none"),
            (np.full((1, 2, 16), np.nan, np.float32), 65, "features are not finite: first at row 0"),
        ],
    )
    def test_bad_features(
        self, command: Command, exported: OnnxArtifact, tmp_path: Path, array: np.ndarray, code: int, message: str
    ) -> None:
        np.save(tmp_path / "x.npy", array)
        (tmp_path / "y.npy").write_bytes(b"old")
        outcome = command("embed", exported.path, "x.npy", "-o", "y.npy", "--force")
        assert outcome.code == code
        assert message in error_of(outcome.err)
        assert (tmp_path / "y.npy").read_bytes() == b"old"
        assert len(list(tmp_path.iterdir())) == 2


def test_an_unforeseen_error_keeps_its_trace_and_is_exit_70(
    command: Command, exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_runner, "load_artifact", lambda *_, **__: 1 / 0)
    outcome = command("validate", exported.path)
    assert outcome.code == 70
    assert "ZeroDivisionError" in outcome.err
    assert outcome.err.strip().endswith("internal error (ZeroDivisionError): please report the lines above")


def test_a_file_in_a_closed_folder_is_an_input_that_cannot_be_looked_at(
    command: Command, exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played, since root looks into every folder. The journal in it is nothing to remove."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(exported.path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", closed)
        outcome = command("validate", exported.path)
    assert (outcome.code, outcome.out) == (65, "")
    assert error_of(outcome.err) == f"error: {exported.path} cannot be looked at: Permission denied"


def test_an_unknown_option_is_exit_2(command: Command) -> None:
    outcome = command("export", "--cluster", 64)
    assert outcome.code == 2
    assert "No such option" in outcome.err


def test_ctrl_c_is_exit_130_and_leaves_nothing(tmp_path: Path, exported: OnnxArtifact) -> None:
    arguments = ["bench", str(exported.path), "--duration", "600"]
    process = subprocess.Popen(
        [sys.executable, "-m", "netvlad_deploy", *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while "rounds" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.PASS, 0), (Verdict.FAIL, 1), (Verdict.NOT_RUN, 69)])
def test_every_verdict_has_its_exit_code(
    command: Command, exported: OnnxArtifact, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int
) -> None:
    monkeypatch.setattr(ParityReport, "verdict", verdict)
    assert command("validate", exported.path).code == code


def test_a_checkpoint_can_be_timed_first(command: Command, checkpoint: Path, exported: OnnxArtifact) -> None:
    outcome = command("bench", checkpoint, exported.path, "--num-features", 5, "--duration", 0.3)
    assert outcome.code == 0
    assert "best.pth.tar" in outcome.out


def test_ctrl_c_inside_the_exporter_is_exit_130(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's exporter wraps every exception that is raised inside it, an interrupt too."""

    def interrupted(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ExportError("torch says something else") from error

    monkeypatch.setattr(onnx_model, "_trace", interrupted)
    outcome = command("export", "--clusters", 2)
    assert outcome.code == 130
    assert error_of(outcome.err) == "error: interrupted"
    assert not list(tmp_path.iterdir())


def test_the_help_describes_each_verb_in_a_whole_sentence(command: Command) -> None:
    outcome = command("-h")
    lines = outcome.out.partition("Commands:")[2].strip().partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == [verb.__name__ for verb in VERBS]
    assert not any(line.endswith("...") for line in lines)
    assert "[OPTIONS] [CHECKPOINT]" in command("export", "-h").out
