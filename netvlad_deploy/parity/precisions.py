"""What each precision costs: the worst cosine distance from the oracle, case by case."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.parity.cases import default_cases
from netvlad_deploy.parity.heads import COSINE_NORM
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import cosines


@dataclass(frozen=True, kw_only=True)
class CasePrecision:
    """How far one precision is from the oracle in one case.

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
        for given in default_cases(parameters, largest=largest):
            case = given.rounded(np.float16)
            if any(case.doubt(runner.range) for runner in runners.values()):
                continue
            expected = oracle.run(case.feeds(oracle, masked=False))[DESCRIPTOR]
            norm = float(np.linalg.norm(case.features.astype(np.float64), axis=-1).max())
            long = np.linalg.norm(expected, axis=1) > (COSINE_NORM if oracle.spec.unit_length else 0)
            for precision, runner in runners.items():
                got = runner.run(case.feeds(runner, masked=False))[DESCRIPTOR].astype(np.float64)
                finite = np.isfinite(got).all(axis=1)
                kept = long & finite
                distance = float(1 - cosines(got[kept], expected[kept]).min()) if kept.any() else None
                yield CasePrecision(
                    case=case.name,
                    precision=precision,
                    feature_norm=norm,
                    distance=distance,
                    non_finite=int((~finite).sum()),
                )
