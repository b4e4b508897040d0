"""Write a bill of materials of what runs this package, as CycloneDX JSON: `python -m tools.sbom [FILE]`.

It lists what is installed here of the runtime extras and of all that these need, with versions, licences and who needs
whom. An extra that is not installed whole is named on standard error, and as a property of the file. The same
environment gives the same bytes.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from netvlad_deploy.support.files import write_text
from netvlad_deploy.support.require import DISTRIBUTION, optional_packages

ROOT = Path(__file__).parents[1]
NOT_RUNTIME = ("demo", "dev")
"""Extras that try the package or work on it."""

SPECIFICATION = SchemaVersion.V1_6


Wanted = tuple[str, frozenset[str]]
"""The name of a distribution, and the extras of it that are wanted."""


def needed(names: Iterable[Wanted]) -> tuple[set[str], set[str]]:
    """Return the distributions that are installed of these, and of all that they need.

    Second, those of the names themselves that are not installed.
    """
    waiting = list(names)
    seen: set[Wanted] = set()
    absent: set[str] = set()
    first = {name for name, _ in waiting}
    while waiting:
        name, extras = key = waiting.pop()
        if key in seen:
            continue
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            absent |= {name} & first
            continue
        seen.add(key)
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(wanted(requirement))
    return {name for name, _ in seen}, absent


def wanted(requirement: Requirement) -> Wanted:
    """Return what a line of requirements wants."""
    return canonicalize_name(requirement.name), frozenset(requirement.extras)


def runtime() -> dict[str, list[Wanted]]:
    """Return the distributions that each runtime extra names, and by an empty name those that are always needed."""
    always = [line for line in distribution(DISTRIBUTION).requires or [] if "extra ==" not in line]
    extras = {extra: list(packages) for extra, packages in optional_packages().items() if extra not in NOT_RUNTIME}
    return {extra: [wanted(Requirement(line)) for line in lines] for extra, lines in {"": always, **extras}.items()}


def bill() -> tuple[dict[str, Any], list[str]]:
    """Return the bill, and the extras of which something is not installed."""
    extras = runtime()
    names, absent = needed(pair for pairs in extras.values() for pair in pairs)
    partial = sorted(extra for extra, pairs in extras.items() if absent & {name for name, _ in pairs})
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible", "--no-validate"]
    command += ["--mc-type", "library", "--pyproject", str(ROOT / "pyproject.toml"), "--sv", SPECIFICATION.to_version()]
    whole = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    root = whole["metadata"]["component"]
    kept = [each for each in whole["components"] if canonicalize_name(each["name"]) in names]
    references = {each["bom-ref"] for each in kept}
    root["properties"] = [{"name": "netvlad-deploy:extras-not-installed", "value": " ".join(partial)}]
    tree = [
        {**each, "dependsOn": sorted(references & set(each.get("dependsOn", ())))}
        for each in whole["dependencies"]
        if each["ref"] in references
    ]
    direct = {name for pairs in extras.values() for name, _ in pairs}
    tree.append(
        {
            "ref": root["bom-ref"],
            "dependsOn": sorted(each["bom-ref"] for each in kept if canonicalize_name(each["name"]) in direct),
        }
    )
    return {**whole, "components": kept, "dependencies": sorted(tree, key=lambda each: each["ref"])}, partial


def main(target: str = "sbom.json") -> None:
    """Write the file, once it is valid."""
    found, partial = bill()
    text = json.dumps(found, indent=2, sort_keys=True) + "\n"
    if fault := JsonStrictValidator(SPECIFICATION).validate_str(text):
        raise SystemExit(f"the bill is no CycloneDX {SPECIFICATION.to_version()}: {fault}")
    write_text(Path(target), text)
    print(f"{target}: {len(found['components'])} components")
    if partial:
        print(f"not installed here, so not in it: {', '.join(partial)}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
