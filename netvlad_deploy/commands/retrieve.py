"""The verbs that use an artifact: `embed` and `evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.commands.flags import Backend, ExpectSha256, Folder, Force, Json
from netvlad_deploy.commands.output import render


def embed(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file, an engine or a checkpoint.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT", help="Folders and images; or, for a head alone, x.npy (B,N,D) or x.npz of sequences (N,D)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="TARGET", help="Descriptors, .npy or .npz.")],
    backend: Backend = None,
    batch: Annotated[int | None, typer.Option(help="Images at once.  [default: 8, or 32 of local descriptors]")] = None,
    runtime_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernels that TensorRT-RTX compiles, kept for the next time.")
    ] = None,
    expect_sha256: ExpectSha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Turn images or feature files into descriptors.

    Exit 1 if a file was skipped.
    """
    from netvlad_deploy.retrieval.image_files import count_reasons
    from netvlad_deploy.runtime.open_runner import Candidate
    from netvlad_deploy.workflow.embed import embed as run

    candidate = Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256)
    result = run(candidate, inputs, output, batch=batch, runtime_cache=runtime_cache, force=force)
    line = f"{result.output}  {result.descriptors} x {result.descriptor_size}"
    if result.skipped:
        line += f", {len(result.skipped)} skipped: {count_reasons(result.skipped)}"
    render("embed", result, lambda _: [line], as_json)
    raise typer.Exit(1 if result.skipped else 0)


def evaluate(
    artifacts: Annotated[list[Path], typer.Argument(metavar="ARTIFACT", help="ONNX files and engines of pipelines.")],
    queries: Annotated[Path, typer.Option(metavar="FOLDER", help="Images to look for.")],
    database: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Images to find; the same folder for each among the others.")
    ],
    output: Folder,
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
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="Of every artifact; repeat for several.  [default: strict for FP16 ONNX, else the file's own]"
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images at once.  [default: 8]")] = None,
    expect_sha256: ExpectSha256 = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure recall@1/5/10 and mAP on folders of images.

    The folder gets report.json, report.md and a picture. Exit 1 if a file was skipped.
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
        force=force,
    )
    render("evaluate", report, evaluation_lines, as_json)
    raise typer.Exit(1 if report.skipped else 0)
