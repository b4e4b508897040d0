"""The verb `embed`."""

from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.commands import flags
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
    backend: flags.Backend = None,
    batch: Annotated[int | None, typer.Option(help="Images at once.  [default: 8, or 32 of local descriptors]")] = None,
    head: Annotated[str | None, typer.Option(metavar="NAME", help="Which head, of a graph of several.")] = None,
    runtime_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Kernels that TensorRT-RTX compiles, kept for the next time.")
    ] = None,
    expect_sha256: flags.ExpectSha256 = None,
    force: flags.Force = False,
    as_json: flags.Json = False,
) -> None:
    """Turn images or feature files into descriptors.

    Exit 1 if a file was skipped.
    """
    from netvlad_deploy.runtime.open_runner import Candidate
    from netvlad_deploy.spec.items import count_reasons
    from netvlad_deploy.workflow.embed import embed as run

    candidate = Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256)
    result = run(candidate, inputs, output, batch=batch, head=head, runtime_cache=runtime_cache, force=force)
    line = f"{result.output}  {result.descriptors} x {result.descriptor_size}"
    if result.skipped:
        line += f", {len(result.skipped)} skipped: {count_reasons(result.skipped)}"
    render("embed", result, lambda _: [line], as_json)
    raise typer.Exit(1 if result.skipped else 0)
