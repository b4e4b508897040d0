"""The result of `doctor`: the packages on a machine, and the backends that can run there."""

from collections.abc import Mapping
from dataclasses import dataclass

from netvlad_deploy.report.text import table
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.spec.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Check:
    """One capability: PASS if it works here, else NOT_RUN or FAIL, and `detail` names the missing or broken part."""

    name: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional dependency group: its purpose, its packages, the missing ones, and the command that installs them."""

    purpose: str
    packages: tuple[str, ...]
    missing: tuple[str, ...]
    cure: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The machine, its packages, and the backends that can run there.

    Args:
        machine: facts such as the processor and the system, by name.
        packages: versions by package, None for one that is not installed.
        extras: optional dependency groups by name.
        broken: names of the checks that failed; a missing package breaks none.
    """

    machine: Mapping[str, str]
    packages: Mapping[str, str | None]
    extras: Mapping[str, Extra]
    gpu: Gpu | None
    checks: tuple[Check, ...]
    broken: tuple[str, ...]


def diagnosis_lines(diagnosis: Diagnosis) -> list[str]:
    """Return the lines that `doctor` prints: the machine, the packages, and a row for each check, failures first."""
    optional = {name for extra in diagnosis.extras.values() for name in extra.packages}
    others = [_version(name, version) for name, version in diagnosis.packages.items() if name not in optional]
    extras = [
        (
            name,
            extra.purpose,
            ", ".join(_version(each, diagnosis.packages.get(each)) for each in extra.packages),
            extra.cure,
        )
        for name, extra in diagnosis.extras.items()
    ]
    order = (Verdict.FAIL, Verdict.PASS, Verdict.NOT_RUN)
    checks = sorted(diagnosis.checks, key=lambda check: order.index(check.verdict))
    return [
        *(f"{name.replace('_', ' ')}: {value}" for name, value in diagnosis.machine.items()),
        f"packages: {', '.join(others)}",
        *table(("extra", "for", "packages", "what to do if it is wanted"), extras),
        *table(("verdict", "check", "detail"), [(check.verdict.value, check.name, check.detail) for check in checks]),
    ]


def _version(name: str, version: str | None) -> str:
    return f"{name} {version or 'missing'}"
