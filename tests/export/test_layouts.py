"""A pipeline exported for another program takes and gives what that program asks for, and is proved like any other."""

from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact, load_artifact, sidecar_path
from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import provider_options
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageProfile
from netvlad_deploy.spec.layouts import LAYOUTS, Layout
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.sidecar import seal, unseal
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.validate import validate
from tests.pipelines import tiny_pipeline

pytestmark = [pytest.mark.export, pytest.mark.ort]

NAMES = "image:0,descriptor:0"
GREY = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 1), dtype=np.uint8).repeat(3, axis=3)


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxArtifact]:
    """Return the tiny pipeline for D2SLAM, and with the channels first in FP16; do not change them."""
    folder = tmp_path_factory.mktemp("layouts")
    return {
        "grey": export_onnx(tiny_pipeline(), folder / "g.onnx", GraphOptions(layout="grey", tensor_names=NAMES)),
        "rgb-nchw": export_onnx(tiny_pipeline(), folder / "r.onnx", GraphOptions(layout="rgb-nchw", precision="fp16")),
    }


def described(runner: Runner, images: Array) -> Array:
    return runner.run({"images": images})["descriptor"]


def test_a_slam_front_end_calls_it_as_it_calls_its_own(robots: dict[str, OnnxArtifact], tiny: OnnxArtifact) -> None:
    """D2SLAM's call: `image:0` (1,H,W,1) float32 from 0 to 255, and `descriptor:0` alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(robots["grey"].path))
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("image:0", "tensor(float)", ["batch", "height", "width", 1])
    assert found.name == "descriptor:0"
    (got,) = session.run(["descriptor:0"], {"image:0": GREY[:1, :, :, :1].astype(np.float32)})
    with open_runner(tiny) as runner:
        assert np.abs(got - described(runner, GREY[:1])).max() < 1e-6


@pytest.mark.parametrize("layout", ["grey", "rgb-nchw"])
@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino)])
def test_every_runner_takes_photos_as_before(
    robots: dict[str, OnnxArtifact], tiny: OnnxArtifact, half: OnnxArtifact, backend: str, layout: str
) -> None:
    plain = tiny if layout == "grey" else half
    with open_runner(robots[layout], backend=backend) as runner, open_runner(plain, backend=backend) as other:
        assert (runner.inputs, runner.outputs, runner.dtype) == (("images",), ("descriptor",), np.dtype(np.uint8))
        assert np.abs(described(runner, GREY) - described(other, GREY)).max() < 1e-4
        colours = GREY.copy()
        colours[..., 0] //= 2
        moved = np.abs(described(runner, colours) - described(runner, GREY)).max()
        assert moved > 1e-3
        tapped = runner.tapped()
        assert {"descriptor", "local_descriptors"} <= set(tapped.outputs)


def test_it_is_validated_and_timed_like_any_other(robots: dict[str, OnnxArtifact]) -> None:
    for artifact in robots.values():
        report = validate(Candidate.of(artifact))
        assert report.verdict is Verdict.PASS
        assert len(report.cases) == 6
    timed = bench([Candidate.of(robots["grey"])], image_size=(40, 56), duration_s=0.05, threads=1)
    assert timed.verdict is Verdict.PASS


def test_a_wrong_layout_in_the_sidecar_is_refused(robots: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(robots["grey"].path.read_bytes())
    record = unseal(sidecar_path(robots["grey"].path).read_bytes(), "it")
    for layout, words in (("uint8", "another dtype than images of the layout uint8"), ("yuv", "layout is 'yuv'")):
        record["images"]["layout"] = layout
        sidecar_path(path).write_bytes(seal(record))
        with pytest.raises(ArtifactError, match=words):
            load_artifact(path)
    del record["images"]["layout"]  # as it was before there were layouts
    record["dtypes"] = {"image:0": "uint8", "descriptor:0": "float32"}
    sidecar_path(path).write_bytes(seal(record))
    images = load_artifact(path).images
    assert images is not None
    assert images.layout == "uint8"


def test_golden_images_of_a_grey_graph_are_grey(robots: dict[str, OnnxArtifact]) -> None:
    for layout, grey in (("grey", True), ("rgb-nchw", False)):
        with np.load(robots[layout].reference_path) as arrays:
            images = [arrays[name] for name in arrays if name.endswith("image")]
        assert all((image[..., :1] == image).all() == grey for image in images)
        assert images


def test_shapes_of_every_layout() -> None:
    shapes = [layout.shape((2, 5, 7)) for layout in LAYOUTS.values()]
    assert shapes == [(2, 5, 7, 3), (2, 5, 7, 3), (2, 5, 7, 1), (2, 3, 5, 7), (2, 1, 5, 7)]
    images = np.arange(2 * 5 * 7 * 3, dtype=np.uint8).reshape(2, 5, 7, 3)
    for layout in LAYOUTS.values():
        laid_out = layout.laid_out(images)
        assert laid_out.shape == layout.shape((2, 5, 7))
        assert laid_out.dtype == layout.dtype
        assert [laid_out.shape[axis] for axis in layout.axes] == [2, 5, 7]
    assert np.array_equal(Layout(channels_first=True).laid_out(images)[1, 2], images[1, :, :, 2])


def test_grey_is_pillows() -> None:
    import PIL.Image

    image = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    grey = np.asarray(PIL.Image.fromarray(image).convert("L"))
    assert np.array_equal(Layout(channels=1).laid_out(image[None])[0, ..., 0], grey)


def test_a_provider_that_reads_no_colon_is_not_asked(robots: dict[str, OnnxArtifact]) -> None:
    """ONNX Runtime's TensorRT providers would take `image` for the name and `0` for the shape."""
    artifact = robots["grey"]
    with pytest.raises(UsageError, match="takes image:0, and onnxruntime-tensorrt reads no name with a colon"):
        provider_options("onnxruntime-tensorrt", artifact, artifact.usual_profile, cache=None)


@pytest.mark.rtx
def test_an_engine_has_the_same_input_and_output(robots: dict[str, OnnxArtifact], tmp_path: Path) -> None:
    from netvlad_deploy.spec.build_options import BuildOptions
    from netvlad_deploy.tensorrt.build_log import trtexec_line
    from netvlad_deploy.tensorrt.engine import build_engine

    options = BuildOptions(
        flavor="tensorrt-rtx", profiles=(ImageProfile.parse("1x40x56"),), compute_capabilities=("SM89",)
    )
    engine = build_engine(robots["grey"], tmp_path / "g.engine", options)
    assert (engine.inputs, engine.outputs) == (("image:0",), ("descriptor:0",))
    assert engine.input_shapes(engine.profiles[0]) == {"image:0": ((1, 40, 56, 1),) * 3}
    assert engine.tensors == robots["grey"].tensors
    assert "--minShapes='image:0':1x40x56x1" in trtexec_line(engine).replace("'\"'\"'", "'").replace("''", "'")


def test_what_cannot_be_is_refused(module: NetVLAD, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--layout and --tensor-names are for images"):
        export_onnx(module, tmp_path / "h.onnx", GraphOptions(layout="grey"))
    for names in ("image:0", "a,a", "a,b,c", "a b,c", ""):
        with pytest.raises(UsageError, match="are not INPUT,OUTPUT"):
            GraphOptions(tensor_names=names)
    with pytest.raises(UsageError, match="layout 'bgr' is unknown: choose one of uint8, rgb, grey"):
        GraphOptions(layout="bgr")
    with pytest.raises(UsageError, match="has a tensor local_descriptors already: choose other --tensor-names"):
        export_onnx(tiny_pipeline(), tmp_path / "p.onnx", GraphOptions(tensor_names="local_descriptors,d"))
    renamed = GraphOptions(tensor_names=NAMES).pipeline_names
    assert renamed == {"images": "image:0", "descriptor": "descriptor:0"}
