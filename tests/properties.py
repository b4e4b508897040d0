"""How properties are tested: few examples, the same each time, and none is judged by its time."""

from collections.abc import Callable

from hypothesis import HealthCheck, settings

from netvlad_deploy.errors import NetVLADDeployError

few = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""The settings of every test of a property."""


def refusal(read: Callable[[], object]) -> str:
    """Return the line in which this package refuses what is read, empty where it reads it."""
    try:
        read()
    except NetVLADDeployError as error:
        return str(error)
    return ""
