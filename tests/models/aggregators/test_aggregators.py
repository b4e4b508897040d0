"""Every aggregator from its checkpoint to ONNX: its module, the package's formula and both graphs equal a formula of
the tests, and with any one convention swapped they do not."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.aggregators import AGGREGATORS
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.checkpoints import load_checkpoint, read_head
from netvlad_deploy.models.dialects import HEIRS
from netvlad_deploy.oracle.aggregators import FORMULAS
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.tensorrt.build_log import PRODUCT_KINDS
from netvlad_deploy.tensorrt.engine import build_engine
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate
from tests.command import Command
from tests.models.aggregators.hfnet import HFNET_SAMPLES
from tests.models.aggregators.samples import SAMPLES as PYTORCH_SAMPLES
from tests.models.aggregators.samples import Sample

pytestmark = [pytest.mark.export, pytest.mark.ort]

SAMPLES = {**PYTORCH_SAMPLES, **HFNET_SAMPLES}
Exported = Callable[[str, str], OnnxArtifact]
PRECISIONS = {"fp32": ("onnxruntime", 1e-6), "fp16": ("strict", 2e-5)}


def module_of(sample: Sample, folder: Path) -> Aggregator:
    module = read_head(sample.save(folder), **sample.options).module("it")
    assert isinstance(module, Aggregator)
    return module


def angle(got: Array, expected: Array) -> float:
    """Return the largest 1 - cos of two batches of descriptors."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return float((1 - (got * expected).sum(axis=1) / lengths).max())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that exports a sample in a precision, once for all tests."""

    @cache
    def make(name: str, precision: str) -> OnnxArtifact:
        folder, sample = tmp_path_factory.mktemp("exported"), SAMPLES[name]
        source = Source(checkpoint=sample.save(folder), takes="features", **sample.options)
        return export(source, folder / f"{precision}.onnx", GraphOptions(precision=precision))

    return make


@pytest.mark.parametrize("name", SAMPLES)
def test_the_module_and_the_formula_of_the_package_equal_the_formula_of_the_tests(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    module, feeds = module_of(sample, tmp_path).double(), sample.feeds()
    expected = sample.expected(feeds)
    with torch.inference_mode():
        got = module(*map(torch.from_numpy, feeds.values())).numpy()
    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    assert np.abs(got - expected).max() < 1e-12
    assert np.abs(FORMULAS[module.spec.name](module.spec, state, feeds) - expected).max() < 1e-12
    assert tuple(feeds) == module.spec.inputs
    assert not module.training


@pytest.mark.parametrize(
    ("name", "swap"), [(name, swap) for name, sample in SAMPLES.items() for swap in sample.swaps], ids=str
)
def test_a_convention_swapped_fails_the_same_comparison(tmp_path: Path, name: str, swap: dict[str, object]) -> None:
    sample = SAMPLES[name]
    feeds = sample.feeds(6)
    right, swapped = sample.expected(feeds), sample.expected(feeds, **swap)
    far = np.abs(right - swapped).max() if swap.keys() & set(sample.lengths) else angle(right, swapped)
    assert far > 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_graph_equals_the_formula(exported: Exported, name: str, precision: str) -> None:
    sample, (backend, limit) = SAMPLES[name], PRECISIONS[precision]
    artifact = exported(name, precision)
    nodes = onnx.load(artifact.path).graph.node
    assert len(nodes) <= sample.nodes[precision == "fp16"]
    assert not {node.op_type for node in nodes} & {"Shape", "Size", "Expand", "ReduceMax", "ReduceLogSumExp", "Loop"}
    with open_runner(artifact, backend=backend) as runner:
        for count in (artifact.spec.least_features + 1, 23, 200):
            feeds = sample.feeds(count)
            got = runner.run({key: each.astype(runner.dtype) for key, each in feeds.items()})["descriptor"]
            assert angle(got.astype(np.float64), sample.expected(feeds)) < limit
    report = validate(Candidate(path=artifact.path))
    assert report.verdict is Verdict.PASS
    assert report.reference == "golden features"


@pytest.mark.parametrize("name", SAMPLES)
def test_changed_weights_fail_against_the_golden_features(exported: Exported, tmp_path: Path, name: str) -> None:
    """Each tensor that the descriptor depends on, a hundredth larger, is another network."""
    sample, artifact = SAMPLES[name], exported(name, "fp32")
    for key, tensor in sample.state.items():
        other = sample.save(tmp_path, {key: tensor * 1.01})
        report = validate(
            Candidate(path=artifact.path), against=other, read_as=Source(dialect=sample.options["dialect"])
        )
        assert report.verdict is (Verdict.PASS if key in sample.invisible else Verdict.FAIL), key


@pytest.mark.rtx
def test_tensorrt_rtx_builds_salad_with_every_product_in_fp16(exported: Exported, tmp_path: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile.parse("1x4,2x23,2x40"),))
    engine = build_engine(exported("salad", "fp16"), tmp_path / "m.engine", options)
    products = [kernel for kernel in engine.figures.kernels if kernel.kind in PRODUCT_KINDS]
    assert products
    assert all("Half" in kernel.inputs for kernel in products)
    few = replace(options, profiles=(Profile.parse("1x3,2x23,2x40"),))
    with pytest.raises(UsageError, match="needs at least 4 features for each image"):
        build_engine(exported("salad", "fp16"), tmp_path / "few.engine", few)


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if not sample.chosen])
def test_it_is_recognised_by_its_keys_behind_any_prefix(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    for prefix in ("", "model.", "module."):
        head = read_head(sample.save(tmp_path, prefix=prefix))
        assert head.dialect == sample.dialect
        assert not head.projections
    with pytest.raises(InputError, match=r"holds [a-z-]+, expected a NetVLAD: export it by itself"):
        load_checkpoint(sample.save(tmp_path))


def test_every_aggregator_has_a_dialect_a_formula_and_a_sample() -> None:
    assert {"crn", *(sample.dialect for sample in SAMPLES.values())} == {dialect.name for dialect in HEIRS}
    assert AGGREGATORS.keys() - {"crn"} <= FORMULAS.keys()  # a head under its backbone is proved by golden images


@pytest.mark.parametrize("name", SAMPLES)
def test_the_command_line_says_what_it_is_and_takes_no_mask(tmp_path: Path, name: str, command: Command) -> None:
    sample = SAMPLES[name]
    path = sample.save(tmp_path)
    chosen = ("--dialect", sample.dialect) if sample.chosen else ()
    shown = command("inspect", path, *chosen)
    assert shown.code == 0
    assert f"a checkpoint in the dialect {sample.dialect}" in shown.out
    masked = command("export", path, "-o", tmp_path / "m.onnx", "--input", "features", "--masked", *chosen)
    assert masked.code == UsageError.exit_code
    assert "takes no mask" in masked.err
    assert not list(tmp_path.glob("m.onnx*"))
