"""The client of the Triton environment, shared by the tests of a run."""

from collections.abc import Iterator

import pytest

from tests.serving import triton
from tests.serving.triton import Client


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    with triton.open_client() as client:
        yield client
