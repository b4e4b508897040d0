"""Import optional packages late, and say how to install those that are missing.

The line names packages, as this package's own metadata has them, so that it works for a checkout and for a wheel, and
from any folder.
"""

import functools
import importlib
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

from netvlad_deploy.errors import MissingDependencyError

DISTRIBUTION: Final = "netvlad-deploy"
_OPTIONAL = re.compile(r"""([\w.-]+)([^;]*);\s*extra\s*==\s*["']([\w-]+)["']""")
"""A line of the metadata: a distribution, its versions, and the optional dependency group it belongs to."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, which the optional dependency group `extra` installs.

    Raises: MissingDependencyError with the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingDependencyError(f"{missing} cannot be imported ({error}): {install_line(extra)}") from error


def install_line(extra: str) -> str:
    """Return the line that installs what is missing of an optional dependency group, and all anew if nothing is."""
    packages = optional_packages().get(extra)
    if packages is None:  # the metadata is none, or older than this file
        return pip_line("install", "-e", f"{Path(__file__).parents[2]}[{extra}]")
    missing = [f"{name}{versions}" for name, versions in packages.items() if installed_version(name) is None]
    again = [f"{name}{versions}" for name, versions in packages.items()]
    return pip_line("install", *(missing or ["--force-reinstall", *again]))


def pip_line(*arguments: str) -> str:
    """Return a line for the shell that runs pip in the environment that this process runs in."""
    return shlex.join([sys.executable or "python", "-m", "pip", *arguments])


@functools.lru_cache(maxsize=1)
def optional_packages() -> Mapping[str, Mapping[str, str]]:
    """Return the packages of every optional dependency group, each with the versions that will do."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = []
    extras: dict[str, dict[str, str]] = {}
    for match in filter(None, map(_OPTIONAL.fullmatch, lines)):
        name, versions, extra = match.groups()
        extras.setdefault(extra, {})[name] = versions.strip()
    return extras


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution without importing it, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
