"""The tolerance must hold every honest FP32 computation, and little more."""

import numpy as np
import pytest

from netvlad_deploy.oracle.equations import ReferenceParameters, assignment_projection
from netvlad_deploy.oracle.reference_file import parameters_from_arrays
from netvlad_deploy.parity.cases import Case, default_cases
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR, NORM_FLOORS, RESIDUAL_SUM, SOFT_ASSIGNMENT
from netvlad_deploy.support.arrays import Float32, unit_rows
from tests.modules import features


def parameters(clusters: int, width: int, ghosts: int, sharpness: float, seed: int = 0) -> ReferenceParameters:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((clusters + ghosts, width))
    centres *= 0.9 / np.linalg.norm(centres, axis=1, keepdims=True)
    columns = clusters + ghosts
    return parameters_from_arrays(
        {
            "clusters": (2 * sharpness * centres.T).astype(np.float32),
            "clusters2": centres[:clusters].T[None].astype(np.float32),
            "batch_norm.weight": random.uniform(0.5, 1.5, columns),
            "batch_norm.bias": random.standard_normal(columns),
            "batch_norm.running_mean": random.standard_normal(columns),
            "batch_norm.running_var": random.uniform(0.2, 3, columns),
            "batch_norm.eps": np.array(1e-5),
        }
    )


def float32_layer(p: ReferenceParameters, x: Float32) -> dict[str, Float32]:
    """Compute the layer in FP32 throughout, straight from the equations: no mean form."""
    weight, bias = (values.astype(np.float32) for values in assignment_projection(p))
    centroids = p.centroids.astype(np.float32)
    logits = x @ weight + bias
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    assignment = (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., : p.spec.num_clusters]
    weighted = assignment.swapaxes(1, 2) @ x
    residuals = weighted - assignment.sum(axis=1)[..., None] * centroids
    floor = np.float32(NORM_FLOORS["clamp"])
    intra = residuals / np.maximum(np.linalg.norm(residuals, axis=-1, keepdims=True), floor)
    flat = intra.swapaxes(1, 2).reshape(len(x), -1)
    norm = np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), floor)
    assert flat.dtype == np.float32
    return {SOFT_ASSIGNMENT: assignment, RESIDUAL_SUM: residuals, DESCRIPTOR: flat / norm}


def worst_ratios(p: ReferenceParameters, case: Case) -> dict[str, float]:
    feeds = case.feeds(OracleRunner(p), masked=False)
    expected = OracleRunner(p).run(feeds)
    allowed = tolerances(p, feeds, expected, "fp32")
    got = float32_layer(p, case.features)
    shape = (-1, p.spec.feature_size, p.spec.num_clusters)
    errors = {
        SOFT_ASSIGNMENT: np.abs(got[SOFT_ASSIGNMENT] - expected[SOFT_ASSIGNMENT]),
        RESIDUAL_SUM: np.linalg.norm(got[RESIDUAL_SUM] - expected[RESIDUAL_SUM], axis=-1),
        DESCRIPTOR: np.linalg.norm((got[DESCRIPTOR] - expected[DESCRIPTOR]).reshape(shape), axis=1),
    }
    return {name: float((errors[name] / allowed[name]).max()) for name in errors}


@pytest.mark.parametrize("sharpness", [1, 30, 160])
@pytest.mark.parametrize(("clusters", "ghosts"), [(1, 1), (8, 0), (64, 8)])
def test_an_honest_fp32_computation_is_within_the_tolerance(clusters: int, ghosts: int, sharpness: float) -> None:
    p = parameters(clusters, 128, ghosts, sharpness)
    for case in default_cases(p):
        if case.name.startswith("ghosts win"):
            continue  # FP32 without the mean form is wrong there, which is why the mean form is used
        for output, ratio in worst_ratios(p, case).items():
            assert ratio <= 1, (case.name, output)


@pytest.mark.parametrize("sharpness", [1, 30])
def test_the_tolerance_is_at_most_a_few_hundred_times_the_error(sharpness: float) -> None:
    p = parameters(64, 128, 8, sharpness)
    case = Case(name="L2-normalised", features=unit_rows(features(4, 300, 128)))
    assert worst_ratios(p, case)[DESCRIPTOR] > 1 / 300


def test_tolerance_grows_with_the_norm_of_the_features() -> None:
    p = parameters(8, 128, 0, 30)
    allowed = []
    for scale in (0.01, 1.0, 100.0):
        feeds = Case(name="", features=unit_rows(features(1, 50, 128)) * np.float32(scale)).feeds(
            OracleRunner(p), masked=False
        )
        allowed.append(tolerances(p, feeds, OracleRunner(p).run(feeds), "fp32")[DESCRIPTOR].max())
    assert allowed[0] < allowed[1] < allowed[2]


def test_tf32_is_allowed_the_error_of_eleven_bits() -> None:
    p = parameters(8, 128, 0, 1)
    feeds = Case(name="", features=unit_rows(features(1, 50, 128))).feeds(OracleRunner(p), masked=False)
    expected = OracleRunner(p).run(feeds)
    fp32, tf32 = (tolerances(p, feeds, expected, precision)[DESCRIPTOR] for precision in ("fp32", "tf32"))
    assert np.median(tf32 / fp32) == pytest.approx(2.0**13, rel=0.1)
