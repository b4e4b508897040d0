"""The JUnit file of a verb: of its result, or of the error that ended it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from netvlad_deploy.errors import NetVLADDeployError, UsageError

Junit = Annotated[
    Path | None, typer.Option("--junit", metavar="FILE.xml", help="Also write JUnit XML, of an error, too.")
]


@contextlib.contextmanager
def junit_file(path: Path | None, subject: str) -> Iterator[Callable[[str], None]]:
    """Yield the function that writes the file; an error that ends the block is written there instead, and goes on.

    A file that exists is replaced. `subject` says in words what is done. Nothing is written where `path` is None.

    Raises: UsageError if the file is no .xml; OutputError if it cannot be written.
    """
    if path is None:
        yield lambda _: None
        return
    if path.suffix != ".xml":
        raise UsageError(f"{path} does not end in .xml: name the JUnit file so, that it overwrites no other")
    from netvlad_deploy.support.files import check_targets, write_text

    check_targets(path, force=True)
    try:
        yield lambda text: write_text(path, text)
    except NetVLADDeployError as error:
        from netvlad_deploy.report.junit import error_junit

        write_text(path, error_junit(subject, error))
        raise
