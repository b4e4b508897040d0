"""The C++ runner, built once in a test run for all its workers."""

import fcntl
import os
from pathlib import Path

import pytest

from tests.cpp.native import Native, build


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    """Return the built programs."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "cpp"
    folder.mkdir(exist_ok=True)
    with Path(folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            build(folder)
            (folder / "built").touch()
    return Native(folder)
