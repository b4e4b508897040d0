"""Find where a failing candidate first departs from the oracle: in which tensor, in which clusters, by how much.

The tensors of an exported graph carry the names of the layer's stages, so a runner on ONNX Runtime can give them all.
An engine shows only its outputs: with probes, three stages of five.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netvlad_deploy.oracle.equations import aggregate, assignment_logits, by_cluster
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.parity.rounding import HALF, HALF_QUANTUM, TINY
from netvlad_deploy.runner import Feeds
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec import layer
from netvlad_deploy.spec.layer import ASSIGNMENT_LOGITS, DESCRIPTOR, MEAN_RESIDUAL, RESIDUAL_SUM, SOFT_ASSIGNMENT
from netvlad_deploy.support.arrays import Array, Arrays, Float64

SMALLEST_SUM = 1e-30
"""Sum of a cluster's assignments below which its mean is no longer a number worth comparing."""

NORMS = (
    "everything before is right: look at the clamps and sums of both norms, which must be FP32, and at the order of "
    "values"
)
ADVICE: Mapping[str, str] = {
    ASSIGNMENT_LOGITS: "the folded weights or the bias of these clusters are wrong, or logits are rounded more than "
    "the precision says: export again, with --wide-logits if features are large, without TF32",
    SOFT_ASSIGNMENT: "the logits are right: look at the softmax, at which columns are ghosts, and at the mask",
    MEAN_RESIDUAL: "the assignments are right: look at the centroids, and at assignments lost in FP16",
    RESIDUAL_SUM: "the assignments are right: look at the centroids, and at sums computed in FP16",
    layer.AGGREGATE: NORMS,
    DESCRIPTOR: NORMS,
}
PROJECTED = (
    "everything before the projection is right: look at its matrix, at the bias or BatchNorm folded into it, at the "
    "norm of the result and at the gating"
)
OR_PROJECTED = f"{NORMS}, or at the projection after them"
HIDDEN = "nothing inside is visible: export with --probe, or validate the ONNX file"
AGREES = "every tensor agrees with the oracle: the reference of this comparison departs, not the candidate"


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The first tensor outside its tolerance, and the clusters where it is; `tensor` is empty if there is none.

    `unit` says if `clusters` are clusters, or single values of a projected descriptor.
    """

    case: str
    tensor: str
    clusters: tuple[int, ...]
    error: float
    tolerance: float
    advice: str
    unit: str = "clusters"


def localise(case: str, got: Mapping[str, Array], oracle: OracleRunner, feeds: Feeds, precision: str) -> Departure:
    """Return the first stage of `got` that departs from the oracle on the same feeds."""
    expected = oracle.run(feeds)
    allowed = tolerances(oracle.parameters, feeds, expected, precision)
    expected = {**expected, **_inner_stages(oracle, feeds, expected)}
    visible = [name for name in oracle.parameters.spec.stages if name in got]
    for name in visible:
        errors = cluster_errors(name, got[name].astype(np.float64) - expected[name], oracle.parameters.spec)
        if name == MEAN_RESIDUAL:
            errors = np.where(expected[SOFT_ASSIGNMENT].sum(axis=1) > SMALLEST_SUM, errors, 0)
        errors = np.where(np.isfinite(errors), errors, np.inf)
        limits = np.maximum(allowed[name] + stored_rounding(got[name], oracle.parameters.spec), TINY)
        ratios = errors / limits
        if not ratios.max() > 1:
            continue
        worst = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
        clusters = np.nonzero((ratios > 1).reshape(-1, ratios.shape[-1]).any(axis=0))[0]
        return Departure(
            case=case,
            tensor=name,
            clusters=tuple(clusters.tolist()),
            error=float(errors[worst]),
            tolerance=float(limits[worst]),
            advice=_advice(name, visible, oracle.parameters.spec),
            unit="values" if name == DESCRIPTOR and oracle.parameters.spec.projection is not None else "clusters",
        )
    return Departure(case=case, tensor="", clusters=(), error=0.0, tolerance=0.0, advice=AGREES)


def _advice(stage: str, visible: Sequence[str], spec: layer.NetVLADSpec) -> str:
    """Return advice for the first of the visible stages that departs."""
    if len(visible) == 1:
        return HIDDEN
    if stage == DESCRIPTOR and spec.projection is not None:
        return PROJECTED if layer.AGGREGATE in visible else OR_PROJECTED
    return ADVICE[stage]


def _inner_stages(oracle: OracleRunner, feeds: Feeds, expected: Arrays) -> Arrays:
    total = expected[SOFT_ASSIGNMENT].sum(axis=1)[..., None]
    return {
        ASSIGNMENT_LOGITS: assignment_logits(oracle.parameters, feeds[layer.FEATURES]),
        MEAN_RESIDUAL: expected[RESIDUAL_SUM] / np.maximum(total, TINY),
        layer.AGGREGATE: aggregate(oracle.parameters, expected[RESIDUAL_SUM]),
    }


def cluster_errors(name: str, difference: Float64, spec: layer.NetVLADSpec) -> Float64:
    """Return errors with the clusters last: the norm over D (B,K), or absolute (B,N,K) for logits and assignments.

    Those of a projected descriptor are absolute (B,P). Logits are compared less their mean over the clusters, which no
    softmax sees.
    """
    if name == ASSIGNMENT_LOGITS:
        difference = difference - difference.mean(axis=-1, keepdims=True)
    if name in (ASSIGNMENT_LOGITS, SOFT_ASSIGNMENT) or (name == DESCRIPTOR and spec.projection is not None):
        return np.abs(difference)
    if name in (layer.AGGREGATE, DESCRIPTOR):
        difference = by_cluster(difference, spec)
    errors: Float64 = np.linalg.norm(difference, axis=-1)
    return errors


def stored_rounding(output: Array, spec: layer.NetVLADSpec) -> Any:
    """Return the error of storing a descriptor in FP16: of the norm of each part (B,K), or of each value (B,P)."""
    if output.dtype != np.float16:
        return 0.0
    finite = np.where(np.isfinite(output), output, 0).astype(np.float64)
    if spec.projection is not None:
        return HALF * np.abs(finite) + HALF_QUANTUM
    norms = np.linalg.norm(by_cluster(finite, spec), axis=-1)
    return HALF * norms + HALF_QUANTUM * np.sqrt(spec.feature_size)
