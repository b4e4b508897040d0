"""The verb `bench`, and its groups of options: where it measures, what else, and how much slower is too slow."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.junit import Junit, junit_file
from netvlad_deploy.commands.output import Shown, code_of, command_line
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.images import parse_size
from netvlad_deploy.support.limits import check_limit

if TYPE_CHECKING:
    from netvlad_deploy.runtime.unfolded import Unfolded
    from netvlad_deploy.workflow.baseline import BaselineOptions


@dataclass(frozen=True)
class PlaceFlags:
    """The input, the threads and the time of a measurement."""

    batch: Annotated[int, typer.Option(help="Images at once.")] = 1
    num_features: Annotated[int | None, typer.Option(help="Local descriptors of an image.  [default: 300]")] = None
    image_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size of images.  [default: as they are resized, or 480x640]")
    ] = None
    duration: flags.Duration = 3.0
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
class PeerFlags:
    """What else is measured, and where the unfolded module is read from that some of it runs."""

    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Also measure openvino, torch, torch-compile, straight and limit, if they can run here.",
        ),
    ] = False
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Weights of torch, torch-compile and straight.  [default: the artifact's own, beside it]",
        ),
    ] = None
    prefix: flags.Prefix = ""
    dialect: flags.Dialect = None
    backbone: flags.BackboneName = None

    @property
    def unfolded(self) -> "Unfolded":
        """Return how the unfolded module is read."""
        from netvlad_deploy.runtime.unfolded import Unfolded

        return Unfolded(checkpoint=self.checkpoint, prefix=self.prefix, dialect=self.dialect, backbone=self.backbone)


@dataclass(frozen=True)
class BaselineFlags:
    """A baseline to compare with, or to save."""

    baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Exit 1 if slower than this saved baseline allows.")
    ] = None
    max_regression: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="How much slower than the baseline is allowed.  [default: 5%]")
    ] = None
    save_baseline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save these figures as FILE.json, to compare later ones with.")
    ] = None

    def options(self, *, force: bool) -> "BaselineOptions":
        """Return the options as the workflow takes them; `force` is for the file that is saved.

        Raises: UsageError if the percentage is none, or there is no baseline that it is of.
        """
        from netvlad_deploy.workflow.baseline import BaselineOptions

        if self.max_regression is not None and self.baseline is None:
            raise UsageError("--max-regression says how much slower than a baseline: pass --baseline, too")
        return BaselineOptions(
            compared=self.baseline,
            saved=self.save_baseline,
            allowed=parse_percent(self.max_regression or "5%"),
            force=force,
        )


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
    ) -> Shown:
        """Measure the files, or untrained layers if there are none; return the report with its exit code.

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
        return Shown(report, sweep_lines, code_of(report.verdict, allow_not_run), kind="sweep")


def bench(
    place: PlaceFlags,
    peers: PeerFlags,
    baselines: BaselineFlags,
    sweep: SweepFlags,
    artifacts: Annotated[
        list[Path] | None, typer.Argument(metavar="ARTIFACT", help="ONNX files and engines; none to sweep layers.")
    ] = None,
    backend: flags.TimedBackends = None,
    budget_p99_ms: Annotated[float | None, typer.Option(help="Exit 1 if p99 is above this.")] = None,
    junit: Junit = None,
    report: flags.Report = None,
    expect_sha256: flags.ExpectSha256 = None,
    allow_not_run: flags.AllowNotRun = False,
    force: flags.Force = False,
) -> Shown:
    """Measure latency, each file in a process of its own.

    All are compared round by round with the first. --peers adds other ways to run the same weights; --sweep measures
    over a grid.
    """
    from netvlad_deploy.report.junit import latency_junit
    from netvlad_deploy.report.text import latency_lines
    from netvlad_deploy.report.write import check_reports
    from netvlad_deploy.runtime.open_runner import candidates_of
    from netvlad_deploy.workflow.bench import bench as run
    from netvlad_deploy.workflow.pages import write_latency_pages

    check_reports(pages := report or ())
    paths, options = artifacts or [], baselines.options(force=force)
    if sweep.asked(paths):
        alone = {"budget-p99-ms": budget_p99_ms, "junit": junit, "baseline": options.file, **vars(peers)}
        fixed = {"backends": backend or (), "expect_sha256": expect_sha256, **place.arguments}
        return sweep.run(paths, fixed, alone, pages, allow_not_run=allow_not_run)
    with junit_file(junit, f"latency of {', '.join(path.name for path in paths)}") as write:
        known = peers.unfolded
        candidates = candidates_of(paths, backend or [], expect_sha256=expect_sha256, hold=False, unfolded=known)
        settings = {**place.arguments, "budget_p99_ms": budget_p99_ms, "baselines": options}
        latency = run(candidates, **settings, peers=peers.peers)
        write(latency_junit(latency))
    write_latency_pages(pages, latency, paths, command=command_line())
    return Shown(latency, latency_lines, code_of(latency.verdict, allow_not_run))


def parse_percent(text: str) -> float:
    """Read the percentage of --max-regression, such as `5%`, as a share.

    Raises: UsageError if the text has another form, such as a number without its sign, or is out of range.

    >>> parse_percent("2.5%")
    0.025
    """
    form = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)%", text)
    if form is None:
        raise UsageError(f"max-regression {text[:40]!r} is no percentage, for example 5%")
    check_limit("max_regression", float(form[1]))
    return float(form[1]) / 100
