"""The cost of each precision: the worst cosine distance from the oracle, case by case."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.parity.cases import default_cases, largest_norm, rounded_cases
from netvlad_deploy.parity.heads import have_direction
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import cosines


@dataclass(frozen=True, kw_only=True)
class CasePrecision:
    """Distance of one precision from the oracle in one case.

    `distance` is the worst 1 - cosine of the finite descriptors, None if there is none or all are near zero;
    `non_finite` counts descriptors with NaN or infinity. `feature_norm` is the largest norm of a local descriptor.
    """

    case: str
    precision: str
    feature_norm: float
    distance: float | None
    non_finite: int


def measure_precisions(
    runners: Mapping[str, Runner], parameters: ReferenceParameters, *, largest: float
) -> Iterator[CasePrecision]:
    """Yield the distance of every runner in every case of `validate`, on features that FP16 can say."""
    with OracleRunner(parameters) as oracle:
        for case, doubt in rounded_cases(default_cases(parameters, largest=largest), *runners.values()):
            if doubt:
                continue
            expected = oracle.run(case.feeds(oracle, masked=False))[DESCRIPTOR]
            long = have_direction(DESCRIPTOR, np.linalg.norm(expected, axis=1), oracle.spec)
            for precision, runner in runners.items():
                got = runner.run(case.feeds(runner, masked=False))[DESCRIPTOR]
                finite = np.isfinite(got).all(axis=1)
                kept = long & finite
                yield CasePrecision(
                    case=case.name,
                    precision=precision,
                    feature_norm=largest_norm(case.features),
                    distance=float(1 - cosines(got[kept], expected[kept]).min()) if kept.any() else None,
                    non_finite=int((~finite).sum()),
                )
