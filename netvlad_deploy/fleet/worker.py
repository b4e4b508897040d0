"""A worker: a process of Ray that holds one session, and computes one shard after the other.

What goes wrong is returned as a value, since an exception would come back wrapped in one of Ray's.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import netvlad_deploy
from netvlad_deploy.bulk.flow import embed_shards
from netvlad_deploy.bulk.open_plan import open_plan_runner
from netvlad_deploy.bulk.plan import Plan, load_plan
from netvlad_deploy.bulk.shards import find_shard
from netvlad_deploy.errors import InputError, NetVLADDeployError, UsageError
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.machine import available_cores, installed_versions
from netvlad_deploy.support.require import DISTRIBUTION, installed_version

Reply: TypeAlias = dict[str, Any]
"""What a worker returns, as JSON holds it: `error` (a class of `errors.py`) and `reason`, or what was asked for."""

SHARED = "all nodes must share a file system, with the same paths"


def package_identity() -> str:
    """Return the version of this package, and a hash of its code: two checkouts may have one version."""
    folder, digest = Path(netvlad_deploy.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{installed_version(DISTRIBUTION) or 'not installed'}, code {digest.hexdigest()[:12]}"


class Worker:
    """The actor: `open` once, then `embed` a shard at a time."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._plan: Plan
        self._runner: Runner
        self._decoders: int | None = None

    def open(self, request: Mapping[str, Any], cores: int) -> Reply:
        """Check that this node sees what the driver sees, and open the session; return `versions` of packages here.

        Args:
            request: what `request_for` returns.
            cores: how many this worker may keep busy.
        """
        threads = None if cores >= available_cores() else cores  # as on one machine, where it has all of them
        try:
            self._plan, candidate = _seen(request)
            self._decoders = request["decoders"] or threads
            self._runner = self._stack.enter_context(open_plan_runner(self._plan, candidate, threads=threads))
        except NetVLADDeployError as error:
            return _answer(error)
        return {"versions": {**installed_versions(), "pillow": installed_version("pillow")}}

    def embed(self, number: int) -> Reply:
        """Compute a shard that is not there; return `done`, the fields of its record."""
        try:
            done = find_shard(self._plan, number)
            if done is None:
                (done,) = embed_shards(self._plan, [number], self._runner, decoders=self._decoders)
            return {"done": asdict(done)}
        except NetVLADDeployError as error:
            return _answer(error)


def request_for(plan: Plan, candidate: Candidate, decoders: int | None) -> dict[str, Any]:
    """Return all that a worker needs to compute any shard of a plan, as JSON holds it."""
    folder, artifact = map(os.path.abspath, (plan.folder, candidate.path))  # links stay what they are called
    return {
        "package": package_identity(),
        "folder": str(Path.cwd()),
        "seen": [*(text for text in plan.manifest.given.inputs if Path(text).exists()), folder, artifact],
        "plan": folder,
        "manifest_sha256": plan.manifest.sha256,
        "candidate": {**candidate.request, "path": artifact},
        "decoders": decoders,
    }


def _seen(request: Mapping[str, Any]) -> tuple[Plan, Candidate]:
    """Return the plan and the candidate as this node sees them.

    Raises: UsageError if this node has another version of this package; ArtifactError or InputError if it sees other
        files than the driver.
    """
    if (here := package_identity()) != request["package"]:
        raise UsageError(
            f"netvlad-deploy is {here}, the driver has {request['package']}: install the same on all nodes"
        )
    _enter(Path(request["folder"]), request["seen"])
    plan = load_plan(Path(request["plan"]))
    if plan.manifest.sha256 != request["manifest_sha256"]:
        raise InputError(f"{plan.folder} holds another plan than on the driver: {SHARED}")
    return plan, Candidate.asked(request["candidate"])


def _enter(folder: Path, seen: list[str]) -> None:
    """Go to the driver's folder if inputs are relative to it, and look for all that the driver sees."""
    if not all(Path(text).is_absolute() for text in seen):
        try:
            os.chdir(folder)
        except OSError as error:
            raise InputError(f"{folder} cannot be entered ({error.strerror or error}): {SHARED}") from error
    if gone := [text for text in seen if not Path(text).exists()]:
        raise InputError(f"{gone[0]} is not there: {SHARED}")


def _answer(error: NetVLADDeployError) -> Reply:
    return {"error": type(error).__name__, "reason": str(error)}
