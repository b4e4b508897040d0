"""Compare a pipeline with the golden images of its export, or with another pipeline on them.

A golden image passes if the distance of its descriptor from the unfolded module's, in float64, is within

    factor * max(distance of the unfolded module in FP32, floor) * unit roundoff of the precision / that of FP32

The measured distance says how much this network makes of rounding on this image. The factor leaves room for sums in
another order: 16 in FP32, where nothing else is rounded, and 4 where every tensor is rounded to 11 bits, which weighs
more than any order. A tolerance that would pass what can go wrong is an error, not a pass.

Where the runner shows its local descriptors, the oracle computes the head on them, so that the head is judged by its
own error model, cluster by cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from netvlad_deploy.arrays import Array
from netvlad_deploy.errors import ParityError
from netvlad_deploy.goldens import Golden, distances
from netvlad_deploy.images import IMAGES, LOCAL_DESCRIPTORS
from netvlad_deploy.measurement.localise import Departure, localise
from netvlad_deploy.measurement.parity import CaseParity, OutputParity, ParityReport, cosines, judge_head
from netvlad_deploy.measurement.rounding import FP32, PRECISIONS, Rounding
from netvlad_deploy.oracle import ReferenceParameters
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, Verdict

HALF_UNIT = 2.0**-11
FACTORS: Mapping[float, float] = MappingProxyType({FP32: 16.0, HALF_UNIT: 4.0})
"""What is allowed for, over the measured distance, by unit roundoff."""

FLOOR = 2 * FP32
"""Least distance that is taken for measured: below it FP32 was lucky."""

CEILING = 0.1
"""Largest tolerance worth a verdict: a cosine of 0.995."""


def unit_roundoff(precision: str) -> float:
    """Return the unit roundoff of most tensors of a backbone."""
    rounding: Rounding = PRECISIONS[precision]
    return HALF_UNIT if rounding.half_mean else rounding.unit


def golden_tolerance(golden: Golden, precision: str) -> float:
    """Return the largest distance from a golden descriptor that rounding explains.

    Raises: ParityError if it is so large that it would prove nothing.
    """
    unit = unit_roundoff(precision)
    tolerance = FACTORS[unit] * max(golden.fp32_distance, FLOOR) * unit / FP32
    if tolerance > CEILING:
        raise ParityError(
            f"{golden.name}: rounding to {precision} may turn this network's descriptor by {tolerance:.2g}, over "
            f"{CEILING:g} nothing is proven: export with --precision fp32"
        )
    return tolerance


def compare_goldens(
    candidate: Runner,
    goldens: Sequence[Golden],
    parameters: ReferenceParameters,
    *,
    against: Runner | None = None,
) -> ParityReport:
    """Run every golden image that fits through `candidate`, and judge its descriptor, and its head where that shows.

    The reference is the golden descriptor, or that of `against` for the same image: then both may round.

    Raises: ParityError if no golden image fits the profiles, descriptors have different sizes, or a tolerance would
        prove nothing; InputError, RunError.
    """
    if against is not None and against.spec.descriptor_size != candidate.spec.descriptor_size:
        raise ParityError(f"{candidate.name} and {against.name} have descriptors of different size")
    runners = [candidate, *([against] if against else [])]
    fitting = [golden for golden in goldens if all(_batch(runner, golden) for runner in runners)]
    if not fitting:
        profiles = "; ".join(str(profile) for runner in runners for profile in runner.profiles)
        sizes = ", ".join(golden.name for golden in goldens)
        raise ParityError(f"no golden image fits {profiles}: build with a profile that holds one of {sizes}")
    cases = [_golden_case(golden, candidate, against) for golden in fitting]
    heads, departure = _heads(fitting, candidate, parameters)
    return ParityReport(
        candidate=candidate.name,
        reference=against.name if against else "golden images",
        precision=candidate.precision,
        cases=(*cases, *heads),
        departure=departure,
    )


def _batch(runner: Runner, golden: Golden) -> int:
    """Return how often a runner must be given an image at once, 0 if it cannot take it."""
    if not runner.profiles:
        return 1
    batches = [profile.axes["batch"].min for profile in runner.profiles]
    size = golden.image.shape[:2]
    holding = zip(runner.profiles, batches, strict=True)
    return min((batch for profile, batch in holding if profile.holds(batch, *size)), default=0)


def _run(runner: Runner, golden: Golden) -> dict[str, Array]:
    images = np.repeat(golden.image[None], _batch(runner, golden), axis=0)
    return runner.run({IMAGES: images})


def _golden_case(golden: Golden, candidate: Runner, against: Runner | None) -> CaseParity:
    tolerance = golden_tolerance(golden, candidate.precision)
    expected = golden.descriptor[None]
    if against is not None:  # both sides round
        tolerance += golden_tolerance(golden, against.precision)
        expected = _run(against, golden)[DESCRIPTOR][:1]
    got = _run(candidate, golden)[DESCRIPTOR]
    if got.shape[1:] != expected.shape[1:]:
        raise ParityError(f"{DESCRIPTOR} has shape {got.shape}, the golden one {expected.shape}")
    output = _judge(got, expected.astype(np.float64), tolerance)
    return CaseParity(name=golden.name, batch=len(got), num_features=None, logit_step=0.0, outputs=(output,))


def _judge(got: Array, expected: Array, tolerance: float) -> OutputParity:
    """Judge descriptors (B,P) by their distance from one (1,P)."""
    found = distances(got, expected)
    finite = np.isfinite(got)
    values = np.where(finite, got, 0).astype(np.float64)
    similar = cosines(values, expected)
    norms = np.linalg.norm(values, axis=1) - np.linalg.norm(expected)
    worst = float(found.max())
    return OutputParity(
        output=DESCRIPTOR,
        verdict=Verdict.PASS if worst <= tolerance else Verdict.FAIL,
        max_abs=float(np.abs(np.where(finite, values - expected, np.inf)).max()),
        cosine_min=float(similar.min()),
        cosine_p1=float(np.percentile(similar, 1)),
        cosine_rows=len(got),
        short_rows=0,
        norm_error=float(np.abs(norms).max()),
        non_finite=int((~finite).sum()),
        worst_cluster=None,
        worst_error=worst,
        tolerance=tolerance,
        worst_ratio=worst / tolerance,
        cluster_errors=(),
    )


def _heads(
    goldens: Iterable[Golden], candidate: Runner, parameters: ReferenceParameters
) -> tuple[list[CaseParity], Departure | None]:
    """Judge the head on the runner's own local descriptors, where it shows them, and find where it first departs."""
    runner = candidate.tapped()
    cases, departure = [], None
    try:
        if LOCAL_DESCRIPTORS not in runner.outputs:
            return [], None
        with OracleRunner(parameters) as oracle:
            for golden in goldens:
                got = _run(runner, golden)
                feeds = {FEATURES: got[LOCAL_DESCRIPTORS].astype(np.float32)}
                name = f"head on {golden.name}"
                cases.append(judge_head(name, got, oracle, feeds, candidate))
                if departure is None and cases[-1].verdict is Verdict.FAIL:
                    departure = localise(name, got, oracle, feeds, candidate.precision)
    finally:
        if runner is not candidate:
            runner.close()
    return cases, departure
