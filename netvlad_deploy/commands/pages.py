"""The pages that a verb also writes, for `--report`."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from netvlad_deploy.latency.results import LatencyReport
    from netvlad_deploy.parity.heads import ParityReport

Report = Annotated[
    list[Path] | None,
    typer.Option("--report", metavar="FILE", help="Also write a page, .html or .md; repeat for both."),
]


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell."""
    return shlex.join(["netvlad-deploy", *sys.argv[1:]])


def check_pages(files: Sequence[Path] | None) -> None:
    """Refuse pages that could not be written, before long work.

    Raises: as `check_reports`.
    """
    from netvlad_deploy.report.write import check_reports

    check_reports(files or ())


def write_parity(files: Sequence[Path] | None, report: "ParityReport", artifact: Path) -> None:
    """Write the page of a comparison.

    Raises: as `write_parity_pages`.
    """
    from netvlad_deploy.workflow.pages import write_parity_pages

    write_parity_pages(files or (), report, artifact, command=command_line())


def write_latency(files: Sequence[Path] | None, report: "LatencyReport", artifacts: Sequence[Path]) -> None:
    """Write the page of a measurement.

    Raises: as `write_latency_pages`.
    """
    from netvlad_deploy.workflow.pages import write_latency_pages

    write_latency_pages(files or (), report, artifacts, command=command_line())
