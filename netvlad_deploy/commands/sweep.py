"""The options of `bench` that say where it measures: at one point, or at each point of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from netvlad_deploy.commands.flags import Duration
from netvlad_deploy.commands.output import leave, render
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.images import parse_size


@dataclass(frozen=True)
class PlaceFlags:
    """The input, the threads and the time of a measurement."""

    batch: Annotated[int, typer.Option(help="Images at once.")] = 1
    num_features: Annotated[int | None, typer.Option(help="Local descriptors of an image.  [default: 300]")] = None
    image_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of images.  [default: as they are resized, or 480x640]")
    ] = None
    duration: Duration = 3.0
    threads: Annotated[int | None, typer.Option(help="CPU threads.  [default: all cores]")] = None
    concurrency: Annotated[
        int, typer.Option(help="Requests in flight at once: 1 is for latency, more for throughput.")
    ] = 1

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the workflow's `bench`.

        Raises: UsageError if the size of images is none.
        """
        return {
            "batch": self.batch,
            "num_features": self.num_features,
            "image_size": None if self.image_size is None else parse_size(self.image_size),
            "duration_s": self.duration,
            "threads": self.threads,
            "concurrency": self.concurrency,
        }


@dataclass(frozen=True)
class SweepFlags:
    """The axes of a sweep, and the file that keeps its points."""

    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=V,V",
            help="Measure at each value of batch, num-features, image-size, threads or concurrency; without ARTIFACT "
            "also of clusters or feature-size, of untrained layers. Repeat for a grid.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.jsonl", help="Keep the points of a sweep, and go on with them."),
    ] = None

    def asked(self, artifacts: Sequence[Path]) -> bool:
        """Return True if there is an axis.

        Raises: UsageError if there is none, and yet a file to keep points, or no artifact to measure.
        """
        if not self.sweep and self.output:
            raise UsageError("--output keeps the points of a sweep: pass --sweep, or leave it out for --json")
        if not self.sweep and not artifacts:
            raise UsageError("there is nothing to measure: name an artifact, or pass --sweep for untrained layers")
        return bool(self.sweep)

    def run(
        self,
        artifacts: Sequence[Path],
        fixed: Mapping[str, Any],
        other: Mapping[str, Any],
        pages: Sequence[Path],
        *,
        allow_not_run: bool,
        as_json: bool,
    ) -> NoReturn:
        """Measure the files, or untrained layers if there are none, print the report, and end with its exit code.

        `fixed` are fields of `SweepOptions`; `other` are the options of `bench` that no sweep takes, with their values;
        `pages` are the files of the report's page.

        Raises: UsageError if such an option was given, or an axis is not as it must be.
        """
        from netvlad_deploy.report.sweep import sweep_lines, sweep_page
        from netvlad_deploy.report.write import write_pages
        from netvlad_deploy.workflow.sweep import SweepOptions, parse_axes, sweep

        if given := [name for name, value in other.items() if value]:
            raise UsageError(f"--{given[0]} is for one point, not for a sweep: leave it out")
        report = sweep(artifacts, SweepOptions(axes=parse_axes(self.sweep or []), file=self.output, **fixed))
        write_pages(pages, sweep_page(report))
        render("sweep", report, sweep_lines, as_json)
        leave(report.verdict, allow_not_run)
