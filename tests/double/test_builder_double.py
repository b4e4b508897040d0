"""The doubles of the builder are strict: members by version, order, and what a binding refuses."""

from typing import Any

import pytest

from tests.double.bound import Overridden
from tests.double.builder import BuilderWorld
from tests.double.core import VERSIONS
from tests.double.graph import graph_content


@pytest.fixture(params=VERSIONS)
def world(request: pytest.FixtureRequest) -> BuilderWorld:
    return BuilderWorld(request.param)


def make_logger(world: BuilderWorld) -> Any:
    class Logger(world.binding.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            self.lines.append(f"{severity} {text}")

    return Logger()


def make_network(world: BuilderWorld, builder: Any) -> Any:
    return builder.create_network(1 << int(world.binding.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def test_members_follow_the_version(world: BuilderWorld) -> None:
    config = world.binding.IBuilderConfig(make_logger(world))
    assert hasattr(config, "set_compute_capability") == world.rtx
    assert hasattr(world.binding.IBuilderConfig, "set_compute_capability") == world.rtx
    assert hasattr(world.binding.IBuilderConfig, "int8_calibrator") == world.version.startswith("10.")
    assert hasattr(world.binding, "IRuntimeCache") == world.rtx
    with pytest.raises(AttributeError, match="no no_such_member"):
        config.no_such_member = 1
    with pytest.raises(AttributeError):
        _ = config.max_aux_streams  # in the table, but no double behaves like it


def test_a_network_that_is_not_strongly_typed_is_refused(world: BuilderWorld) -> None:
    with pytest.raises(ValueError, match="strongly typed"):
        world.binding.Builder(make_logger(world)).create_network()


def test_building_too_early_is_refused(world: BuilderWorld) -> None:
    logger = make_logger(world)
    builder = world.binding.Builder(logger)
    network, config = make_network(world, builder), builder.create_builder_config()
    assert builder.build_serialized_network(network, config) is None
    assert world.binding.OnnxParser(network, logger).parse(graph_content("features"))
    assert builder.build_serialized_network(network, config) is None
    profile = builder.create_optimization_profile()
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is None
    assert [line.partition(" ")[2] for line in logger.lines] == [
        "Network must have at least one output",
        "Network has dynamic or shape inputs, but no optimization profile has been defined.",
        "optimization profile is missing values for input features",
    ]


def test_a_profile_out_of_order_is_refused(world: BuilderWorld) -> None:
    builder = world.binding.Builder(make_logger(world))
    profile = builder.create_optimization_profile()
    profile.set_shape("features", (2, 1), (1, 1), (3, 1))
    assert builder.create_builder_config().add_optimization_profile(profile) == -1


def test_a_base_that_was_not_initialised_is_refused(world: BuilderWorld) -> None:
    class Silent(world.binding.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            pass

    with pytest.raises(TypeError, match="must be called when overriding __init__"):
        world.binding.Builder(Silent())
    with pytest.raises(TypeError, match="must be called"):
        Overridden.checked(object(), "IProgressMonitor")


def test_a_timing_cache_of_another_device_is_refused() -> None:
    world, other = BuilderWorld("11.4"), BuilderWorld("11.4", device="thor")
    config = world.binding.IBuilderConfig(make_logger(world))
    theirs = other.binding.IBuilderConfig(make_logger(other)).create_timing_cache(b"")
    assert not config.set_timing_cache(theirs, ignore_mismatch=False)
    assert not config.create_timing_cache(b"").combine(theirs, ignore_mismatch=False)
    assert config.create_timing_cache(b"junk") is None
