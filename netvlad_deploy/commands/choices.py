"""Options whose value is one of a few words: the shell completes them, the help lists them, others are refused."""

from collections.abc import Callable, Sequence
from typing import Any

import typer

from netvlad_deploy.support.limits import check_choice

LONGEST_METAVAR = 24
"""Letters of a list of choices that still fit beside the option in the help at 80 columns."""


def one_of(choices: Sequence[str], flag: str, text: str, *, refused_later: Sequence[str] = ()) -> Any:
    """Return the Typer option `flag` for one of the choices, or for several of them where it may be repeated.

    `text` is its help. More choices than fit beside the option are listed behind it. `refused_later` are words that the
    verb itself refuses, since it can say why.
    """
    listed = "|".join(choices)
    if len(listed) > LONGEST_METAVAR:
        listed, text = "NAME", f"{', '.join(choices)}.  {text}"
    refuse = _refuser(flag.strip("-"), choices, refused_later)
    return typer.Option(flag, metavar=listed, help=text, callback=refuse, autocompletion=_completer(choices))


def _refuser(name: str, choices: Sequence[str], refused_later: Sequence[str]) -> Callable[[Any], Any]:
    def callback(value: Any) -> Any:
        for each in [value] if isinstance(value, str) else value or ():
            if each not in refused_later:
                check_choice(name, each, choices)
        return value

    return callback


def _completer(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete
