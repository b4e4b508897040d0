"""How latency grows with an axis of the input or of the layer: the exponent that fits best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.latency.results import Estimate
from netvlad_deploy.latency.statistics import INTERVAL, student_quantile
from netvlad_deploy.support.arrays import Float64


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """The exponent of the time of one candidate in one axis: 1 doubles the time where the axis is doubled."""

    candidate: str
    axis: str
    exponent: Estimate
    points: int


def fit_exponents(candidate: str, axes: Mapping[str, Sequence[float]], times_ms: Sequence[float]) -> list[Exponent]:
    """Return the exponent in each axis: log(time) is fitted by least squares as a sum of exponent * log(axis).

    The interval of 95 % is Student's, of the residuals: it holds how far the points are from a power, too. An axis of
    one value has no exponent, and neither has any where there are not two points more than axes that vary, or where two
    of these always vary together.

    Source: the interval of a regression coefficient, such as in Draper and Smith, Applied Regression Analysis, 5.1.

    >>> round(fit_exponents("m.onnx", {"batch": (1, 2, 4, 8)}, (3, 6, 12, 24))[0].exponent.value, 6)
    1.0
    """
    varying = [name for name, values in axes.items() if len(set(values)) > 1]
    logs = np.log(np.array([axes[name] for name in varying], dtype=np.float64))
    freedom = len(times_ms) - len(varying) - 1
    design = np.vstack([np.ones(len(times_ms)), *logs]).T  # (points, 1 + axes)
    if not varying or freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return []
    times: Float64 = np.log(np.asarray(times_ms, dtype=np.float64))
    fitted, *_ = np.linalg.lstsq(design, times, rcond=None)
    variance = float(np.sum((times - design @ fitted) ** 2)) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    reach = student_quantile((1 + INTERVAL) / 2, freedom) * errors
    return [
        Exponent(
            candidate=candidate,
            axis=name,
            exponent=Estimate(value=float(value), low=float(value - half), high=float(value + half)),
            points=len(times_ms),
        )
        for name, value, half in zip(varying, fitted[1:], reach[1:], strict=True)
    ]
