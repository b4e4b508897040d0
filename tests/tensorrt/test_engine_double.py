"""Engine builds on the double of every version of the binding: settings, refusals and written files.

Whatever call or setting of the builder is left out makes a test here fail. Nothing here needs torch, onnx or a GPU.
"""

import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact, load_artifact, log_path
from netvlad_deploy.errors import BuildError, DeviceUnavailableError, InputError, UsageError
from netvlad_deploy.spec.build_options import BuildOptions, Gpu
from netvlad_deploy.spec.images import ImageInput, ImageProfile, Resize
from netvlad_deploy.spec.layer import AggregatorSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.support.progress import watched_by
from netvlad_deploy.tensorrt import api as trt_api
from netvlad_deploy.tensorrt import builder, engine
from netvlad_deploy.tensorrt.api import TensorRT
from netvlad_deploy.tensorrt.engine import build_engine
from tests.double.builder import BuilderWorld
from tests.double.core import VERSIONS
from tests.double.graph import GRAPH, write_graph
from tests.tensorrt.conftest import ORIN, Build, Open, files

STANDARD = tuple(version for version in VERSIONS if not version.startswith("rtx"))
RTX = "rtx-1.7.1"
SHAPES = [
    {"features": [[1, 1, 3], [2, 5, 3], [4, 9, 3]], "mask": [[1, 1], [2, 5], [4, 9]]},
    {"features": [[1, 7, 3]] * 3, "mask": [[1, 7]] * 3},
]
DEFAULTS = {
    "graph": GRAPH,
    "flags": [],
    "pools": {"WORKSPACE": 64 << 30},
    "verbosity": "DETAILED",
    "hardware": "NONE",
    "level": 3,
    "capabilities": [],
    "profiles": SHAPES,
}


def content(artifact: EngineArtifact) -> dict[str, Any]:
    """Return the settings with which the double of the builder built the engine."""
    return dict(json.loads(artifact.path.read_bytes()))


def test_a_plain_build(world: BuilderWorld, build: Build, tmp_path: Path) -> None:
    artifact = build(world)
    assert content(artifact) == DEFAULTS
    assert load_artifact(artifact.path) == artifact
    assert artifact.versions[world.flavor] == world.binding.__version__
    assert (artifact.flags, artifact.warnings) == ((), ("of the audit",))
    assert artifact.gpu == (None if world.rtx else ORIN)
    assert artifact.targets == (builder.RTX_TARGETS if world.rtx else ())
    assert artifact.figures.activation_bytes == 2048
    assert files(tmp_path) == {"m.engine", "m.engine.json", "m.engine.log"}


@pytest.mark.parametrize("version", STANDARD)
def test_every_option_reaches_the_builder(version: str, open_world: Open, build: Build) -> None:
    world = open_world(version)
    artifact = build(
        world,
        tf32=True,
        workspace_mib=512,
        optimization_level=5,
        hardware_compatible=True,
        version_compatible=True,
    )
    assert content(artifact) == {
        **DEFAULTS,
        "flags": ["TF32", "VERSION_COMPATIBLE"],
        "pools": {"WORKSPACE": 512 * 2**20},
        "hardware": "AMPERE_PLUS",
        "level": 5,
    }
    assert artifact.flags == ("TF32", "VERSION_COMPATIBLE")
    assert artifact.targets == ()
    prices = {option.name: option.metadata["price"] for option in fields(BuildOptions) if "price" in option.metadata}
    assert artifact.warnings == ("of the audit", prices["hardware_compatible"], prices["version_compatible"])


def test_the_builder_reads_every_option_of_the_table() -> None:
    source = Path(builder.__file__).read_text()
    assert [option.name for option in fields(BuildOptions)[2:] if f"options.{option.name}" not in source] == []


def test_compute_capabilities_reach_the_builder(open_world: Open, build: Build) -> None:
    world = open_world(RTX)
    artifact = build(world, compute_capabilities=("SM89", "SM120"), optimization_level=0, workspace_mib=64, tf32=True)
    expected = {"flags": ["TF32"], "pools": {"WORKSPACE": 64 * 2**20}, "level": 0, "capabilities": ["SM89", "SM120"]}
    assert content(artifact) == {**DEFAULTS, **expected}
    assert (artifact.targets, artifact.gpu, artifact.flags) == (("SM89", "SM120"), None, ("TF32",))


def test_a_gpu_is_noted_unless_the_engine_is_for_others(
    open_world: Open, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = open_world(RTX)
    monkeypatch.setattr(builder, "Cuda", lambda extra: SimpleNamespace(gpu=lambda: ORIN))
    assert build(world).gpu == ORIN
    assert build(world, compute_capabilities=("SM89",), force=True).gpu is None


def test_an_unknown_compute_capability_is_refused_with_those_there_are(
    open_world: Open, build: Build, tmp_path: Path
) -> None:
    for name in ("SM87", "NONE", "CURRENT"):
        with pytest.raises(UsageError, match=f"no compute capability {name}: choose from SM120, SM121, SM75, "):
            build(open_world(RTX), compute_capabilities=("SM89", name))
    assert files(tmp_path) == set()


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("Builder.create_network", {}, "refused a network: Builder::create_network"),
    ("Builder.create_builder_config", {}, "refused a configuration: Builder::create_builder_config"),
    ("Builder.create_optimization_profile", {}, "refused an optimization profile: Builder::create_opt"),
    ("Builder.build_serialized_network", {}, "built no engine: Builder::build_serialized_network"),
    ("OnnxParser.parse", {}, "cannot parse the graph: OnnxParser::parse"),
    ("IOptimizationProfile.set_shape", {}, r"refused the shapes \(\(1, 1, 3\), .* of features: Shape provided for min"),
    ("IOptimizationProfile.get_shape", {}, r"did not keep the shapes of features: got \(\), expected \(\(1, 1, 3\)"),
    ("IBuilderConfig.add_optimization_profile", {}, "refused the profile batch 1:2:4, num_features 1:5:9: IBuilder"),
    ("IBuilderConfig.profiling_verbosity", {}, "did not keep profiling verbosity"),
    ("IBuilderConfig.clear_flag", {}, "did not keep TF32: got True, expected False"),
    ("IBuilderConfig.builder_optimization_level", {"optimization_level": 1}, "optimization level: got 3, expected 1"),
    ("IBuilderConfig.set_memory_pool_limit", {"workspace_mib": 1}, "workspace in bytes: got .*, expected 1048576"),
]
STANDARD_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("IBuilderConfig.set_flag", {"version_compatible": True}, "did not keep VERSION_COMPATIBLE"),
    ("IBuilderConfig.hardware_compatibility_level", {"hardware_compatible": True}, "did not keep hardware compat"),
    ("IBuilderConfig.create_timing_cache", {"cache": True}, "refused the timing cache .*timings .*create_timing"),
    ("IBuilderConfig.set_timing_cache", {"cache": True}, "refused the timing cache .*timings .*set_timing"),
]
CAPABILITY = {"compute_capabilities": ("SM89",)}
RTX_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("IBuilderConfig.num_compute_capabilities", CAPABILITY, "refused compute capability SM89: Index of compute"),
    ("IBuilderConfig.set_compute_capability", CAPABILITY, "refused compute capability SM89: IBuilderConfig::set"),
    ("IBuilderConfig.get_compute_capability", CAPABILITY, r"compute capabilities: got \('NONE',\), expected \('SM89'"),
]


@pytest.mark.parametrize(
    ("version", "call", "options", "message"),
    [(version, *refusal) for version in VERSIONS for refusal in REFUSALS]
    + [(version, *refusal) for version in STANDARD for refusal in STANDARD_REFUSALS]
    + [(RTX, *refusal) for refusal in RTX_REFUSALS],
)
def test_every_refusal_is_an_error_in_its_own_words(
    open_world: Open, build: Build, tmp_path: Path, version: str, call: str, options: dict[str, Any], message: str
) -> None:
    world = open_world(version)
    world.failing.add(call)
    with pytest.raises(BuildError, match=message) as error:
        build(world, **options)
    assert f"{world.flavor} {world.binding.__version__} " in str(error.value)
    assert files(tmp_path) == set()


def test_shapes_that_take_more_memory_than_there_is_say_what_helps(
    world: BuilderWorld, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Error Code 2: OutOfMemory (Requested size was 68719477264 bytes.)"
    monkeypatch.setattr("netvlad_deploy.tensorrt.api.TensorRT.last_error", lambda *_: said)
    world.failing.add("Builder.build_serialized_network")
    with pytest.raises(BuildError, match=r"OutOfMemory .*: build for smaller shapes \(--profile\)"):
        build(world)


def test_tf32_is_turned_on_where_it_is_off(world: BuilderWorld, build: Build) -> None:
    world.tf32 = False
    assert build(world, tf32=True).flags == ("TF32",)
    world.failing.add("IBuilderConfig.set_flag")
    with pytest.raises(BuildError, match="did not keep TF32: got False, expected True"):
        build(world, tf32=True, force=True)


def test_no_driver_is_an_unavailable_device(world: BuilderWorld, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(extra: str) -> Gpu:
        raise DeviceUnavailableError("no GPU")

    world.failing.add("Builder.__init__")
    if not world.rtx:
        with pytest.raises(BuildError, match="gives no builder: CUDA initialization failure with error: 35"):
            build(world)
    monkeypatch.setattr(trt_api, "Cuda", absent)
    with pytest.raises(DeviceUnavailableError, match="cannot build here: CUDA initialization failure with error: 35"):
        build(world)


@pytest.mark.parametrize("call", ["combine", "serialize"])
def test_an_engine_is_kept_though_its_timings_cannot_be(
    open_world: Open, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    world = open_world("10.3")
    build(world, cache=True)
    before = (tmp_path / "timings").read_bytes()
    world.failing.add(f"ITimingCache.{call}")
    world.measures = ["other"]
    with caplog.at_level(logging.WARNING):
        build(world, cache=True, force=True)
    assert "the timings of this build are not kept: " in caplog.text
    assert (tmp_path / "timings").read_bytes() == before
    load_artifact(tmp_path / "m.engine")


def test_the_builder_works_on_the_gpu_of_its_caller(world: BuilderWorld, build: Build) -> None:
    build(world)
    assert world.devices == ([] if world.rtx else [2])


def test_no_gpu_is_an_error_where_one_is_needed(
    open_world: Open, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(extra: str) -> Gpu:
        raise DeviceUnavailableError("no GPU")

    world = open_world("10.3")
    for module in (builder, engine):
        monkeypatch.setattr(module, "Cuda", none)
    with pytest.raises(DeviceUnavailableError, match="no GPU"):
        build(world)


def test_the_parser_is_quoted_with_node_and_line(world: BuilderWorld, build: Build) -> None:
    world.failing.add("OnnxParser.parse")
    world.parser_errors = [
        {"desc": "No importer", "node": 7, "node_name": "product", "node_operator": "Gemm2"},
        {"desc": "Failed to parse"},
    ]
    with pytest.raises(BuildError) as error:
        build(world)
    assert str(error.value).endswith(
        "cannot parse the graph: node 7, Gemm2 'product': No importer (ModelImporter.cpp:356); "
        "Failed to parse (ModelImporter.cpp:356)"
    )


def test_the_log_stands_beside_the_engine(world: BuilderWorld, build: Build) -> None:
    world.messages += [("WARNING", "of one line"), ("VERBOSE", "of\ntwo lines\n")]
    artifact = build(world)
    first, versions, gpu, *messages = log_path(artifact.path).read_text().splitlines()
    assert first.startswith("# tensorrt_rtx --onnx=" if world.rtx else "# trtexec --onnx=")
    assert versions == f"# versions: onnx 1.19.0, {world.flavor} {world.binding.__version__}"
    assert gpu == ("# GPU: none" if world.rtx else "# GPU: Orin, compute capability 8.7, CUDA 12.6")
    assert messages == [
        "[INFO] Total Activation Memory: 2048 bytes",
        "[WARNING] of one line",
        "[VERBOSE] of",
        "two lines",
    ]


def test_progress_is_logged_once_a_second_at_most(
    world: BuilderWorld, build: Build, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    build(world)
    assert caplog.messages == ["build: Building engine"]
    caplog.clear()
    make, kept = builder._make_monitor, []

    def keep(binding: Any) -> Any:
        kept.append(make(binding))
        return kept[-1]

    monkeypatch.setattr(builder, "_make_monitor", keep)
    seen = []
    with watched_by(lambda work: seen.append(str(work))):
        build(world, force=True)
    phases = ("Building engine", "Timing tactics")
    started = [f"{phase}: 0 of 2 steps" for phase in phases]
    assert seen == started + [f"{phase}: {step} of 2 steps" for phase in reversed(phases) for step in (1, 2)]
    assert [each._phases for each in kept] == [{}]


@pytest.mark.parametrize("version", STANDARD)
def test_builds_add_to_one_timing_cache(version: str, open_world: Open, build: Build, tmp_path: Path) -> None:
    world = open_world(version)
    build(world, cache=True)
    world.measures = ["softmax"]
    build(world, cache=True, force=True)
    timings = tmp_path / "timings"
    assert json.loads(timings.read_bytes()) == {"header": [version, "orin"], "timings": ["gemm", "softmax"]}
    before = timings.read_bytes()
    with pytest.raises(BuildError, match=r"header of another device.* name another file"):
        build(open_world(version, device="thor"), cache=True, force=True)
    assert timings.read_bytes() == before
    timings.write_bytes(b"damaged")
    with pytest.raises(BuildError, match=r"refused the timing cache .*not a timing cache.* name another file"):
        build(world, cache=True, force=True)
    assert timings.read_bytes() == b"damaged"


@pytest.mark.parametrize("version", STANDARD)
def test_a_cache_that_another_version_wrote_meanwhile_is_kept(
    version: str, open_world: Open, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = open_world(version)
    other = json.dumps({"header": ["9.0", "orin"], "timings": ["gemm"]}).encode()

    def meanwhile() -> None:
        (tmp_path / "timings").write_bytes(other)

    world.on_step = meanwhile
    with caplog.at_level(logging.WARNING):
        build(world, cache=True)
    assert "are not kept: " in caplog.text
    assert "refused the timing cache" in caplog.text
    assert (tmp_path / "timings").read_bytes() == other


def test_rtx_keeps_no_timings(open_world: Open, build: Build) -> None:
    with pytest.raises(UsageError, match=r"tensorrt-rtx 1\.7\.1\.116 keeps no timings"):
        build(open_world(RTX), cache=True)


def test_capabilities_are_those_of_the_binding(world: BuilderWorld) -> None:
    tensorrt = TensorRT(flavor=world.flavor, module=world.binding)
    assert tensorrt.builds_without_gpu == world.rtx
    assert tensorrt.checks_validity == tensorrt.has_runtime_cache == world.rtx
    assert tensorrt.has_timing_cache != world.rtx
    assert ("has precision flags" in tensorrt.capabilities) == world.version.startswith("10.")
    assert ("builds without a GPU" in tensorrt.capabilities) == world.rtx


def test_profiles_beyond_what_a_layer_or_a_backbone_takes_are_refused(tmp_path: Path) -> None:
    graph = write_graph(tmp_path)
    salad = replace(
        graph, spec=AggregatorSpec(name="salad", descriptor_size=8, unit_length=True, feature_size=3, least_features=5)
    )
    few = BuildOptions(profiles=(Profile.parse("1x4"),))
    with pytest.raises(UsageError, match="needs at least 5 features for each image, got a profile of batch 1:1:1"):
        build_engine(salad, tmp_path / "m.engine", few)
    images = ImageInput(resize=Resize(size=(96, 128)), fixed=True)
    sized = replace(graph, inputs=("images",), dtypes={**graph.dtypes, "images": "uint8"}, images=images)
    other = BuildOptions(profiles=(ImageProfile.parse("1x64x80"),))
    with pytest.raises(InputError, match="images of 64x80 are not taken, the backbone is for 96x128 alone"):
        build_engine(sized, tmp_path / "m.engine", other)
    assert not files(tmp_path)
