"""How a verb ends: its result on standard output, its verdict as the exit code."""

from collections.abc import Callable
from typing import Any, NoReturn

import typer

from netvlad_deploy.spec import Verdict


def render(verb: str, result: Any, lines: Callable[[Any], list[str]], as_json: bool) -> None:
    """Print a result as lines or as JSON."""
    from netvlad_deploy.report.serialize import to_json

    typer.echo(to_json(verb, result) if as_json else "\n".join(lines(result)))


def leave(verdict: Verdict, allow_not_run: bool) -> NoReturn:
    """End with the exit code of a verdict."""
    not_run = 0 if allow_not_run else 69
    codes = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_JUDGED: 1, Verdict.NOT_RUN: not_run}
    raise typer.Exit(codes[verdict])
