"""A grid of points: which are measured, which are kept, and what is refused. The times are simulated."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, RunError, UsageError
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.report.sweep import UNFITTED, sweep_lines, sweep_page
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow import sweep as sweeping
from netvlad_deploy.workflow.sweep import SweepOptions, parse_axes, sweep

pytestmark = [pytest.mark.export, pytest.mark.ort]


class Simulated:
    """In place of `bench`: a time that grows with batch and size, and a note of each call."""

    def __init__(self) -> None:
        self.places: list[tuple[Any, ...]] = []
        self.broken: set[str] = set()
        self.dies_at = 10_000

    def __call__(self, candidates: Sequence[Candidate], *, duration_s: float, **place: Any) -> LatencyReport:
        if len(self.places) == self.dies_at:
            raise RunError("killed")
        self.places.append((place["batch"], place["num_features"] or place["image_size"], place["threads"]))
        ms = float(place["batch"] * (place["num_features"] or place["image_size"][0] * place["image_size"][1]))
        artifact = candidates[0].artifact
        assert artifact is not None
        ms *= artifact.spec.descriptor_size
        one = Estimate(value=ms, low=ms, high=ms)
        rows = [
            CandidateLatency(name=each.name, verdict=Verdict.NOT_RUN, reason="no GPU")
            if each.name in self.broken
            else CandidateLatency(name=each.name, verdict=Verdict.PASS, percentiles_ms={"p50": one, "p99": one})
            for each in candidates
        ]
        return LatencyReport(
            rounds=1, block_ms=1, warmup_ms=1, machine={}, candidates=tuple(rows),
            batch=1, num_features=1, threads=1,
        )  # fmt: skip


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Simulated:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeping, "bench", simulated := Simulated())
    return simulated


def options(*axes: str, **given: Any) -> SweepOptions:
    return SweepOptions(axes=parse_axes(axes), **{"file": Path("s.jsonl"), "threads": 1, **given})


def test_a_grid_is_measured_once(bench: Simulated, exported: OnnxArtifact) -> None:
    grid = options("batch=1,2,4", "num-features=10,100", backends=["onnxruntime", "torch"])
    report = sweep([exported.path], grid)
    assert bench.places == [(batch, n, 1) for batch in (1, 2, 4) for n in (10, 100)]
    assert (report.verdict, report.kept, len(report.points)) == (Verdict.PASS, 0, 6)
    assert [(one.candidate, one.axis, round(one.exponent.value, 6)) for one in report.exponents] == [
        ("m.onnx on onnxruntime", "batch", 1), ("m.onnx on onnxruntime", "num-features", 1),
        ("m.onnx on torch", "batch", 1), ("m.onnx on torch", "num-features", 1),
    ]  # fmt: skip
    again = sweep([exported.path], options("batch=8,1", "num-features=100", backends=["onnxruntime", "torch"]))
    assert bench.places[6:] == [(8, 100, 1)]
    assert (again.kept, [point.place.batch for point in again.points]) == (1, [8, 1])
    assert again.points[1] == report.points[1]
    assert again.exponents == ()
    assert sweep_lines(again)[-1] == UNFITTED
    assert "1 of them kept from s.jsonl" in sweep_lines(again)[0]


def test_a_sweep_that_was_stopped_goes_on(bench: Simulated, exported: OnnxArtifact) -> None:
    bench.dies_at = 2
    with pytest.raises(RunError):
        sweep([exported.path], options("batch=1,2,3"))
    bench.dies_at = 10
    report = sweep([exported.path], options("batch=1,2,3"))
    assert (report.kept, [place[0] for place in bench.places]) == (2, [1, 2, 3])


def test_other_machines_and_backends_are_measured_again_and_other_files_refused(
    bench: Simulated, exported: OnnxArtifact, masked: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep([exported.path], options("batch=1"))
    assert sweep([exported.path], options("batch=1", backends=["torch"])).kept == 0
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "fingerprint", lambda: {"processor": "another"})
        assert sweep([exported.path], options("batch=1")).kept == 0
    assert sweep([exported.path], options("batch=1")).kept == 1
    before = Path("s.jsonl").read_bytes()
    for paths in ([masked.path], [exported.path, masked.path], []):
        with pytest.raises(ArtifactError, match=r"s.jsonl is a sweep of .*, this is one of .*: name another file"):
            sweep(paths, options("batch=1"))
    assert Path("s.jsonl").read_bytes() == before


def test_the_same_file_elsewhere_is_the_same(bench: Simulated, exported: OnnxArtifact, tmp_path: Path) -> None:
    sweep([exported.path], options("batch=1"))
    for name in ("m.onnx", "m.onnx.json"):
        shutil.copy(exported.path.with_name(name), tmp_path)
    assert sweep([tmp_path / "m.onnx"], options("batch=1")).kept == 1


def test_what_did_not_run_is_measured_again(bench: Simulated, exported: OnnxArtifact) -> None:
    bench.broken = {"m.onnx on torch"}
    report = sweep([exported.path], options("batch=1,2,4", backends=["onnxruntime", "torch"]))
    assert report.verdict is Verdict.NOT_RUN
    assert {one.candidate for one in report.exponents} == {"m.onnx on onnxruntime"}
    assert "m.onnx on torch: no GPU" in "\n".join(sweep_lines(report))
    assert "NOT_RUN" in markdown_page(sweep_page(report))
    assert not Path("s.jsonl").exists()


def test_untrained_layers_are_exported_once_each(bench: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int | None] = []
    export = vars(sweeping)["export"]

    def watched(source: Any, *given: Any, **named: Any) -> OnnxArtifact:
        made.append(source.num_clusters)
        artifact: OnnxArtifact = export(source, *given, **named)
        return artifact

    monkeypatch.setattr(sweeping, "export", watched)
    grid = options("batch=1,2", "clusters=2,4", "feature-size=8", num_features=5)
    report = sweep([], grid)
    assert made == [2, 4]
    assert [(point.place.clusters, point.place.batch) for point in report.points] == [(2, 1), (2, 2), (4, 1), (4, 2)]
    assert [(one.axis, round(one.exponent.value, 6)) for one in report.exponents] == [("clusters", 1), ("batch", 1)]
    assert sweep([], grid).kept == 4
    assert made == [2, 4]


def test_images_are_swept_by_size(bench: Simulated, tiny: OnnxArtifact) -> None:
    report = sweep([tiny.path], options("image-size=32x48,64x96,128x192", "threads=1,2", threads=None))
    assert bench.places[:2] == [(1, (32, 48), 1), (1, (32, 48), 2)]
    assert [(one.axis, round(one.exponent.value, 6)) for one in report.exponents] == [("image-size", 1), ("threads", 0)]
    page = markdown_page(sweep_page(report))
    assert "| 32x48 | 1 | tiny.onnx |" in page
    assert '"verdict": "PASS"' in to_json("sweep", report)


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (["batch"], "is not AXIS=VALUE,..., such as batch=1,8,32"),
        (["size=1,2"], "axes are clusters, feature-size, batch, num-features, image-size, threads, concurrency"),
        (["batch="], "has the value '', expected a whole number"),
        (["batch=1,-2"], "has the value '-2', expected a whole number"),
        (["batch=1,²"], "expected a whole number"),
        (["batch=1,2,1"], "has an axis or a value twice"),
        (["batch=1", "batch=2"], "has an axis or a value twice"),
        (["batch=0"], "batch is 0, expected 1 to 65536"),
        (["threads=" + "9" * 5000], "threads is 1e+20, expected 1 to 256"),
        (["image-size=32"], "HxW"),
        (["batch=" + ",".join(map(str, range(1, 41))), "num-features=" + ",".join(map(str, range(1, 41)))],
         "points of a sweep is 1600, expected 1 to 1000"),
    ],
)  # fmt: skip
def test_axes_that_are_none(axes: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_axes(axes)
    assert said in str(caught.value)


def test_axes_that_do_not_fit(bench: Simulated, exported: OnnxArtifact, tiny: OnnxArtifact) -> None:
    for paths, given, said in (
        ([exported.path], options("clusters=2,4"), "has its clusters: leave the file out"),
        ([exported.path], options("image-size=32x32"), "takes features: leave the axis image-size out"),
        ([tiny.path], options("num-features=3"), "takes images: leave the axis num-features out"),
        ([], options("image-size=32x32"), "an untrained layer takes features"),
        ([], options("clusters=65536", "feature-size=65536"), "values of a layer is"),
        ([], options("batch=1", expect_sha256="a"), "a hash is expected of a file"),
        ([exported.path], options("batch=1", file=Path("s.json")), "does not end in .jsonl"),
    ):
        with pytest.raises(UsageError, match=said):
            sweep(paths, given)
    with pytest.raises(UsageError, match="--threads is swept and fixed"):
        options("threads=1,2")
    assert bench.places == []
    assert list(Path.cwd().iterdir()) == []
