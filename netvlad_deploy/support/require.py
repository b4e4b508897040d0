"""Import optional packages late, and give the pip line that installs those that are missing.

The line names packages, as listed in this package's own metadata: so it works for a checkout and for a wheel, and from
any folder.
"""

import functools
import importlib
import logging
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

from netvlad_deploy.errors import MissingDependencyError

LOG = logging.getLogger(__name__)

DISTRIBUTION: Final = "netvlad-deploy"
_OPTIONAL_REQUIREMENT = re.compile(r"""([\w.-]+)([^;]*);(?:.*\sand)?\s*extra\s*==\s*["']([\w-]+)["']""")
"""A requirement in the metadata: distribution, versions, and the optional dependency group (the extra)."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, which the optional dependency group `extra` installs.

    Raises: MissingDependencyError with the pip line that installs it.
    """
    new, started = module not in sys.modules, time.perf_counter()
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingDependencyError(f"{missing} cannot be imported ({error}): {install_line(extra)}") from error
    if new:
        LOG.debug("imported %s in %.2f s", module, time.perf_counter() - started)
    return imported


def install_line(extra: str) -> str:
    """Return the pip line for the missing packages of an optional dependency group, or for all if none is missing."""
    packages = optional_packages().get(extra)
    if packages is None:  # there is no metadata, or it is older than this file
        return pip_line("install", "-e", f"{Path(__file__).parents[2]}[{extra}]")
    missing = [f"{name}{versions}" for name, versions in packages.items() if installed_version(name) is None]
    again = [f"{name}{versions}" for name, versions in packages.items()]
    return pip_line("install", *(missing or ["--force-reinstall", *again]))


def pip_line(*arguments: str) -> str:
    """Return the shell line that runs pip with the Python of this process."""
    return shlex.join([sys.executable or "python", "-m", "pip", *arguments])


@functools.lru_cache(maxsize=1)
def optional_packages() -> Mapping[str, Mapping[str, str]]:
    """Return the required versions of packages, by optional dependency group and name."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = []
    extras: dict[str, dict[str, str]] = {}
    for match in filter(None, map(_OPTIONAL_REQUIREMENT.fullmatch, lines)):
        name, versions, extra = match.groups()
        extras.setdefault(extra, {})[name] = versions.strip()
    return extras


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution without importing it, None if it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
