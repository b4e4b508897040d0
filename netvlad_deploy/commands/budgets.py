"""The options by which a verb fails: how much slower than a baseline is too slow."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.errors import UsageError
from netvlad_deploy.support.limits import check_limit

if TYPE_CHECKING:
    from netvlad_deploy.workflow.baseline import BaselineOptions


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
