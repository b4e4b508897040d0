"""What an artifact is for: `embed`."""

from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.commands.output import render
from netvlad_deploy.flags import Backend, ExpectSha256, Force, Json


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
    render("embed", result, lambda done: [f"{done.output}  {done.descriptors} x {done.descriptor_size}"], as_json)
