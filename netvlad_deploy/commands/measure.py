"""The verbs that take artifacts, `validate`, `evaluate`, `inspect`, and a machine: `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.junit import Junit, junit_file
from netvlad_deploy.commands.output import Shown, code_of, command_line
from netvlad_deploy.errors import UsageError


def validate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file or an engine.")],
    against: Annotated[
        Path | None,
        typer.Option(help="An artifact or a checkpoint.  [default: the float64 oracle, or the golden images]"),
    ] = None,
    prefix: flags.Prefix = "",
    dialect: flags.Dialect = None,
    backbone: flags.BackboneName = None,
    backend: flags.Backend = None,
    bank: Annotated[Path | None, typer.Option(help="Features of your images: how far the ranks agree.")] = None,
    queries: Annotated[Path | None, typer.Option(help="Features to rank them for.  [default: each other]")] = None,
    expect_cases: Annotated[int | None, typer.Option(help="Exit 1 if another number of cases is judged.")] = None,
    junit: Junit = None,
    report: flags.Report = None,
    expect_sha256: flags.ExpectSha256 = None,
    allow_not_run: flags.AllowNotRun = False,
) -> Shown:
    """Prove that an artifact computes what the unfolded layer does.

    Exit 1 if it does not or if nothing could be judged, 69 if it cannot run on this machine.
    """
    from netvlad_deploy.report.junit import parity_junit
    from netvlad_deploy.report.text import parity_lines
    from netvlad_deploy.report.write import check_reports
    from netvlad_deploy.runtime.open_runner import Candidate
    from netvlad_deploy.workflow.pages import write_parity_pages
    from netvlad_deploy.workflow.source import Source
    from netvlad_deploy.workflow.validate import validate as run

    check_reports(pages := report or ())
    with junit_file(junit, f"parity of {artifact.name}") as write:
        candidate = Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256)
        read_as = Source(prefix=prefix, dialect=dialect, backbone=backbone)
        parity = run(candidate, against=against, read_as=read_as, bank=bank, queries=queries, expect_cases=expect_cases)
        write(parity_junit(parity))
    write_parity_pages(pages, parity, artifact, command=command_line())
    return Shown(parity, parity_lines, code_of(parity.verdict, allow_not_run))


def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT", help="ONNX files and engines of pipelines.")],
    queries: Annotated[Path, typer.Option(metavar="FOLDER", help="Images to look for.")],
    database: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Images to find; the same folder for each among the others.")
    ],
    output: flags.Folder,
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='{"positives": {"QUERY": ["NAME", ...]}} in JSON, or .npz of utmQ, utmDb and posDistThr.',
        ),
    ] = None,
    within: Annotated[
        int | None, typer.Option(metavar="N", help="Or: right is what is at most N places away, by name.")
    ] = None,
    backend: flags.Backends = None,
    batch: Annotated[int | None, typer.Option(help="Images at once.  [default: 8]")] = None,
    min_recall: Annotated[float | None, typer.Option(help="Exit 1 if recall@1 of a file is below this share.")] = None,
    expect_sha256: flags.ExpectSha256 = None,
    force: flags.Force = False,
) -> Shown:
    """Measure recall@1/5/10 and mAP on folders of images.

    The folder gets report.html, report.md, report.json and a picture. Exit 1 for a skipped file, or a missed recall.
    """
    from netvlad_deploy.report.evaluate import evaluation_lines
    from netvlad_deploy.runtime.open_runner import candidates_of
    from netvlad_deploy.workflow.evaluate import evaluate as run

    report = run(
        candidates_of(artifacts, backend or [], expect_sha256=expect_sha256),
        output,
        queries=queries,
        database=database,
        ground_truth=ground_truth,
        within=within,
        batch=batch,
        min_recall=min_recall,
        command=command_line(),
        force=force,
    )
    return Shown(report, evaluation_lines, 1 if report.skipped or report.missed else 0)


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, an engine or a checkpoint.")],
    load: Annotated[bool, typer.Option("--load", help="Load an engine, which runs its code: needs a GPU.")] = False,
    prefix: flags.Prefix = "",
    dialect: flags.Dialect = None,
    expect_sha256: flags.ExpectSha256 = None,
) -> Shown:
    """Show what a checkpoint, an ONNX file or an engine is.

    Of an artifact: tensors, versions, profiles, flags, and how to build an engine again. Of a checkpoint: dialect,
    sizes, conventions, backbone, and what else is in it.
    """
    from netvlad_deploy.report.inspect import checkpoint_lines, inspection_lines
    from netvlad_deploy.support.formats import is_checkpoint
    from netvlad_deploy.workflow import inspect as inspection

    if not is_checkpoint(file):
        if prefix or dialect:
            raise UsageError(f"{file} is no checkpoint: --prefix and --dialect say how one is read, leave them out")
        return Shown(inspection.inspect(file, load=load, expect_sha256=expect_sha256), inspection_lines)
    if load or expect_sha256:
        raise UsageError(f"{file} is a checkpoint: --load and --expect-sha256 are for ONNX files and engines")
    return Shown(inspection.inspect_checkpoint(file, prefix=prefix, dialect=dialect), checkpoint_lines)


def doctor() -> Shown:
    """Check what can run on this machine, and why something cannot.

    Exit 1 if something is broken: packages that exclude each other, or one that is installed and cannot be imported.
    """
    from netvlad_deploy.report.doctor import diagnosis_lines
    from netvlad_deploy.workflow.doctor import diagnose

    diagnosis = diagnose()
    return Shown(diagnosis, diagnosis_lines, 1 if diagnosis.broken else 0)
