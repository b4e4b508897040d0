"""Compare a runner with the oracle, case by case and cluster by cluster.

A case passes if every value is finite and the error of every cluster, or of every value of a projected descriptor, is
within the tolerance of the error model. Where the oracle's descriptor is shorter than SHORT (ghosts won nearly every
row) a cosine means nothing: there each value must be within SHORT_TOLERANCE. A case that cannot be made, or whose
tolerance would hide a fault that counts in it (`visibility`), is NOT_JUDGED.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from netvlad_deploy.errors import ParityError
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.parity.cases import Case, largest_norm, profile_cases, rounded_cases
from netvlad_deploy.parity.error_model import tolerances
from netvlad_deploy.parity.localise import Departure, cluster_errors, localise, stored_rounding
from netvlad_deploy.parity.ranks import Bank, RetrievalParity, compare_retrieval
from netvlad_deploy.parity.visibility import SHORT, UNKNOWN_LENGTH, Visibility, unseen, visibility
from netvlad_deploy.runner import Feeds, Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Arrays, Float64, cosines

SHORT_TOLERANCE = 1e-6
"""Absolute tolerance of FP32 for shorter descriptors, where something is known of them."""


@dataclass(frozen=True, kw_only=True)
class OutputParity:
    """Difference of one output of one case from the reference.

    `worst_ratio` is the largest error over its tolerance, found in `worst_cluster`; of a projected descriptor that is a
    value, and there are no `cluster_errors`. `cluster_ratios` are these errors over their tolerances. `cosine_min` and
    `cosine_p1` are over the `cosine_rows` batch items whose reference norm exceeds 0.5, None if there is none.
    """

    output: str
    verdict: Verdict
    max_abs: float
    cosine_min: float | None
    cosine_p1: float | None
    cosine_rows: int
    short_rows: int
    norm_error: float
    non_finite: int
    worst_cluster: int | None
    worst_error: float
    tolerance: float
    worst_ratio: float
    cluster_errors: tuple[float, ...]
    cluster_ratios: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaseParity:
    """All compared outputs of one case; `logit_step` is how coarse the candidate's logits are at its largest norm.

    A golden image has no `num_features`, and its descriptor, judged as a whole, no `worst_cluster`. A case that proves
    nothing is NOT_JUDGED and says why in `reason`: it could not be made, and has no outputs, or a fault would be within
    its tolerance. `smallest_fault` is the smallest relative change of a centroid, whichever it is, that would be over
    the tolerance of this case. A `part` is a case of the head of a pipeline.
    """

    name: str
    batch: int
    num_features: int | None = None
    logit_step: float = 0.0
    outputs: tuple[OutputParity, ...] = ()
    reason: str = ""
    smallest_fault: float | None = None
    part: bool = False

    @property
    def verdict(self) -> Verdict:
        """Return FAIL if any output failed, NOT_JUDGED if there was none to judge."""
        return Verdict.combine(output.verdict for output in self.outputs) if self.outputs else Verdict.NOT_JUDGED


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The outcome of `compare`: where it first departs, if it fails, and why nothing ran, if nothing did.

    `unseen` says which fault no case would reveal, though it changes the descriptor of some: then nothing passes. It is
    empty after a projection, whose values each see a little of every cluster: there every case answers for itself.
    `expected_cases` is how many cases the user expects to be judged, None for any number.
    """

    candidate: str
    reference: str
    precision: str
    cases: tuple[CaseParity, ...]
    departure: Departure | None = None
    retrieval: tuple[RetrievalParity, ...] = ()
    reason: str = ""
    unseen: str = ""
    expected_cases: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Return FAIL if any case failed or their number is unexpected, NOT_RUN if none ran, NOT_JUDGED if none proves.

        A part that passed does not pass for the whole.
        """
        if self.miscounted:
            return Verdict.FAIL
        verdict = Verdict.combine(case.verdict for case in self.cases)
        if verdict is not Verdict.PASS:
            return verdict
        whole = Verdict.combine(case.verdict for case in self.cases if not case.part)
        return Verdict.NOT_JUDGED if self.unseen else whole

    @property
    def not_judged(self) -> int:
        """Return the number of cases that prove nothing."""
        return sum(case.verdict is Verdict.NOT_JUDGED for case in self.cases)

    @property
    def miscounted(self) -> str:
        """Return in words that another number of cases was judged than expected; empty if not, or if nothing ran."""
        judged = len(self.cases) - self.not_judged
        if not self.cases or self.expected_cases in (None, judged):
            return ""
        return f"{judged} cases were judged, {self.expected_cases} are expected"


def compare(
    candidate: Runner,
    parameters: ReferenceParameters,
    *,
    against: Runner | None = None,
    cases: Iterable[Case] | None = None,
    banks: Iterable[Bank] = (),
) -> ParityReport:
    """Run every case through `candidate` and the reference (the oracle, or `against`); return the verdict of each.

    The rankings of `banks` are reported and have no part in the verdict; where a case is not finite there are none.

    >>> from netvlad_deploy import compare, export_onnx, load_reference, open_runner
    >>> from netvlad_deploy.models.netvlad import initialize
    >>> artifact = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> with open_runner(artifact) as runner:
    ...     report = compare(runner, load_reference(artifact.reference_path))
    >>> report.verdict.value, report.departure
    ('PASS', None)

    Raises: ParityError if the two have different shapes, or there is nothing to compare; InputError, RunError.
    """
    masked = _check_pair(candidate, parameters, against)
    cases = profile_cases(parameters, candidate, masked=masked) if cases is None else cases
    results, sights, failed = [], [], None
    with OracleRunner(parameters) as oracle:
        for case, reason in rounded_cases(cases, candidate, *([against] if against else [])):
            if reason:
                batch, rows, _ = case.features.shape
                results.append(CaseParity(name=case.name, batch=batch, num_features=rows, reason=reason))
                continue
            result, sight = _compare_case(case, candidate, oracle, against)
            results.append(result)
            sights.append(sight)
            if failed is None and result.verdict is Verdict.FAIL:
                failed = case
        departure = None if failed is None else _localise(failed, candidate, oracle)
        ranked = () if any(output.non_finite for case in results for output in case.outputs) else banks
        retrieval = [each for bank in ranked for each in compare_retrieval(candidate, against or oracle, bank)]
    if not results:
        raise ParityError("no case to compare: a comparison of nothing is not a pass")
    return ParityReport(
        candidate=candidate.name,
        reference=(against or oracle).name,
        precision=candidate.precision,
        cases=tuple(results),
        departure=departure,
        retrieval=tuple(retrieval),
        unseen=unseen(sights) if parameters.projection is None else "",
    )


def _check_pair(candidate: Runner, parameters: ReferenceParameters, against: Runner | None) -> bool:
    """Return True if the candidate takes a mask; raise ParityError if the two cannot be compared."""
    if candidate.spec != parameters.spec:
        raise ParityError(f"{candidate.name} is {candidate.spec}, the reference is {parameters.spec}")
    check_sizes(candidate, against)
    masked = MASK in candidate.inputs
    if against is not None and masked and MASK not in (*against.inputs, *against.optional_inputs):
        raise ParityError(f"{candidate.name} takes a mask, {against.name} does not: compare two that do, or neither")
    return masked


def check_sizes(candidate: Runner, against: Runner | None) -> None:
    """Raise ParityError if the descriptors of two runners differ in length."""
    if against is not None and against.spec.descriptor_size != candidate.spec.descriptor_size:
        sizes = candidate.spec.descriptor_size, against.spec.descriptor_size
        raise ParityError(f"{candidate.name} has descriptors of {sizes[0]} values, {against.name} of {sizes[1]}")


def _localise(case: Case, candidate: Runner, oracle: OracleRunner) -> Departure:
    masked = MASK in candidate.inputs
    runner = candidate.tapped()
    got = runner.run(case.feeds(runner, masked=masked))
    if runner is not candidate:
        runner.close()
    return localise(case.name, got, oracle, case.feeds(oracle, masked=masked), candidate.precision)


def _compare_case(
    case: Case, candidate: Runner, oracle: OracleRunner, against: Runner | None
) -> tuple[CaseParity, Visibility]:
    masked = MASK in candidate.inputs
    got = candidate.run(case.feeds(candidate, masked=masked))
    theirs, precise = None, candidate.precision == "fp32"
    if against is not None:
        theirs = against.run(case.feeds(against, masked=masked or MASK in against.inputs)), against.precision
        precise = precise and against.precision == "fp32"
    limit = SHORT_TOLERANCE if precise and candidate.spec.projection is None else np.inf
    return _judge_case(case.name, got, candidate, oracle, case.feeds(oracle, masked=masked), limit, theirs)


def judge_head(name: str, got: Arrays, oracle: OracleRunner, feeds: Feeds, candidate: Runner) -> CaseParity:
    """Judge the descriptor that `candidate`, a pipeline, gave for local descriptors of its own."""
    limit = SHORT_TOLERANCE if candidate.precision == "fp32" else np.inf
    case, _ = _judge_case(name, {DESCRIPTOR: got[DESCRIPTOR]}, candidate, oracle, feeds, limit)
    return replace(case, part=True)


def _judge_case(
    name: str,
    got: Arrays,
    candidate: Runner,
    oracle: OracleRunner,
    feeds: Feeds,
    short_limit: float,
    theirs: tuple[Arrays, str] | None = None,
) -> tuple[CaseParity, Visibility]:
    """Judge the outputs of `candidate` by the oracle, or by the outputs and the precision of another runner, `theirs`.

    Where a fault would be hidden, NOT_JUDGED takes the place of PASS.
    """
    computed = expected = oracle.run(feeds)
    allowed = tolerances(oracle.parameters, feeds, computed, candidate.precision)
    if theirs is not None:  # both sides round
        outputs, precision = theirs
        more = tolerances(oracle.parameters, feeds, computed, precision)
        for output, values in outputs.items():
            allowed[output] = allowed[output] + more[output] + stored_rounding(values, oracle.parameters.spec)
        expected = {**computed, **outputs}  # an output that the other lacks is judged by the oracle
    shared = [output for output in got if output in expected]
    if not shared:
        raise ParityError(f"{candidate.name} and its reference share no output: nothing to compare")
    judged = [
        _judge(each, got[each], expected[each], allowed[each], oracle.parameters.spec, short_limit) for each in shared
    ]
    descriptor_allowed = allowed[DESCRIPTOR] + stored_rounding(got[DESCRIPTOR], oracle.parameters.spec)
    sight = visibility(oracle.parameters, feeds, computed, descriptor_allowed, short_limit)
    if sight.reason:
        unjudged = {Verdict.PASS: Verdict.NOT_JUDGED, Verdict.FAIL: Verdict.FAIL}
        judged = [replace(each, verdict=unjudged[each.verdict]) for each in judged]
    batch, num_features, _ = feeds[FEATURES].shape
    case = CaseParity(
        name=name,
        batch=batch,
        num_features=num_features,
        logit_step=candidate.range.step_at(largest_norm(feeds[FEATURES])) if candidate.range else 0.0,
        outputs=tuple(judged),
        reason=sight.reason,
        smallest_fault=sight.smallest_fault,
    )
    return case, sight


def _judge(
    name: str, got: Array, expected: Array, allowed: Float64, spec: NetVLADSpec, short_limit: float
) -> OutputParity:
    if got.shape != expected.shape:
        raise ParityError(f"{name} has shape {got.shape}, the reference has {expected.shape}")
    allowed = allowed + stored_rounding(got, spec)
    expected = expected.astype(np.float64)
    difference = np.where(np.isfinite(got), got.astype(np.float64) - expected, np.inf)
    errors = cluster_errors(name, difference, spec)
    norms = np.linalg.norm(expected.reshape(len(expected), -1), axis=1)
    counted = have_direction(name, norms, spec)
    known = allowed.reshape(len(allowed), -1).max(axis=1) < UNKNOWN_LENGTH
    short_error = np.abs(difference[~counted & known]).max(initial=0.0) if name == DESCRIPTOR else 0.0
    projected = name == DESCRIPTOR and spec.projection is not None
    judged = judge(name, got, expected, errors, allowed, norms=norms, counted=counted)
    judged = replace(judged, verdict=judged.verdict if short_error < short_limit else Verdict.FAIL)
    if projected:
        return judged
    worst = [each.reshape(-1, spec.num_clusters).max(axis=0) for each in (errors, _over_tolerance(errors, allowed))]
    return replace(judged, cluster_errors=tuple(worst[0].tolist()), cluster_ratios=tuple(worst[1].tolist()))


def _over_tolerance(errors: Float64, allowed: Float64) -> Float64:
    """Return each error over its tolerance; where nothing is tolerated, a vast number or 0."""
    ratios: Float64 = errors / np.maximum(allowed, np.finfo(np.float64).tiny)
    return ratios


def have_direction(name: str, norms: Float64, spec: NetVLADSpec) -> Array:
    """Return a mask (B,) of the items that are long enough, by the norms of the reference (B,), to have a cosine."""
    return norms > (0 if name == DESCRIPTOR and not spec.unit_length else SHORT)


def judge(
    name: str, got: Array, expected: Float64, errors: Float64, allowed: Float64, *, norms: Float64, counted: Array
) -> OutputParity:
    """Judge an output: it passes if all of it is finite and no error exceeds its tolerance.

    Args:
        name: the output.
        got: the values of the candidate, batch items first.
        expected: the values of the reference, or those of one item for all of them.
        errors: of each part, the clusters or values last, or of each item as a whole (B,); infinite if not finite.
        allowed: tolerance of each error.
        norms: length of each item of the reference (B,).
        counted: items (B,) that are long enough to have a cosine.
    """
    finite = np.isfinite(got)
    values = np.where(finite, got, 0).astype(np.float64)
    flat, reference = (array.reshape(len(array), -1) for array in (values, np.broadcast_to(expected, got.shape)))
    ratios = _over_tolerance(errors, allowed)
    worst = np.unravel_index(int(np.argmax(ratios)), ratios.shape)
    similar = cosines(flat[counted], reference[counted])
    return OutputParity(
        output=name,
        verdict=Verdict.PASS if finite.all() and ratios[worst] <= 1 else Verdict.FAIL,
        max_abs=float(np.abs(np.where(finite, values - expected, np.inf)).max()),
        cosine_min=float(similar.min()) if len(similar) else None,
        cosine_p1=float(np.percentile(similar, 1)) if len(similar) else None,
        cosine_rows=int(counted.sum()),
        short_rows=int((~counted).sum()),
        norm_error=float(np.abs(np.linalg.norm(flat, axis=1) - norms).max()),
        non_finite=int((~finite).sum()),
        worst_cluster=int(worst[-1]) if errors.ndim > 1 else None,
        worst_error=float(errors[worst]),
        tolerance=float(allowed[worst]),
        worst_ratio=float(ratios[worst]),
        cluster_errors=(),
    )
