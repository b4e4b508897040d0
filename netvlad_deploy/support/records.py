"""From JSON to frozen dataclasses, by the types of their fields alone.

It is the inverse of `dataclasses.asdict`: unknown fields are refused, and each value must have the type of its field. A
field that was added to a dataclass later has a default, which older JSON gets. Of several dataclasses that a field may
hold, the one with the same names of fields is taken, or else the one that lacks only fields with a default.
"""

import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from netvlad_deploy.errors import NetVLADDeployError

RecordType = TypeVar("RecordType")

LARGEST_WHOLE: Final = 2**64
"""No count, size or time is larger. JSON may hold numbers that no float can, and whoever divides one would fail."""


def from_record(kind: type[RecordType], record: object, **given: Any) -> RecordType:
    """Return a dataclass of the type `kind` with the values of a JSON object, and with the fields `given` beside them.

    Raises: ValueError naming the field that is missing, unknown, or not of its type; or with the error that the
        dataclass itself raises.

    >>> from netvlad_deploy.support.limits import Limit
    >>> from_record(Limit, {"least": 1, "most": 8, "reason": "a byte has no more bits"})
    Limit(least=1.0, most=8.0, reason='a byte has no more bits')
    """
    return cast("RecordType", _record(kind, record, kind.__name__, given))


def _record(kind: Any, record: object, where: str, given: Mapping[str, Any]) -> Any:
    names = field_names(kind) - set(given)
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {_shown(record)}, expected an object")  # noqa: TRY004 - of data, not of code
    if differing := ((names & _required(kind)) - set(record)) | (set(record) - names):
        named = ", ".join(ascii(name)[1:-1] for name in sorted(differing))[:200]
        raise ValueError(f"{where} is {_shown(record)}, which has or lacks {named}")
    hints = _hints(kind)
    values = {name: _value(hints[name], value, f"{where}.{name}") for name, value in record.items()}
    try:
        return kind(**values, **given)
    except NetVLADDeployError as error:
        raise ValueError(f"{where}: {error}") from error


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _required(kind: Any) -> set[str]:
    return {item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING}


def field_names(kind: Any) -> set[str]:
    """Return the names of a dataclass's fields."""
    return {item.name for item in fields(kind)}


def _value(hint: Any, value: object, where: str) -> Any:
    """Return a JSON value as the type that a field has; `where` names the field in errors."""
    origin, arguments = get_origin(hint), get_args(hint)
    if type(value) is int and abs(value) > LARGEST_WHOLE:
        raise ValueError(f"{where} is {_shown(value)}, expected at most 2^64")
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where)
    if is_dataclass(hint):
        return _record(hint, value, where, {})
    if origin is tuple and isinstance(value, list):
        return _tuple(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}.{ascii(key[:40])[1:-1]}") for key, item in value.items()}
    if hint is float and type(value) is int and abs(value) <= 2**53:
        return float(value)
    if hint in (str, int, float, bool, type(None)) and type(value) is hint:
        return value
    if hint is Path and type(value) is str:
        return Path(value)
    if hint is Any or (origin is Literal and value in arguments):
        return value
    raise ValueError(f"{where} is {_shown(value)}, expected {getattr(hint, '__name__', hint)}")


def _one_of(hints: tuple[Any, ...], value: object, where: str) -> Any:
    """Return a JSON value as one of several types: None, the dataclass with its names of fields, or the only other."""
    if value is None and type(None) in hints:
        return None
    candidates = [hint for hint in hints if hint is not type(None)]
    if type(value) in candidates:
        return value
    if isinstance(value, dict) and len(candidates) > 1:
        known = [hint for hint in candidates if is_dataclass(hint)]
        exact = [hint for hint in known if field_names(hint) == set(value)]
        candidates = exact or [hint for hint in known if value and _required(hint) <= set(value) <= field_names(hint)]
    if len(candidates) != 1:
        raise ValueError(f"{where} is {_shown(value)}, which is none of what it may be")
    return _value(candidates[0], value, where)


def _tuple(hints: tuple[Any, ...], values: list[Any], where: str) -> tuple[Any, ...]:
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(values)
    if len(hints) != len(values):
        raise ValueError(f"{where} has {len(values)} values, expected {len(hints)}")
    return tuple(_value(hint, value, where) for hint, value in zip(hints, values, strict=True))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
