"""The tolerance of FP16: every honest FP16 graph is within it, and wrong ones are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import Case, won_by
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.parity.ranks import near_ties
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.runtime.strict_runner import StrictRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Arrays, Float32, unit_rows
from tests.heads import outputs_of, sharp_head
from tests.modules import features, make_module, parameters_of

pytestmark = [pytest.mark.export, pytest.mark.ort]

HALF = GraphOptions(precision="fp16", probe=True)


def parity(
    module: NetVLAD, folder: Path, options: GraphOptions = HALF, cases: list[Case] | None = None
) -> ParityReport:
    artifact = export_onnx(module, folder / "m.onnx", options, force=True)
    with StrictRunner(artifact) as runner:
        return compare(runner, load_reference(artifact.reference_path), cases=cases)


def ratios(report: ParityReport, output: str) -> dict[str, float]:
    return {case.name: found.worst_ratio for case, found in outputs_of(report) if found.output == output}


@pytest.mark.parametrize("wide_logits", [False, True])
@pytest.mark.parametrize("alpha", [1, 164])
@pytest.mark.parametrize(("clusters", "width", "ghosts"), [(1, 64, 0), (1, 12, 3), (8, 12, 0), (64, 128, 8)])
def test_an_honest_fp16_graph_is_within_the_tolerance(
    tmp_path: Path, clusters: int, width: int, ghosts: int, alpha: float, wide_logits: bool
) -> None:
    options = replace(HALF, wide_logits=wide_logits)
    report = parity(sharp_head(clusters, width, ghosts, alpha, seed=1), tmp_path, options)
    failed = [
        (case.name, found.output, found.worst_ratio) for case, found in outputs_of(report) if found.worst_ratio > 1
    ]
    assert not failed
    assert report.verdict is Verdict.PASS


@pytest.mark.parametrize("seed", range(3))
def test_wide_batch_norm_statistics_are_within_the_tolerance(tmp_path: Path, seed: int) -> None:
    assert parity(make_module(16, 64, 3, seed=seed), tmp_path).verdict is Verdict.PASS


def test_fp16_output_is_rounded_once_more_and_passes(tmp_path: Path) -> None:
    report = parity(sharp_head(8, 32, 2, 10, 0), tmp_path, GraphOptions(precision="fp16", output_dtype="float16"))
    assert report.verdict is Verdict.PASS


def repeated(distinct: int, times: int) -> Float32:
    """Features in which every local descriptor occurs `times`, as a still camera gives them."""
    return np.repeat(unit_rows(features(3, distinct, 64)), times, axis=1)


@pytest.mark.parametrize(("distinct", "times"), [(2, 500), (7, 100), (300, 3)])
def test_equal_local_descriptors_round_alike_and_are_within_the_tolerance(
    tmp_path: Path, distinct: int, times: int
) -> None:
    cases = [Case(name="still", features=repeated(distinct, times))]
    assert parity(sharp_head(16, 64, 2, 50, 0), tmp_path, cases=cases).verdict is Verdict.PASS


@pytest.mark.parametrize("alpha", [10, 50])
def test_the_tolerance_is_at_most_a_hundred_times_the_error(tmp_path: Path, alpha: float) -> None:
    found = ratios(parity(sharp_head(64, 128, 8, alpha, 0), tmp_path), DESCRIPTOR)
    assert found["L2-normalised"] > 1 / 100
    assert found["few features"] > 1 / 10


@pytest.mark.parametrize("cluster", [0, 5])
def test_a_centroid_that_is_one_per_cent_off_fails(tmp_path: Path, cluster: int) -> None:
    module = sharp_head(16, 64, 2, 10, 0)
    artifact = export_onnx(module, tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    right = load_reference(artifact.reference_path)
    centroids = right.centroids.copy()
    centroids[cluster] *= 1.01
    with StrictRunner(artifact) as runner:
        report = compare(runner, replace(right, centroids=centroids))
    assert report.verdict is Verdict.FAIL
    assert report.departure is not None
    assert (report.departure.tensor, report.departure.clusters) == ("mean_residual", (cluster,))


def test_fp32_is_held_to_less_than_fp16() -> None:
    module = sharp_head(8, 32, 0, 30, 0)
    parameters = parameters_of(module)
    feeds = Case(name="", features=unit_rows(features(1, 50, 32))).feeds(OracleRunner(parameters), masked=False)
    expected = OracleRunner(parameters).run(feeds)
    fp32, wide, fp16 = (
        tolerances(parameters, feeds, expected, precision)[DESCRIPTOR].max()
        for precision in ("fp32", "fp16-wide-logits", "fp16")
    )
    assert fp32 < wide / 5
    assert wide < fp16 / 3


@pytest.mark.parametrize("seed", [0, 1])
def test_assignments_that_the_oracle_loses_in_float64_may_come_back(tmp_path: Path, seed: int) -> None:
    assert parity(sharp_head(64, 256, 8, 50, seed), tmp_path).verdict is Verdict.PASS
    longest = np.clip(unit_rows(features(64, 1, 256)) * np.float32(1e5), -65440, 65440)
    cases = [Case(name="longest", features=longest)]
    assert parity(sharp_head(64, 256, 8, 164, seed), tmp_path, cases=cases).verdict is not Verdict.FAIL


@pytest.mark.parametrize("wide_logits", [False, True])
def test_ghosts_of_large_bias_are_centred_in_the_model_too(tmp_path: Path, wide_logits: bool) -> None:
    module = sharp_head(8, 64, 8, 10, 0)
    assert module.batch_norm is not None
    module.batch_norm.bias.data[8:] = -1000
    cases = [Case(name="tiny", features=unit_rows(features(2, 300, 64)) * np.float32(1e-4))]
    report = parity(module, tmp_path, replace(HALF, wide_logits=wide_logits), cases)
    assert report.verdict is Verdict.PASS


def test_ghosts_that_win_by_64_leave_a_short_descriptor_that_passes(tmp_path: Path) -> None:
    module = sharp_head(64, 512, 8, 30, 0)
    found = won_by(parameters_of(module), slice(64, None), 64, 2, 300, np.random.default_rng(0))
    assert parity(module, tmp_path, cases=[Case(name="64", features=found)]).verdict is Verdict.PASS


def test_a_stored_fp16_reference_is_rounded_too(tmp_path: Path) -> None:
    module = sharp_head(64, 64, 0, 1, 0)
    half = GraphOptions(precision="fp16", output_dtype="float16")
    artifacts = [export_onnx(module, tmp_path / f"{index}.onnx", options) for index, options in enumerate((None, half))]
    cases = [Case(name="tiny", features=unit_rows(features(4, 300, 64)) * np.float32(1e-2))]
    with StrictRunner(artifacts[0]) as single, StrictRunner(artifacts[1]) as stored:
        parameters = load_reference(artifacts[0].reference_path)
        assert compare(single, parameters, against=stored, cases=cases).verdict is Verdict.PASS


class NotFinite(StrictRunner):
    """A runner that loses one value."""

    def _run(self, feeds: Arrays) -> Arrays:
        results = super()._run(feeds)
        results[DESCRIPTOR][0, 5] = np.nan
        return results


@pytest.mark.parametrize("output_dtype", ["float32", "float16"])
def test_a_value_that_is_not_finite_fails_is_found_and_spares_the_banks(tmp_path: Path, output_dtype: str) -> None:
    options = GraphOptions(precision="fp16", output_dtype=output_dtype)
    artifact = export_onnx(sharp_head(8, 32, 0, 10, 0), tmp_path / "m.onnx", options)
    parameters = load_reference(artifact.reference_path)
    with NotFinite(artifact) as runner:
        report = compare(runner, parameters, banks=[near_ties(parameters)])
    assert (report.verdict, report.retrieval) == (Verdict.FAIL, ())
    assert report.departure is not None
    assert (report.departure.tensor, report.departure.clusters) == ("descriptor", (5,))
