"""Machines with a GPU and every TensorRT, all doubles."""

import pytest

from tests.double.core import VERSIONS
from tests.double.machine import Machine, install

STANDARD = tuple(version for version in VERSIONS if not version.startswith("rtx"))


@pytest.fixture(params=STANDARD)
def standard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version of the standard TensorRT in turn."""
    return install(monkeypatch, request.param)


@pytest.fixture(params=VERSIONS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine with each version in turn."""
    return install(monkeypatch, request.param)
