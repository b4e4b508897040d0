"""A verb as Typer takes it: its groups of options laid flat, each number and path checked, the help in sections."""

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand

from netvlad_deploy.commands.flags import EngineFlags, GraphFlags, ImageFlags, Json, SourceFlags, Tuning
from netvlad_deploy.commands.messages import Quiet, Verbose, choose_messages
from netvlad_deploy.commands.output import Shown, render
from netvlad_deploy.support.limits import LIMITS, check_limit, check_path, range_words

SECTIONS: dict[Any, str] = {
    SourceFlags: "Weights",
    ImageFlags: "Images",
    GraphFlags: "Graph",
    EngineFlags: "Engine",
    Tuning: "Engine",
}
"""The section of the help for each group of options."""

SECTIONS_BY_NAME = {
    "Weights": ("all_heads", "backbone", "checkpoint", "dialect", "prefix"),
    "Images": ("mean", "std"),
    "Engine": ("load", "timing_cache"),
    "Run": (
        *("backend", "batch", "concurrency", "decoders", "device", "duration", "head", "image_size", "instances"),
        *("memory", "merge", "num_features", "ray", "runtime_cache", "server_backend", "shard", "shard_size", "sweep"),
        "threads",
    ),
    "Checks": (
        *("allow_not_run", "baseline", "budget_p99_ms", "expect_cases", "expect_sha256", "max_regression"),
        *("min_recall", "save_baseline"),
    ),
    "Inputs": ("column", "listing", "topic"),
    "Output": ("as_json", "dtype", "force", "junit", "name", "output", "report"),
    "General": ("help", "quiet", "verbose"),
}
"""The section of an option that stands in no group; of another it is "Options"."""

ORDER = ("Arguments", "Inputs", "Weights", "Images", "Graph", "Engine", "Options", "Run", "Checks", "Output", "General")

_SECTION_OF = {name: section for section, names in SECTIONS_BY_NAME.items() for name in names}
_GENERAL = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
    for name, annotation in (("as_json", Json), ("quiet", Quiet), ("verbose", Verbose))
)


class VerbCommand(TyperCommand):
    """A command whose help lists its options in sections."""

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the sections that the command has, in their order."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ORDER}
        for parameter in self.get_params(ctx):
            title = getattr(parameter, "rich_help_panel", None) or _SECTION_OF.get(parameter.name or "", "Options")
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections["Arguments" if parameter.param_type_name == "argument" else title].append(record)
        for title, rows in sections.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def as_command(verb: Callable[..., Shown]) -> Callable[..., None]:
    """Return a verb with a signature from which Typer reads the options, and its help the ranges of numbers.

    Each parameter that is a dataclass, `GraphFlags` or `Tuning` becomes an option for each of its fields: Typer has no
    groups. An option that was not given is left to the group's own default. `support/limits.py` checks every number and
    path. Every verb takes --json, --quiet and --verbose, and what it returns is printed, and ends the process.
    """
    own = inspect.signature(verb).parameters
    kinds = {name: each.annotation for name, each in own.items()}
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if kind in SECTIONS or is_dataclass(kind)}
    signatures = {name: inspect.signature(group).parameters for name, group in groups.items()}

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        choose_messages(quiet=values.pop("quiet"), verbose=values.pop("verbose"))
        as_json = values.pop("as_json")
        for name, group in groups.items():
            given = {key: values.pop(key) for key in signatures[name]}
            values[name] = group(**{key: value for key, value in given.items() if value is not None})
        shown = verb(**values)
        render(verb.__name__, shown, as_json=as_json)
        raise typer.Exit(shown.exit_code)

    flat = [
        (SECTIONS.get(kinds[name]), each) for name in own for each in signatures.get(name, {name: own[name]}).values()
    ]
    options = [
        each.replace(kind=each.KEYWORD_ONLY, annotation=_checked(each.name, each.annotation, section))
        for section, each in (*flat, *((None, each) for each in _GENERAL))
    ]
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {option.name: option.annotation for option in options}
    return command


def _checked(name: str, annotation: Any, section: str | None) -> Any:
    """Return the annotation of an option with its section of the help, and the check for its type and name."""
    if annotation is typer.Context:
        return annotation
    kind, info = get_args(annotation)
    kinds = {kind, *get_args(kind), *(part for each in get_args(kind) for part in get_args(each))}
    info = copy(info)
    info.rich_help_panel = section or info.rich_help_panel
    if Path in kinds:
        info.parser = _path_parser(name)
    elif name in LIMITS and kinds & {int, float}:
        info.callback = _limiter(name)
        info.help = f"{info.help}  [{range_words(name)}]"
    return Annotated[kind, info]


def _path_parser(name: str) -> Callable[[str | Path], Path]:
    def path(text: str | Path) -> Path:  # Typer shows its name, and reads defaults by it, too
        check_path(name, str(text))
        return Path(text)

    return path


def _limiter(name: str) -> Callable[[Any], Any]:
    def callback(value: float | None) -> float | None:
        if value is not None:
            check_limit(name, value)
        return value

    return callback
