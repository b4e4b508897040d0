"""An engine whose kernels have other types than its graph is refused, and never called by its graph's precision."""

from dataclasses import replace
from pathlib import Path

import pytest

from netvlad_deploy.errors import BuildError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.spec.build_options import BuildOptions, Kernel
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import Projection
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.tensorrt.build_log import check_types
from netvlad_deploy.tensorrt.engine import build_engine
from tests.modules import make_module, make_projected

pytestmark = pytest.mark.export

SMALL = Profile(batch=AxisRange.parse("1:2:4"))
OPTIONS = BuildOptions(flavor="tensorrt-rtx", profiles=(SMALL,))


def kernel(dtype: str, kind: str = "gemm") -> Kernel:
    return Kernel(name=f"{dtype} {kind}", kind=kind, inputs=(dtype, dtype), outputs=(dtype,))


H, S, FUSED, SOFTMAX = kernel("Half"), kernel("Float"), kernel("Float", "runtime_fusion"), kernel("Float", "kgen")
CAST = Kernel(name="cast", kind="kgen", inputs=("Float",), outputs=("Half",))
WRONG = [
    ("fp16", S, S),
    ("fp16-wide-logits", H, H),
    ("fp16", FUSED, H),
    ("fp16-wide-logits", S, S),
    ("fp32", S, H),
    ("tf32", S, CAST),
]


@pytest.mark.parametrize(("precision", "first", "second"), WRONG)
def test_kernels_of_another_type_are_refused(precision: str, first: Kernel, second: Kernel) -> None:
    with pytest.raises(BuildError, match=f"graph in {precision} has other types in .*: nothing was written"):
        check_types([first, SOFTMAX, second], precision)


def test_kernels_of_the_types_of_the_graph_pass() -> None:
    check_types([H, SOFTMAX, CAST, H], "fp16")
    check_types([S, SOFTMAX, CAST, H], "fp16-wide-logits")
    check_types([S, SOFTMAX, S], "fp32")
    check_types([H, SOFTMAX, H, H, S], "fp16", gated=True)


@pytest.mark.parametrize(("kernels", "gated"), [([H, H, H, S], False), ([H, H, H, H], True), ([H, H, S, S], True)])
def test_gating_is_the_one_product_more_that_is_fp32(kernels: list[Kernel], gated: bool) -> None:
    with pytest.raises(BuildError, match="graph in fp16 has other types in "):
        check_types(kernels, "fp16", gated=gated)


@pytest.mark.rtx
@pytest.mark.parametrize("gating", [None, "batch_norm"])
def test_an_engine_of_a_projection_has_the_types_of_its_graph(tmp_path: Path, gating: str | None) -> None:
    module = make_projected(Projection(size=16, gating=gating), 8, 32, 0)
    artifact = export_onnx(module, tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    build_engine(artifact, tmp_path / "m.engine", OPTIONS)
    with pytest.raises(BuildError, match="graph in fp32 has other types in "):
        build_engine(replace(artifact, precision="fp32"), tmp_path / "wrong.engine", OPTIONS)


@pytest.mark.rtx
@pytest.mark.parametrize("clusters", [1, 8])
@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (GraphOptions(), "fp16"),
        (GraphOptions(precision="fp16"), "fp32"),
        (GraphOptions(precision="fp16", wide_logits=True), "fp16"),
        (GraphOptions(precision="fp16", wide_logits=True), "fp32"),
    ],
)
def test_an_engine_of_other_types_is_not_written(
    tmp_path: Path, clusters: int, options: GraphOptions, precision: str
) -> None:
    artifact = export_onnx(make_module(clusters, 32, 2), tmp_path / "m.onnx", options)
    build_engine(artifact, tmp_path / "right.engine", OPTIONS)
    with pytest.raises(BuildError, match=f"graph in {precision} has other types in "):
        build_engine(
            replace(artifact, precision=precision),
            tmp_path / "wrong.engine",
            OPTIONS,
        )
    assert not (tmp_path / "wrong.engine").exists()
