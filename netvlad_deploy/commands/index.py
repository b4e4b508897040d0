"""The verbs `index` and `search`."""

from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.choices import one_of
from netvlad_deploy.commands.output import Shown, command_line
from netvlad_deploy.index.kinds import AUTO, INDEX_KINDS


def index(
    descriptors: Annotated[
        Path, typer.Argument(metavar="DESCRIPTORS", help="A file of descriptors, or a folder of shards.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="TARGET", help="Index to write, with the suffix .faiss.")
    ],
    kind: Annotated[
        str, one_of(INDEX_KINDS, "--kind", "How descriptors are kept; auto takes what fits their number and --memory.")
    ] = AUTO,
    memory: Annotated[
        int | None,
        typer.Option(metavar="MIB", help="Most memory that the index may take.  [default: half of the machine's]"),
    ] = None,
    force: flags.Force = False,
) -> Shown:
    """Make an index of descriptors, and measure its recall.

    Exit 1 if recall@10 against exact search is below 0.99, or cannot be measured.
    """
    from netvlad_deploy.report.search import index_lines
    from netvlad_deploy.workflow.index import index as run

    record = run(descriptors, output, kind=kind, memory_mib=memory, force=force)
    return Shown(record, index_lines, 0 if record.has_recall else 1)


def search(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="An index that the verb index wrote.")],
    queries: Annotated[
        list[Path], typer.Argument(metavar="QUERY", help="Photos, folders of photos, or one file of descriptors.")
    ],
    artifact: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The artifact that made the indexed descriptors.  [default: that name beside the index]",
        ),
    ] = None,
    backend: flags.Backend = None,
    top: Annotated[int, typer.Option(help="Matches for each query.")] = 5,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The photos that were indexed, for the pictures of -o.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for a report.")
    ] = None,
    force: flags.Force = False,
) -> Shown:
    """Find the nearest places of photos in an index.

    Exit 1 if a file was skipped.
    """
    from netvlad_deploy.report.search import search_lines
    from netvlad_deploy.workflow.search import search as run

    report = run(
        index,
        queries,
        artifact=artifact,
        backend=backend,
        top=top,
        images=images,
        folder=output,
        command=command_line(),
        force=force,
    )
    return Shown(report, search_lines, 1 if report.skipped else 0)
