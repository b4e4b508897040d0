"""Shards computed on a Ray cluster, for a process that goes on whatever becomes of it."""

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from netvlad_deploy import errors
from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.errors import NetVLADDeployError, RunError, UsageError
from netvlad_deploy.fleet.cluster import NO_ANSWER, OWN_CLUSTER, RAY_ENDS
from netvlad_deploy.fleet.worker import request_for
from netvlad_deploy.runtime.execution_providers import CPU, PROVIDERS
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.support.children import Child
from netvlad_deploy.support.scratch import scratch_folder

START_S: Final = 180
"""Seconds that a cluster of this machine may take to know its node: 10 on two idle cores, over 60 on busy ones."""

TAIL_BYTES: Final = 4096
"""Of what Ray has printed, for the last line of a driver that died."""


def embed_on_ray(
    address: str,
    plan: Plan,
    candidate: Candidate,
    numbers: Sequence[int],
    *,
    decoders: int | None = None,
    done: Callable[[int], None],
) -> None:
    """Compute the shards of these numbers on a Ray cluster, and call `done` with the number of each that is there.

    A worker or a node that dies costs the shard that it was at, which another one begins again.

    Args:
        address: `local` for a cluster of this machine alone, `auto` for the one that this machine is a node of, or
            HOST:PORT.
        plan: the plan, in a folder that all nodes see.
        candidate: what computes the descriptors, a file that all nodes see.
        numbers: the shards.
        decoders: threads of each worker that read and decode, None for as many as fit.
        done: is called in this thread.

    Raises: DeviceUnavailableError if there is no cluster, or none of its nodes has what it takes; RunError if it goes
        away; MissingDependencyError without Ray; the error of a shard that has failed twice, the others being done.
    """
    if "://" in address:
        raise UsageError(f"{address} is for Ray's client: run this on a node of the cluster, with --ray auto")
    with scratch_folder() as scratch:
        log = scratch / "driver.log"
        request = {
            "address": address,
            "scratch": str(scratch),
            "log": str(log),
            "numbers": list(numbers),
            "on_gpu": needs_gpu(candidate),
            "worker": request_for(plan, candidate, decoders),
        }
        with Child("netvlad_deploy.fleet.driver", "the driver of Ray", environment=_environment(address)) as child:
            try:
                child.send(request)
                while "failed" not in (answer := child.receive()[0]):
                    done(answer["shard"])
            except RunError as error:
                last = _last_line(log)
                raise RunError(NO_ANSWER if last.endswith(RAY_ENDS) else f"{error}{last}") from error
    if answer["failed"]:
        raise _failure(answer["failed"])


def needs_gpu(candidate: Candidate) -> bool:
    """Return True if a candidate runs on a GPU: an engine, or an ONNX file on a provider of one."""
    if candidate.backend is None:
        return isinstance(candidate.artifact, EngineArtifact)
    return candidate.backend.startswith("tensorrt") or (candidate.backend in PROVIDERS and candidate.backend != CPU)


def _environment(address: str) -> dict[str, str]:
    """Return the variables of the driver: those of a cluster of its own let nobody else use it, and nothing be sent."""
    if address != OWN_CLUSTER:
        return {}
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # its workers import what this process does
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it listens on 127.0.0.1 alone
        "RAY_raylet_start_wait_time_s": str(START_S),
    }


def _last_line(log: Path) -> str:
    """Return the last line that Ray has printed, behind a colon, or nothing."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _failure(failed: list[tuple[int, dict[str, Any]]]) -> NetVLADDeployError:
    """Return the error of the first of the shards that failed, saying how many did."""
    (shard, answer), *others = failed
    rest = f" (and {len(others)} other shards)" if others else ""
    kind: type[NetVLADDeployError] = getattr(errors, answer["error"])
    return kind(f"shard {shard}{rest} has failed: {answer['reason']}; the same command tries what is left again")
