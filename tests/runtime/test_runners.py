import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact, sidecar_path
from netvlad_deploy.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    RunError,
    UsageError,
)
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.backends import BACKENDS
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.arrays import Array
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

HERE = ["onnxruntime", pytest.param("openvino", marks=pytest.mark.openvino), "torch", "oracle"]
"""Backends that run on any machine that has their packages."""


@pytest.mark.parametrize("backend", HERE)
def test_every_backend_gives_the_same_descriptor(exported: OnnxArtifact, backend: str) -> None:
    x = features(3, 20, 16)
    with open_runner(exported, backend="oracle") as oracle, open_runner(exported, backend=backend) as runner:
        assert np.abs(runner.run({FEATURES: x})[DESCRIPTOR] - oracle.run({FEATURES: x})[DESCRIPTOR]).max() < 1e-6


@pytest.mark.parametrize("backend", HERE)
def test_padded_and_masked_equals_unpadded(masked: OnnxArtifact, backend: str) -> None:
    x = features(3, 20, 16)
    lengths = [20, 7, 0]
    mask = np.arange(20) < np.array(lengths)[:, None]
    with open_runner(masked, backend=backend) as runner, open_runner(masked, backend="oracle") as oracle:
        got = runner.run({FEATURES: np.where(mask[..., None], x, np.float32(1e4)), MASK: mask})[DESCRIPTOR]
        for item, length in enumerate(lengths[:2]):
            alone = oracle.run({FEATURES: x[item : item + 1, :length]})[DESCRIPTOR][0]
            assert np.abs(got[item] - alone).max() < 1e-6
        assert not got[2].any()


@pytest.mark.parametrize("backend", HERE)
def test_results_are_owned_and_inputs_are_left_alone(exported: OnnxArtifact, backend: str) -> None:
    x = features(2, 5, 16)
    before = x.copy()
    with open_runner(exported, backend=backend) as runner:
        first = runner.run({FEATURES: x})[DESCRIPTOR]
        kept = first.copy()
        runner.run({FEATURES: x + 1})
    assert np.array_equal(first, kept)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("backend", HERE[:2])
def test_read_only_features_that_are_not_contiguous(exported: OnnxArtifact, backend: str) -> None:
    x = features(16, 5, 2).transpose(2, 1, 0)
    x.flags.writeable = False
    with open_runner(exported, backend=backend) as runner:
        strided, contiguous = (runner.run({FEATURES: array})[DESCRIPTOR] for array in (x, np.ascontiguousarray(x)))
    assert np.array_equal(strided, contiguous)


BAD_FEATURES: list[tuple[Array, str]] = [
    (np.ones((2, 16), np.float32), r"shape \(2, 16\), expected \(batch, num_features, 16\)"),
    (np.ones((2, 3, 15), np.float32), r"shape \(2, 3, 15\), expected"),
    (np.ones((2, 0, 16), np.float32), "must be at least 1"),
    (np.ones((0, 3, 16), np.float32), "must be at least 1"),
    (np.ones((2, 3, 16)), "float64, expected float32: convert with"),
    (np.ones((2, 3, 16), np.int32), "int32, expected float32"),
]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize(("array", "message"), BAD_FEATURES)
def test_bad_features_are_refused(exported: OnnxArtifact, backend: str, array: Array, message: str) -> None:
    with open_runner(exported, backend=backend) as runner, pytest.raises(InputError, match=message):
        runner.run({FEATURES: array})


def test_wrong_names_are_refused_with_a_hint(exported: OnnxArtifact) -> None:
    x = features(1, 3, 16)
    with open_runner(exported) as runner:
        with pytest.raises(InputError, match=r"takes features, got features, mask: export with --masked"):
            runner.run({FEATURES: x, MASK: np.ones((1, 3), dtype=bool)})
        with pytest.raises(InputError, match="got nothing"):
            runner.run({})


@pytest.mark.parametrize("mask", [np.ones((1, 3)), np.ones((1, 4), dtype=bool)])
def test_a_bad_mask_is_refused(masked: OnnxArtifact, mask: Array) -> None:
    with open_runner(masked) as runner, pytest.raises(InputError, match=r"expected bool \(1, 3\)"):
        runner.run({FEATURES: features(1, 3, 16), MASK: mask})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_padded_row_that_is_not_finite_is_named(masked: OnnxArtifact, value: float) -> None:
    x = features(3, 5, 16)
    mask = np.ones((3, 5), dtype=bool)
    mask[1, 3:] = False
    x[1, 4, 7] = value
    with open_runner(masked) as runner, pytest.raises(InputError, match=r"padded row 4 of batch item 1 is not finite"):
        runner.run({FEATURES: x, MASK: mask})


def test_lengths_outside_the_profile_are_refused(exported: OnnxArtifact) -> None:
    with open_runner(exported) as runner:
        runner.profiles = (Profile(batch=AxisRange.parse("1:2:2"), num_features=AxisRange.parse("4:5:6")),)
        runner.run({FEATURES: features(2, 4, 16)})
        with pytest.raises(InputError, match=r"batch is 3, .* outside the profile \(batch 1:2:2, num_features 4:5:6\)"):
            runner.run({FEATURES: features(3, 4, 16)})
        with pytest.raises(InputError, match=r"num_features is 7, outside the profile .*: rebuild with a wider range"):
            runner.run({FEATURES: features(2, 7, 16)})


@pytest.mark.parametrize("backend", HERE)
def test_a_closed_runner_says_so(exported: OnnxArtifact, backend: str) -> None:
    runner = open_runner(exported, backend=backend)
    runner.close()
    runner.close()
    with pytest.raises(RunError, match="is closed"):
        runner.run({FEATURES: features(1, 3, 16)})


def test_backends_that_cannot_run_a_file_are_refused(exported: OnnxArtifact) -> None:
    with pytest.raises(UsageError, match=f"choose one of {', '.join(BACKENDS)}"):
        open_runner(exported, backend="cuda")
    with pytest.raises(UsageError, match="leave --backend out for onnxruntime"):
        open_runner(exported, backend="tensorrt")
    with pytest.raises(UsageError, match="choose torch or oracle"):
        open_runner(exported.reference_path, backend="onnxruntime")
    with pytest.raises(UsageError, match="a profile is for onnxruntime-tensorrt and onnxruntime-rtx, not for None"):
        open_runner(exported, profile=Profile())


@pytest.mark.parametrize("backend", HERE[:2])
def test_threads_that_share_a_runner_get_their_own_results(masked: OnnxArtifact, backend: str) -> None:
    feeds = []
    for number in range(16):
        x = features(1 + number % 3, 5 + number, 16, seed=number)
        feeds.append({FEATURES: x, MASK: np.random.default_rng(number).random(x.shape[:2]) < 0.7})
    with open_runner(masked, backend=backend, threads=1) as runner, ThreadPoolExecutor(16) as pool:
        expected = [runner.run(each)[DESCRIPTOR] for each in feeds]
        for _ in range(10):
            for got, alone in zip(pool.map(runner.run, feeds), expected, strict=True):
                assert np.array_equal(got[DESCRIPTOR], alone)


def test_a_reference_file_is_a_checkpoint(exported: OnnxArtifact) -> None:
    with Candidate(path=exported.reference_path).open() as runner:
        assert runner.name == "torch"


def test_the_rtx_provider_needs_its_plugin(exported: OnnxArtifact) -> None:
    with pytest.raises(MissingDependencyError, match=r"-m pip install onnxruntime-ep-nv-tensorrt-rtx$"):
        open_runner(exported, backend="onnxruntime-rtx")


def test_a_file_without_its_sidecar_is_not_opened(exported: OnnxArtifact, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported.path.read_bytes())
    with pytest.raises(ArtifactError, match="is missing"):
        open_runner(tmp_path / "m.onnx")
    sidecar_path(tmp_path / "m.onnx").write_bytes(sidecar_path(exported.path).read_bytes())
    open_runner(tmp_path / "m.onnx").close()
    with pytest.raises(ArtifactError, match=r"m.reference.npz is missing"):
        open_runner(tmp_path / "m.onnx", backend="torch")


def test_the_order_of_the_feeds_does_not_matter(masked: OnnxArtifact) -> None:
    x, mask = features(2, 5, 16), np.ones((2, 5), dtype=np.bool_)
    for backend in ("onnxruntime", "torch", "oracle"):
        with open_runner(masked, backend=backend) as runner:
            first = runner.run({FEATURES: x, MASK: mask})[DESCRIPTOR]
            second = runner.run({MASK: mask, FEATURES: x})[DESCRIPTOR]
        assert np.array_equal(first, second)


def test_a_graph_that_onnx_runtime_refuses_is_a_run_error(exported: OnnxArtifact, tmp_path: Path) -> None:
    for content in (b"\x32\x01x", b""):  # protobuf, but no graph
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(RunError, match="ONNX Runtime cannot load"):
            OnnxRuntimeRunner(replace(exported, path=tmp_path / "m.onnx", sha256=hashlib.sha256(content).hexdigest()))


def test_a_run_that_onnx_runtime_refuses_is_a_run_error(exported: OnnxArtifact) -> None:
    dtypes = {**exported.dtypes, "nothing": "float32"}
    with OnnxRuntimeRunner(replace(exported, outputs=("nothing",), dtypes=dtypes)) as runner:
        with pytest.raises(RunError, match=r"ONNX Runtime failed: .*nothing"):
            runner.run({FEATURES: features(1, 3, 16)})
