"""Exponents of simulated times, whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from netvlad_deploy.latency.scaling import fit_exponents
from netvlad_deploy.latency.statistics import student_quantile

GRID = {"batch": (1, 1, 1, 2, 2, 2, 8, 8, 8), "num-features": (10, 100, 1000) * 3}
TRUTH = {"batch": 0.9, "num-features": 0.4}


def times(noise: float, seed: int = 0) -> list[float]:
    random = np.random.default_rng(seed)
    logs = 0.3 + sum(TRUTH[name] * np.log(GRID[name]) for name in TRUTH)
    return [float(each) for each in np.exp(logs + noise * random.standard_normal(9))]


def test_exponents_of_a_power_are_exact() -> None:
    fitted = fit_exponents("m.onnx", GRID, times(0))
    assert {one.axis: one.exponent.value for one in fitted} == pytest.approx(TRUTH)
    assert all(one.exponent.high - one.exponent.low < 1e-6 for one in fitted)
    assert [(one.candidate, one.points) for one in fitted] == [("m.onnx", 9)] * 2


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = [
        one.exponent.low <= TRUTH[one.axis] <= one.exponent.high
        for seed in range(300)
        for one in fit_exponents("m.onnx", GRID, times(0.2, seed))
    ]
    assert 0.92 < np.mean(held) < 0.98


def test_an_axis_of_one_value_has_no_exponent_and_too_few_points_have_none() -> None:
    assert [one.axis for one in fit_exponents("m", {"batch": (1, 2, 4), "threads": (2, 2, 2)}, (1, 2, 4))] == ["batch"]
    assert fit_exponents("m", {"batch": (1, 2)}, (1, 2)) == []
    assert fit_exponents("m", {"batch": (1, 1, 1)}, (1, 2, 3)) == []
    assert fit_exponents("m", {"batch": (1, 2, 4, 8), "threads": (1, 2, 4, 8)}, (1, 2, 4, 8)) == []
    assert fit_exponents("m", {"batch": ()}, ()) == []


@pytest.mark.parametrize("freedom", [1, 2, 5, 30, 500])
@pytest.mark.parametrize("share", [0.9, 0.975, 0.995])
def test_students_quantiles(freedom: int, share: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-4)
