"""Baselines: simulated figures are judged, and files that are damaged or of other conditions are refused."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import FileReference
from netvlad_deploy.errors import ArtifactError, ParityError, UsageError
from netvlad_deploy.latency.baseline import FORM, Baseline, Setup, judge, load_baseline
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.latency.statistics import median_interval
from netvlad_deploy.report.text import latency_lines
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.sidecar import seal

SETUP = Setup(backend="onnxruntime", batch=1, num_features=300, image_size=None, threads=2)
MACHINE = {"processor": "P", "onnxruntime": "1.0"}
BASELINE = Baseline(
    artifact=FileReference(name="old/m.onnx", sha256="a" * 64),
    setup=SETUP,
    machine=MACHINE,
    block_medians_ms=tuple(np.linspace(0.9, 1.1, 21).tolist()),
)


def row(ratio: Estimate | None = None, factor: float = 1.0, verdict: Verdict = Verdict.PASS) -> CandidateLatency:
    blocks = tuple(factor * each for each in BASELINE.block_medians_ms)
    return CandidateLatency(name="m.onnx", verdict=verdict, ratio=ratio, block_medians_ms=blocks)


def report(*rows: CandidateLatency) -> LatencyReport:
    return LatencyReport(
        batch=1, num_features=300, threads=2, rounds=21, block_ms=100, warmup_ms=1, machine=MACHINE, candidates=rows
    )


def paired(low: float, value: float, high: float, sha256: str = "b" * 64) -> LatencyReport:
    measured = report(row(), row(Estimate(value=value, low=low, high=high)))
    return judge(measured, BASELINE, sha256, paired=True, allowed=0.05)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict", "decided"),
    [
        (0.99, 1.0, 1.01, Verdict.PASS, True),
        (1.00, 1.04, 1.08, Verdict.PASS, False),
        (1.04, 1.08, 1.10, Verdict.PASS, False),
        (1.06, 1.08, 1.10, Verdict.FAIL, True),
    ],
)
def test_only_an_interval_above_the_limit_fails(
    low: float, value: float, high: float, verdict: Verdict, decided: bool
) -> None:
    judged = paired(low, value, high)
    assert judged.verdict is verdict
    assert judged.regression is not None
    assert judged.regression.verdict is verdict
    assert any("Not decided" in each for each in judged.regression.advice) is not decided
    lines = "\n".join(latency_lines(judged))
    assert f"{verdict.value}  {value:.3f} [{low:.3f}, {high:.3f}] times the baseline m.onnx on onnxruntime" in lines
    assert ("1.05 is allowed" in judged.candidates[1].reason) is (verdict is Verdict.FAIL)


def test_how_much_longer_to_measure_follows_from_the_width() -> None:
    """21 blocks of 0.1 s: a side four times as long as the gap needs sixteen times as long."""
    judged = paired(1.0, 1.04, 1.08)
    assert judged.regression is not None
    assert judged.regression.advice[-1].endswith(f"about --duration {math.ceil(2.1 * 16)} would decide it")
    slow = report(row(), row(Estimate(value=1.04, low=1.0, high=1.08), factor=1000))
    longer = judge(slow, BASELINE, "b", paired=True, allowed=0.05).regression
    assert longer is not None
    assert longer.advice[-1].endswith(f"about --duration {math.ceil(21 * 1.1 * 16)} would decide it")
    close = paired(1.0, 1.05, 1.1).regression
    assert close is not None
    assert "too near" in close.advice[-1]


def test_a_baseline_of_the_file_itself_says_so() -> None:
    judged = paired(0.99, 1.0, 1.01, sha256=BASELINE.artifact.sha256)
    assert judged.regression is not None
    assert "this very file" in judged.regression.advice[0]


def test_a_budget_is_the_candidates_alone() -> None:
    broken = row(verdict=Verdict.FAIL)
    judged = judge(report(broken, row(Estimate(value=1, low=1, high=1))), BASELINE, "b", paired=True, allowed=0)
    assert [one.name for one in judged.candidates] == ["m.onnx (baseline)", "m.onnx"]
    assert judged.verdict is Verdict.PASS
    both = judge(report(row(), replace(broken, ratio=Estimate(value=2, low=2, high=2), reason="p99")),
                 BASELINE, "b", paired=True, allowed=0)  # fmt: skip
    assert both.candidates[1].reason.startswith("p99; 2.000 [")


@pytest.mark.parametrize("is_paired", [True, False])
def test_what_did_not_run_is_no_pass(is_paired: bool) -> None:
    none = replace(row(verdict=Verdict.NOT_RUN), block_medians_ms=())
    judged = judge(report(*[row()] * is_paired, none), BASELINE, "b", paired=is_paired, allowed=0.05)
    assert judged.regression is not None
    assert judged.regression.verdict is Verdict.NOT_RUN
    assert judged.verdict is Verdict.NOT_RUN


def test_stored_figures_have_a_wider_interval_than_either_median() -> None:
    judged = judge(report(row(factor=1.5)), BASELINE, "b", paired=False, allowed=0.05)
    assert judged.regression is not None
    assert judged.regression.ratio is not None
    assert judged.verdict is Verdict.FAIL
    stored = median_interval(BASELINE.block_medians_ms, 0.975)
    assert stored is not None
    assert judged.regression.ratio.low == pytest.approx(1.5 * stored.low / stored.high)
    assert judged.regression.ratio.value == pytest.approx(1.5)
    assert "from its stored figures" in latency_lines(judged)[-2]
    assert "day to day" in latency_lines(judged)[-1]


def test_too_few_blocks_are_no_comparison() -> None:
    few = report(replace(row(), block_medians_ms=(1.0,) * 5))
    with pytest.raises(ParityError, match="rounds compare nothing: measure 8 at least"):
        judge(few, BASELINE, "b", paired=False, allowed=0)
    with pytest.raises(ParityError, match="rounds compare nothing"):
        judge(report(row(), row()), BASELINE, "b", paired=True, allowed=0)


def test_the_figures_of_a_gpu_need_to_know_which() -> None:
    baseline = replace(BASELINE, setup=replace(SETUP, backend="tensorrt"))
    with pytest.raises(ArtifactError, match=r"nothing says which is here: .*pip install"):
        baseline.check_machine(MACHINE, Path("base.json"))
    replace(baseline, machine={**MACHINE, "gpus": "G"}).check_machine({**MACHINE, "gpus": "G"}, Path("base.json"))
    with pytest.raises(ArtifactError, match="gpus G, here H"):
        replace(baseline, machine={**MACHINE, "gpus": "G"}).check_machine({**MACHINE, "gpus": "H"}, Path("base.json"))


def write(folder: Path, baseline: Baseline = BASELINE) -> Path:
    (folder / "base.json").write_bytes(baseline.text())
    return folder / "base.json"


def test_a_baseline_comes_back(tmp_path: Path) -> None:
    assert load_baseline(write(tmp_path)) == BASELINE
    images = replace(BASELINE, setup=replace(SETUP, num_features=None, image_size=(480, 640)))
    assert load_baseline(write(tmp_path, images)) == images


def sealed(**changes: object) -> bytes:
    record = json.loads(BASELINE.text())
    del record["baseline_sha256"], record["schema"]
    return seal({**record, **changes}, FORM)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a baseline"),
        (b"[" * 100_000, "is not a baseline"),
        (b'{"sidecar_sha256": "", "schema": "netvlad-deploy/artifact/4"}', "is not a baseline"),
        (BASELINE.text()[:-40], "is not a baseline"),
        (BASELINE.text().replace(b"0.9", b"9.9"), "was changed after it was written"),
        (sealed(extra=1), "is not a baseline (Baseline is"),
        (sealed(block_medians_ms=[1.0] * 6), "it has 6 blocks, expected at least 8"),
        (sealed(block_medians_ms=[1.0] * 8 + [float("nan")]), "no finite time above 0"),
        (sealed(block_medians_ms=[1.0] * 8 + [0.0]), "no finite time above 0"),
        (seal({}, replace(FORM, schema="netvlad-deploy/baseline/0")), "has schema netvlad-deploy/baseline/0, expected"),
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "base.json").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load_baseline(tmp_path / "base.json")
    assert said in str(caught.value)
    assert "save a new baseline with --save-baseline" in str(caught.value)


def test_what_differs_is_named() -> None:
    path = Path("base.json")
    BASELINE.check_setup(SETUP, path)
    with pytest.raises(UsageError, match="batch 1, here 8; threads 2, here 4: measure alike"):
        BASELINE.check_setup(replace(SETUP, batch=8, threads=4), path)
    BASELINE.check_machine(dict(MACHINE), path)
    with pytest.raises(ArtifactError, match=r"another machine \(onnxruntime 1.0, here 1.1; torch none, here 2\)"):
        BASELINE.check_machine({**MACHINE, "onnxruntime": "1.1", "torch": "2"}, path)


def test_the_artifact_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    baseline = replace(BASELINE, artifact=FileReference(name="old/m.onnx", sha256=hashlib.sha256(b"x").hexdigest()))
    path = write(tmp_path, baseline)
    assert baseline.artifact_at_hand(path) is None
    (tmp_path / "m.onnx").write_bytes(b"x")
    assert baseline.artifact_at_hand(path) == tmp_path / "m.onnx"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "m.onnx").write_bytes(b"another")
    assert baseline.artifact_at_hand(path) == tmp_path / "m.onnx"
    (tmp_path / "old" / "m.onnx").write_bytes(b"x")
    assert baseline.artifact_at_hand(path) == tmp_path / "old" / "m.onnx"
