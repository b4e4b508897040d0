"""The pages that `--report` asks for, of results that stand in no folder."""

from collections.abc import Sequence
from pathlib import Path

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.graph_figure import graph_block
from netvlad_deploy.report.latency import bench_page
from netvlad_deploy.report.parity import parity_page
from netvlad_deploy.report.write import write_pages


def write_parity_pages(files: Sequence[Path], report: ParityReport, artifact: Path, *, command: str) -> None:
    """Write the page of a comparison of an artifact into files, each HTML or Markdown by its suffix.

    Raises: ArtifactError if the artifact is another one now; OutputError if a file cannot be written.
    """
    if files:
        described = load_artifact(artifact)
        graph = graph_block(described) if isinstance(described, OnnxArtifact) else None
        write_pages(files, parity_page(report, described, graph=graph, command=command))


def write_latency_pages(
    files: Sequence[Path], report: LatencyReport, artifacts: Sequence[Path], *, command: str
) -> None:
    """Write the page of a measurement of artifacts, as `write_parity_pages` does.

    Raises: as `write_parity_pages`.
    """
    if files:
        described = [load_artifact(path) for path in artifacts]
        write_pages(files, bench_page(report, described, command=command))
