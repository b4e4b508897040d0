"""Compare a pipeline, or an aggregator, with the golden inputs of its export, or with another one on them.

A golden input passes if its descriptor is as near to the unfolded module's, in float64, as its measured sensitivity to
rounding allows (`oracle/goldens.py`). Where the runner shows its local descriptors, the oracle computes the head on
them, so that the head is judged by its own error model. Where no head was judged, the golden images answer for it too:
one whose tolerance would hide that two clusters changed places is NOT_JUDGED.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from netvlad_deploy.errors import ParityError
from netvlad_deploy.oracle.equations import ReferenceParameters, by_cluster
from netvlad_deploy.oracle.goldens import Golden, distances
from netvlad_deploy.parity.heads import CaseParity, ParityReport, check_sizes, judge, judge_head
from netvlad_deploy.parity.localise import Departure, localise
from netvlad_deploy.parity.visibility import CERTAIN, COUNTS
from netvlad_deploy.retrieval.batches import smallest_shape
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.images import LOCAL_DESCRIPTORS
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array


def compare_goldens(
    candidate: Runner,
    goldens: Sequence[Golden],
    parameters: ReferenceParameters | None,
    *,
    against: Runner | None = None,
    against_goldens: Sequence[Golden] = (),
) -> ParityReport:
    """Run every golden input through `candidate`, and judge its descriptor, and its head where that shows.

    `parameters` are those of a NetVLAD head, None for another aggregator, whose inside is not judged. The reference is
    the golden descriptor, or that of `against` for the same input: then both may round. The tolerance of `against` is
    the one that its own export measured on that input, if there is one.

    Raises: ParityError if descriptors have different sizes; ArtifactError if a precision was not measured; InputError,
        RunError.
    """
    check_sizes(candidate, against)
    cases = []
    for golden in goldens:
        tolerance = golden.tolerance(candidate.precision)
        if against is not None:
            theirs = (other for other in against_goldens if other.same_input(golden))
            tolerance += next(theirs, golden).tolerance(against.precision)
        case = _golden_case(golden, candidate, against, tolerance)
        doubt = golden.doubt(tolerance, goldens)
        cases.append(_unjudged(case, doubt) if doubt else case)
    heads, departure = ([], None) if parameters is None else _heads(goldens, candidate, parameters)
    if parameters is not None and not {case.verdict for case in heads} & {Verdict.PASS, Verdict.FAIL}:
        cases = [_without_swap(case, golden, parameters.spec) for case, golden in zip(cases, goldens, strict=True)]
    return ParityReport(
        candidate=candidate.name,
        reference=against.name if against else goldens[0].kind,
        precision=candidate.precision,
        cases=(*_numbered(cases), *_numbered(heads)),
        departure=departure,
    )


def _numbered(cases: Sequence[CaseParity]) -> list[CaseParity]:
    """Return the cases with a number behind a name that came before, as of images of the one size of a backbone."""
    seen: Counter[str] = Counter()
    found = []
    for case in cases:
        seen[case.name] += 1
        number = f" no. {seen[case.name]}" if seen[case.name] > 1 else ""
        found.append(replace(case, name=case.name + number))
    return found


def _batch(runner: Runner, golden: Golden) -> int:
    """Return the smallest batch in which a runner takes an input, 0 if it takes none of that size."""
    shape = smallest_shape(runner.profiles, (1, *golden.lengths))
    return 0 if shape is None else shape[0]


def _run(runner: Runner, golden: Golden) -> dict[str, Array]:
    repeats = _batch(runner, golden)
    feeds = {name: np.repeat(array[None], repeats, axis=0) for name, array in golden.feeds.items()}
    return runner.run({name: array.astype(runner.dtype, copy=False) for name, array in feeds.items()})


def _golden_case(golden: Golden, candidate: Runner, against: Runner | None, tolerance: float) -> CaseParity:
    case = CaseParity(name=golden.name, batch=_batch(candidate, golden))
    for runner in (candidate, *([against] if against else [])):
        if not _batch(runner, golden):
            profiles = "; ".join(map(str, runner.profiles))
            reason = f"{runner.name} takes {profiles}: build with a profile that holds this size"
            return replace(case, reason=reason)
    expected = golden.descriptor[None] if against is None else _run(against, golden)[DESCRIPTOR][:1]
    got = _run(candidate, golden)[DESCRIPTOR]
    if got.shape[1:] != expected.shape[1:]:
        raise ParityError(f"{DESCRIPTOR} has shape {got.shape}, the golden one {expected.shape}")
    expected = expected.astype(np.float64)
    found, ones = distances(got, expected), np.ones(len(got))
    norms = np.linalg.norm(expected) * ones
    judged = judge(DESCRIPTOR, got, expected, found, tolerance * ones, norms=norms, counted=ones > 0)
    return replace(case, outputs=(judged,))


def _unjudged(case: CaseParity, reason: str) -> CaseParity:
    """Return a case that passed as one that proves nothing, and any other as it is."""
    return replace(case, outputs=(), reason=reason) if case.verdict is Verdict.PASS else case


def _without_swap(case: CaseParity, golden: Golden, spec: NetVLADSpec) -> CaseParity:
    """Return the case, not judged if it passed by a tolerance that would hide two clusters in each other's place.

    A swap counts if it moves the descriptor at least half as far as the one that moves it most, as in `visibility`.
    After a projection the descriptor shows no clusters, so nothing is said of them.
    """
    if not case.outputs or spec.projection is not None:
        return case
    parts = by_cluster(golden.descriptor[None], spec)[0]  # (K,D)
    squares = (parts**2).sum(axis=1)
    moved = np.sqrt(np.maximum(2 * (squares[:, None] + squares - 2 * parts @ parts.T), 0))  # (K,K)
    least = moved[moved >= COUNTS * moved.max()].min()
    tolerance = max(output.tolerance for output in case.outputs)
    if not 0 < least <= CERTAIN * tolerance:
        return case
    said = f"two clusters in each other's place may move it by {least:.2g} alone, and no head was judged"
    return _unjudged(case, f"rounding may move the descriptor by {tolerance:.2g}: {said}")


def _heads(
    goldens: Sequence[Golden], candidate: Runner, parameters: ReferenceParameters
) -> tuple[list[CaseParity], Departure | None]:
    """Judge the head on the runner's own local descriptors, where it shows them, and find where it first departs."""
    runner = candidate.tapped(instead=True)  # the last to read it
    cases, departure = [], None
    try:
        with OracleRunner(parameters) as oracle:
            for golden in goldens:
                if not _batch(candidate, golden):
                    continue
                name = f"head on {golden.name}"
                if LOCAL_DESCRIPTORS not in runner.outputs:
                    reason = f"its local descriptors do not show: {runner.hidden}"
                    cases.append(CaseParity(name=name, batch=0, reason=reason, part=True))
                    continue
                got = _run(runner, golden)
                feeds = {FEATURES: got[LOCAL_DESCRIPTORS].astype(np.float32)}
                cases.append(judge_head(name, got, oracle, feeds, candidate))
                if departure is None and cases[-1].verdict is Verdict.FAIL:
                    departure = localise(name, got, oracle, feeds, candidate.precision)
    finally:
        if runner is not candidate:
            runner.close()
    return cases, departure
