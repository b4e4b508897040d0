"""The verb `package`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.choices import one_of
from netvlad_deploy.commands.output import Shown
from netvlad_deploy.spec.backends import DEVICES, SERVER_BACKENDS
from netvlad_deploy.support.limits import check_choice

if TYPE_CHECKING:
    from netvlad_deploy.serving.repository import TritonModel

SERVERS = ("triton",)


def package(
    server: Annotated[str, typer.Argument(metavar="triton", help="The inference server: NVIDIA's Triton.")],
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file or an engine.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="REPOSITORY", help="The server's model repository.")
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The model's name.  [default: the file's]")] = None,
    server_backend: Annotated[
        str | None,
        one_of(SERVER_BACKENDS, "--backend", "Of the server; python takes JPEG and PNG.  [default: python for images]"),
    ] = None,
    device: Annotated[str | None, one_of(DEVICES, "--device", "[default: gpu for an engine, else cpu]")] = None,
    instances: Annotated[int, typer.Option(help="Copies of the model that compute side by side.")] = 1,
    batch: Annotated[
        int | None, typer.Option(help="Items computed together, at most.  [default: 8, or as the engine takes]")
    ] = None,
    expect_sha256: flags.ExpectSha256 = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write another configuration, or add the same file as a new version.")
    ] = False,
) -> Shown:
    """Put an artifact into a model repository of NVIDIA's Triton.

    It becomes the next version of its model.
    """
    from netvlad_deploy.workflow.package import package_triton as run

    check_choice("server", server, SERVERS)
    model = run(
        artifact,
        output,
        name=name,
        backend=server_backend,
        device=device,
        instances=instances,
        batch=batch,
        expect_sha256=expect_sha256,
        force=force,
    )
    return Shown(model, _lines)


def _lines(model: "TritonModel") -> list[str]:
    serving = model.serving
    return [
        f"{model.folder}  {serving.backend} on the {serving.device}, descriptor {model.descriptor_size}, batches of up "
        f"to {serving.batch}, SHA-256 {model.sha256[:16]}"
    ]
