"""The base of every double: the API tables, and a class for which a member outside them is an error.

A double has exactly the members that the real binding of its version has, as `tests/data/tensorrt_api.json` lists
them. Those that no double implements raise too, so that a new call asks for its behaviour to be written down.
"""

import enum
import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

TABLES: Final[dict[str, dict[str, list[str]]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "tensorrt_api.json").read_text()
)
"""Version, class or enum, and its members or names: cut from the bindings' own tables to the classes used."""

VERSIONS: Final = tuple(sorted(TABLES))


@functools.cache
def enum_of(version: str, kind: str) -> Any:
    """Return the one enum of a version with this name, as a binding has it, or None."""
    names = TABLES[version].get(kind)
    return names and enum.IntEnum(kind, [name for name in names if name != "__init__"], start=0)


class World:
    """The state that the doubles of one test share.

    Args:
        version: the table to obey, such as `10.3` or `rtx-1.7.1`.

    `journal` lists the calls in order as `Class.member`; a call whose name stands in `failing` answers as the binding
    does when it fails.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.journal: list[str] = []
        self.failing: set[str] = set()

    @property
    def rtx(self) -> bool:
        """Return True for TensorRT-RTX."""
        return self.version.startswith("rtx")

    def fails(self, call: str) -> bool:
        """Write a call down and return whether it shall fail."""
        self.journal.append(call)
        return call in self.failing

    def enum(self, kind: str) -> Any:
        """Return an enum with the names of the table, None where this version has no such enum."""
        return enum_of(self.version, kind)

    def module(self, **classes: Any) -> Any:
        """Return a binding module: the classes given, every enum of the table, and nothing else."""
        enums = {kind: self.enum(kind) for kind, names in TABLES[self.version].items() if "__init__" not in names}
        version = self.version.removeprefix("rtx-")
        return SimpleNamespace(__version__=version, **enums, **classes)


class Double:
    """An object of one TensorRT class; only members of the version's table can be read or written."""

    kind: str

    def __init__(self, world: World) -> None:
        object.__setattr__(self, "_world", world)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name != "kind":
            _check_member(self, name)
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _check_member(self, name)
            self._world.journal.append(f"{self.kind}.{name}")
        object.__setattr__(self, name, value)

    def _fails(self, name: str) -> bool:
        return bool(self._world.fails(f"{self.kind}.{name}"))


def _check_member(double: Double, name: str) -> None:
    kind, world = type(double).kind, object.__getattribute__(double, "_world")
    if name not in TABLES[world.version].get(kind, ()):
        raise AttributeError(f"{kind} of {world.version} has no {name}")
