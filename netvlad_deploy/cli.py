"""The command line: parse, call the workflow, render, exit.

Results go to standard output, as text or as JSON; progress and errors go to standard error.
"""

import contextlib
import logging
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import NetVLADDeployError, UsageError
from netvlad_deploy.flags import (
    TIMED_BACKENDS,
    AllowNotRun,
    Backend,
    BuildFlags,
    Dialect,
    Duration,
    EngineFlags,
    ExpectSha256,
    Force,
    GraphFlags,
    Json,
    Output,
    Prefix,
    SourceFlags,
    flags,
)
from netvlad_deploy.spec import GraphOptions, Verdict

if TYPE_CHECKING:
    from netvlad_deploy.workflow import Source

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Export a trained NetVLAD to ONNX, build a TensorRT engine, prove parity, measure latency.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

INTERNAL_ERROR = 70
INTERRUPTED = 130


@app.command()
@flags
def export(
    source: SourceFlags, graph: GraphFlags, output: Output = None, force: Force = False, as_json: Json = False
) -> None:
    """Export to ONNX, BatchNorm folded, with the oracle's reference file beside it.

    Without a checkpoint the weights are untrained. The target is CHECKPOINT.onnx, or netvlad.onnx, in this folder.
    """
    from netvlad_deploy import workflow
    from netvlad_deploy.report.text import artifact_lines

    target = output or Path((workflow.stem_of(source.checkpoint) if source.checkpoint else "netvlad") + ".onnx")
    artifact = workflow.export(_source(source), target, GraphOptions(**vars(graph)), force=force)
    _render("export", artifact, artifact_lines, as_json)


@app.command()
@flags
def build(
    source: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An exported ONNX file.")],
    engine: EngineFlags,
    tuning: BuildFlags,
    output: Output = None,
    expect_sha256: ExpectSha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Build a TensorRT engine, strongly typed, for one or several optimization profiles.

    The target is MODEL.engine beside the ONNX file; the builder's log is MODEL.engine.log.
    """
    from netvlad_deploy import workflow
    from netvlad_deploy.export.trtexec import trtexec_line
    from netvlad_deploy.report.text import artifact_lines

    target, cache = output or source.with_suffix(".engine"), tuning.timing_cache
    artifact = workflow.build(
        source, target, tuning.options(engine), timing_cache=cache, expect_sha256=expect_sha256, force=force
    )
    _render("build", artifact, lambda done: [*artifact_lines(done), f"  {trtexec_line(done, cache)}"], as_json)


@app.command()
def validate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file or an engine.")],
    against: Annotated[
        Path | None, typer.Option(help="An artifact or a checkpoint.  [default: the float64 oracle]")
    ] = None,
    backend: Backend = None,
    bank: Annotated[Path | None, typer.Option(help="Features of your images: how far the ranks agree.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Features to rank them for.  [default: each other]")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")] = None,
    expect_sha256: ExpectSha256 = None,
    allow_not_run: AllowNotRun = False,
    as_json: Json = False,
) -> None:
    """Prove that an artifact computes what the unfolded layer computes.

    Exit 1 if it does not, 69 if it cannot run on this machine.
    """
    from netvlad_deploy import workflow
    from netvlad_deploy.measurement.candidate import Candidate
    from netvlad_deploy.report.text import parity_lines

    candidate = Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256)
    report = workflow.validate(candidate, against=against, bank=bank, queries=queries, junit=junit)
    _render("validate", report, parity_lines, as_json)
    _exit(report.verdict, allow_not_run)


@app.command()
def bench(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT...", help="ONNX files and engines.")],
    backend: Annotated[list[str] | None, typer.Option(help=f"{TIMED_BACKENDS}; repeat for several.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 1,
    num_features: Annotated[int, typer.Option(min=1, help="Local descriptors of an image.")] = 300,
    duration: Duration = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.  [default: all cores]")] = None,
    budget_p99_ms: Annotated[float | None, typer.Option(help="Exit 1 if p99 is above this.")] = None,
    expect_sha256: ExpectSha256 = None,
    allow_not_run: AllowNotRun = False,
    as_json: Json = False,
) -> None:
    """Measure latency, each candidate in a process of its own, compared round by round with the first."""
    from netvlad_deploy import workflow
    from netvlad_deploy.report.text import latency_lines

    report = workflow.bench(
        workflow.candidates_of(artifacts, backend or [], expect_sha256=expect_sha256),
        batch=batch,
        num_features=num_features,
        duration_s=duration,
        threads=threads,
        budget_p99_ms=budget_p99_ms,
    )
    _render("bench", report, latency_lines, as_json)
    _exit(report.verdict, allow_not_run)


@app.command()
def embed(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file, an engine or a checkpoint.")],
    features: Annotated[Path, typer.Argument(metavar="INPUT", help="x.npy (B,N,D), or x.npz of sequences (N,D).")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="Descriptors, .npy or .npz.")],
    backend: Backend = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    runtime_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernels that TensorRT-RTX compiles, kept for the next time.")
    ] = None,
    expect_sha256: ExpectSha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn feature files into descriptors."""
    from netvlad_deploy import workflow
    from netvlad_deploy.measurement.candidate import Candidate

    candidate = Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256)
    result = workflow.embed(candidate, features, output, batch=batch, runtime_cache=runtime_cache, force=force)
    _render("embed", result, lambda done: [f"{done.output}  {done.descriptors} x {done.descriptor_size}"], as_json)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, an engine or a checkpoint.")],
    load: Annotated[bool, typer.Option("--load", help="Load an engine, which runs its code: needs a GPU.")] = False,
    prefix: Prefix = "",
    dialect: Dialect = None,
    expect_sha256: ExpectSha256 = None,
    as_json: Json = False,
) -> None:
    """Say what a file is: weights, tensors, versions, profiles, flags, and how to build it again."""
    from netvlad_deploy import inspection
    from netvlad_deploy.measurement.candidate import is_checkpoint
    from netvlad_deploy.report.inspection import checkpoint_lines, inspection_lines

    if not is_checkpoint(file):
        found = inspection.inspect(file, load=load, expect_sha256=expect_sha256)
        _render("inspect", found, inspection_lines, as_json)
    elif load or expect_sha256:
        raise UsageError(f"{file} is a checkpoint: --load and --expect-sha256 are for ONNX files and engines")
    else:
        _render(
            "inspect", inspection.inspect_checkpoint(file, prefix=prefix, dialect=dialect), checkpoint_lines, as_json
        )


@app.command()
@flags
def deploy(
    source: SourceFlags,
    graph: GraphFlags,
    engine: EngineFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "deployment"
    ),
    duration: Duration = 3.0,
    allow_not_run: AllowNotRun = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export, build, validate and measure into one folder, with report.json and report.md."""
    from netvlad_deploy.deployment import deploy as deploy_all
    from netvlad_deploy.report.deployment import step_rows
    from netvlad_deploy.report.text import table

    deployment = deploy_all(
        _source(source),
        output,
        GraphOptions(**vars(graph)),
        engine_options=BuildOptions(flavor=engine.flavor, profiles=engine.profiles),
        duration_s=duration,
        force=force,
    )
    _render("deploy", deployment, lambda done: table(("verdict", "step", "reason"), step_rows(done.steps)), as_json)
    _exit(deployment.verdict, allow_not_run)


@app.command()
@flags
def precision(
    source: SourceFlags,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")] = Path(
        "precision"
    ),
    feature_norm: Annotated[float, typer.Option(help="Norm of a usual local descriptor, to judge FP16 by.")] = 1.0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure what FP16 costs your weights, with report.json, report.md and a picture; needs no GPU."""
    from netvlad_deploy import workflow
    from netvlad_deploy.report.precision import precision_lines

    report = workflow.precision(_source(source), output, feature_norm=feature_norm, force=force)
    _render("precision", report, precision_lines, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, what can run on this machine, and why not.

    Exit 1 if something is broken: packages that exclude each other, or one that is installed and cannot be imported.
    """
    from netvlad_deploy.doctor import diagnose
    from netvlad_deploy.report.doctor import diagnosis_lines

    diagnosis = diagnose()
    _render("doctor", diagnosis, diagnosis_lines, as_json)
    raise typer.Exit(1 if diagnosis.broken else 0)


def _source(given: SourceFlags) -> "Source":
    from netvlad_deploy.workflow import Source

    for option, value in (("prefix", given.prefix), ("dialect", given.dialect), ("head-only", given.head_only)):
        if given.checkpoint is None and value:
            raise UsageError(f"--{option} needs a checkpoint")
    if given.checkpoint is not None and given.seed is not None:
        raise UsageError("--seed is for untrained weights: leave it out with a checkpoint")
    return Source(
        checkpoint=given.checkpoint,
        prefix=given.prefix,
        dialect=given.dialect,
        head_only=given.head_only,
        num_clusters=given.clusters,
        feature_size=given.feature_size,
        num_ghost_clusters=given.ghost_clusters,
        batch_norm=given.batch_norm,
        seed=given.seed or 0,
    )


def _render(verb: str, result: Any, lines: Callable[[Any], list[str]], as_json: bool) -> None:
    from netvlad_deploy.report.serialize import to_json

    typer.echo(to_json(verb, result) if as_json else "\n".join(lines(result)))


def _exit(verdict: Verdict, allow_not_run: bool) -> NoReturn:
    codes = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_RUN: 0 if allow_not_run else 69}
    raise typer.Exit(codes[verdict])


def main() -> None:
    """Run the command line; every error becomes one line on standard error and its exit code."""
    logger = logging.getLogger("netvlad_deploy")
    logger.handlers = [logging.StreamHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    try:
        with _interruptible() as interrupts:
            app()
    except NetVLADDeployError as error:
        _fail("interrupted" if interrupts else str(error), INTERRUPTED if interrupts else error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last door: a fault of this package, with its trace
        traceback.print_exc()
        _fail(f"internal error ({type(error).__name__}): please report the lines above", INTERNAL_ERROR)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Record Ctrl-C while raising it: torch's exporter turns the exception into one of its own."""
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, previous)


def _fail(message: str, exit_code: int) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(exit_code)
