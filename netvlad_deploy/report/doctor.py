"""What a machine can run, for a person at a terminal."""

from collections.abc import Mapping
from dataclasses import dataclass

from netvlad_deploy.artifact import Gpu
from netvlad_deploy.report.text import table
from netvlad_deploy.spec import Verdict


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tried: PASS if it works here, NOT_RUN with what is missing, FAIL with what is broken."""

    name: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What is installed (None: not), on which machine, and what can run there.

    `broken` names the checks that failed: what is merely missing is none of them.
    """

    machine: Mapping[str, str]
    packages: Mapping[str, str | None]
    gpu: Gpu | None
    checks: tuple[Check, ...]
    broken: tuple[str, ...]


def diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """Return the machine, the packages, and a row for each check, what is broken first."""
    installed = [f"{name} {version}" for name, version in diagnosis.packages.items() if version is not None]
    missing = [name for name, version in diagnosis.packages.items() if version is None]
    order = (Verdict.FAIL, Verdict.PASS, Verdict.NOT_RUN)
    checks = sorted(diagnosis.checks, key=lambda check: order.index(check.verdict))
    return [
        *(f"{name.replace('_', ' ')}: {value}" for name, value in diagnosis.machine.items()),
        f"installed: {', '.join(installed)}",
        f"not installed: {', '.join(missing) or 'nothing that could be used here'}",
        *table(("verdict", "check", "detail"), [(check.verdict.value, check.name, check.detail) for check in checks]),
    ]
