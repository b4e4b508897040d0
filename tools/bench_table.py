"""The latency of heads and pipelines beside what else people pick, as Markdown in docs/latency.md: `make bench`.

Every row is one run of `bench --peers`: all its columns were measured in the same rounds. It takes about ten minutes on
an idle machine, and says nothing on a busy one.
"""

import argparse
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.latency.results import CandidateLatency, Estimate, LatencyReport
from netvlad_deploy.latency.statistics import comparison
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.vocabulary import VocabularyRecord, backbone_state, head_module, head_state
from netvlad_deploy.report.text import estimate_text
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageChanges, Resize, Size
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import unit_rows
from netvlad_deploy.support.files import write_text
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from tests.modules import make_module

PAGE = Path(__file__).parents[1] / "docs" / "latency.md"
HEADING = "## Against what else people pick"
BEGIN, END = "<!-- bench table: begin -->", "<!-- bench table: end -->"

HEADS = (
    (1, 100, 512, 64),
    (1, 300, 512, 64),
    (1, 1200, 512, 64),
    (8, 300, 1024, 256),
    (32, 100, 512, 64),
    (1, 4096, 1024, 64),
    (32, 1200, 512, 64),
)
"""Shapes (B,N,D,K)."""

PIPELINES = (("efficientnet-lite0", (240, 320)), ("resnet18-conv4", (480, 640)), ("vgg16", (480, 640)))
GHOSTS, CLUSTERS, SECONDS = 8, 64, 2.0
PEERS = ("openvino", "straight", "torch", "torch-compile")
HEADER = ("", "ours, ms", "ours / limit", *PEERS, "faster engine")


@dataclass(frozen=True)
class Row:
    """What a row is about, and what was measured."""

    name: str
    report: LatencyReport

    def of(self, backend: str) -> CandidateLatency | None:
        """Return the result of a peer, None where it was left out."""
        return next((one for one in self.report.candidates if one.name.endswith(f" on {backend}")), None)

    @property
    def cells(self) -> list[str]:
        """Return the cells of the row: milliseconds, and times over ours."""
        ours = self.report.candidates[0]
        found = [self.of(backend) for backend in PEERS]
        ratios = [None if one is None else one.ratio for one in found]
        return [
            self.name,
            milliseconds(ours.percentiles_ms.get("p50")),
            estimate_text(ours.over_limit, ".2f"),
            *(estimate_text(ratio, ".2f") for ratio in ratios),
            faster(ratios[0]),
        ]

    @property
    def notes(self) -> Iterator[str]:
        """Yield why a candidate has no figures."""
        for one in self.report.candidates:
            if one.verdict is not Verdict.PASS:
                yield f"{self.name}: {one.name} did not run: {one.reason}"


def milliseconds(estimate: Estimate | None) -> str:
    """Return milliseconds with their interval to three digits, a dash for None.

    >>> milliseconds(Estimate(value=2331.7, low=2290, high=2400)), milliseconds(Estimate(value=0.3, low=0.2, high=0.4))
    ('2332 [2290, 2400]', '0.300 [0.200, 0.400]')
    """
    whole = 0 if estimate is None else int(estimate.value)
    return estimate_text(estimate, f".{max(0, 3 - len(str(whole)) * (whole > 0))}f")


def faster(openvino: Estimate | None) -> str:
    """Return the engine that is faster on our graph, if the whole interval of OpenVINO's time over ours says so.

    >>> faster(Estimate(value=0.9, low=0.8, high=0.95)), faster(Estimate(value=0.9, low=0.8, high=1.1))
    ('OpenVINO', 'not told apart')
    """
    if openvino is None:
        return "-"
    return {"faster": "OpenVINO", "slower": "ONNX Runtime", "": "not told apart"}[comparison(openvino)]


def head_row(shape: tuple[int, int, int, int], folder: Path, seconds: float) -> Row:
    """Measure a head with G=8 and BatchNorm."""
    batch, rows, width, clusters = shape
    artifact = export_onnx(make_module(clusters, width, GHOSTS), folder / "head.onnx", force=True)
    report = bench(
        [Candidate(path=artifact.path, hold=False)], batch=batch, num_features=rows, duration_s=seconds, peers=True
    )
    return Row(str(shape), report)


def pipeline_row(backbone: str, size: Size, folder: Path, seconds: float) -> Row:
    """Measure a pipeline of batch 1, from uint8 image to descriptor."""
    checkpoint = write_vocabulary(folder / f"{backbone}.safetensors", backbone, size)
    artifact = export(Source(checkpoint=checkpoint), folder / f"{backbone}.onnx", GraphOptions())
    report = bench([Candidate(path=artifact.path, hold=False)], duration_s=seconds, peers=True)
    return Row(f"{backbone}, {size[0]}x{size[1]}", report)


def write_vocabulary(path: Path, backbone: str, size: Size) -> Path:
    """Write a checkpoint as `fit` does, with random centroids: a pipeline is unfolded from its checkpoint."""
    ready = read_backbone(backbone, changes=ImageChanges(resize=Resize(size=size)), seed=0)
    centroids = unit_rows(np.random.default_rng(0).standard_normal((CLUSTERS, ready.width), dtype=np.float32))
    state = head_state(centroids, 10.0)
    state |= backbone_state(ready.under(head_module(state)))
    record = VocabularyRecord(
        backbone=ready.name, images=ready.images, num_images=0, num_descriptors=0, seed=0, alpha=10.0, versions={}
    )
    rows_first = {name: np.asarray(tensor, order="C") for name, tensor in state.items()}
    save_file(rows_first, path, metadata=record.metadata())
    return path


def page_of(rows: Sequence[Row]) -> str:
    """Return the table, the machine and the notes as Markdown."""
    machine = rows[0].report.machine
    wanted = ("onnxruntime", "openvino", "torch", "numpy")
    versions = ", ".join(f"{name} {machine[name]}" for name in wanted if name in machine)
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells for row in rows)]
    return "\n".join(
        [
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            f"{machine['processor']}, {rows[0].report.threads} threads; {versions}. `ours` is this package's graph on "
            "ONNX Runtime; the other columns are times over it, over 1 slower, each with its interval: 99 % of a "
            f"ratio, 95 % of milliseconds. Heads have G={GHOSTS} and BatchNorm; pipelines go from an image, batch 1, "
            "to its descriptor.",
            *(f"\n{note}" for row in rows for note in row.notes),
        ]
    )


def put(page: Path, table: str) -> None:
    """Write the table between its two marks of a page, which gets its heading and marks if it has none."""
    text = page.read_text() if page.is_file() else "# Latency\n"
    if BEGIN not in text:
        text = f"{text.rstrip()}\n\n{HEADING}\n\n{BEGIN}\n{END}\n"
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    write_text(page, found.sub(lambda _: f"{BEGIN}\n\n{table}\n\n{END}", text, count=1))


def measured(folder: Path, seconds: float, only: str) -> Iterator[Row]:
    """Yield the rows whose names hold `only`, each printed as soon as it is there."""
    for shape in HEADS:
        if only in str(shape):
            yield head_row(shape, folder, seconds)
    for backbone, size in PIPELINES:
        if only in backbone:
            yield pipeline_row(backbone, size, folder, seconds)


def main() -> None:
    """Measure, print the table, and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each candidate of a row")
    parser.add_argument("--only", default="", help="rows whose shape or backbone holds this text")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for row in measured(Path(name), arguments.seconds, arguments.only):
            print(" | ".join(row.cells), flush=True)
            rows.append(row)
    if not rows:
        raise SystemExit(f"no row holds {arguments.only!r}")
    table = page_of(rows)
    print(f"\n{table}")
    put(arguments.page, table)


if __name__ == "__main__":
    main()
