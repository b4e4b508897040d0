"""Classes of one version of the binding, made of doubles, and the two kinds that those are of."""

from typing import Any

from tests.double.core import TABLES, Double, World


class _Absent:
    """A member that a class of another version has."""

    def __get__(self, *_: Any) -> Any:
        raise AttributeError("absent in this version")


class _Unwritten:
    """A member of the table whose behaviour no double has: it is there, and cannot be used."""

    def __get__(self, instance: Any, _: Any) -> Any:
        if instance is not None:
            raise AttributeError("no double behaves like this yet: write it down")
        return self


def bound(world: World, kind: str, base: type[Double]) -> Any:
    """Return the double's class with the members of this version, of which those it lacks are there to be found."""
    table = set(TABLES[world.version][kind])
    own = {name for name in dir(base) if not name.startswith("_") and name != "kind"}
    namespace: dict[str, Any] = {name: _Absent() for name in own - table}
    namespace |= {name: _Unwritten() for name in table - own - {"__init__"}}
    return type(kind, (base,), {**namespace, "kind": kind, "_world": world})


class Refusing(Double):
    """An object that TensorRT makes itself: its constructor takes what the double needs, and it logs why it refuses."""

    _logger: Any

    def _log(self, text: str, severity: str = "ERROR") -> None:
        self._logger.log(self._logger.Severity[severity], text)

    def _refuses(self, name: str, wrong: str = "") -> bool:
        """Write the call down and return whether it is refused, as asked for or since it is wrong."""
        asked = self._fails(name)
        if asked or wrong:
            self._log(wrong or f"{self.kind}::{name}: Error Code 3")
        return bool(asked or wrong)

    def _keeps(self, name: str) -> bool:
        return f"{self.kind}.{name}" not in self._world.failing


class Overridden(Double):
    """A class that Python code subclasses; a subclass may have attributes of its own."""

    _ready = False

    def __init__(self) -> None:
        object.__setattr__(self, "_ready", True)

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @staticmethod
    def checked(instance: Any, kind: str) -> Any:
        """Return an instance of `kind`, refusing as pybind11 does one whose base was not initialised."""
        if getattr(instance, "kind", "") != kind or not instance._ready:
            raise TypeError(f"{kind}.__init__() must be called when overriding __init__")
        return instance
