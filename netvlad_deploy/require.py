"""Import optional packages late, and say how to install the one that is missing."""

import importlib
from types import ModuleType

from netvlad_deploy.errors import MissingDependencyError


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, which the optional dependency group `extra` installs.

    Raises: MissingDependencyError with the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingDependencyError(
            f"{missing} cannot be imported ({error}): pip install 'netvlad-deploy[{extra}]'"
        ) from error


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution without importing it, or None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
