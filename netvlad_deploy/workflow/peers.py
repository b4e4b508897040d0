"""What a user would pick instead of an artifact, as candidates of `bench`: prepared in a folder of their own.

`torch` and `torch-compile` run the unfolded module. `straight` is what torch exports of it, on ONNX Runtime. `limit` is
what no export can leave out, on the backend of the first candidate. A peer that cannot be had says why, and the others
are measured.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import AnyArtifact, OnnxArtifact
from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.export.limit import export_limit
from netvlad_deploy.runtime.execution_providers import CPU
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.runtime.openvino_runner import OPENVINO
from netvlad_deploy.runtime.unfolded import unfolded_module
from netvlad_deploy.spec.backends import LIMIT, PEERS, STRAIGHT, TORCH, TORCH_COMPILE, UNFOLDED
from netvlad_deploy.support.require import require
from netvlad_deploy.support.scratch import scratch_folder

LOG = logging.getLogger(__name__)

ALL_PEERS: Final = (OPENVINO, TORCH, TORCH_COMPILE, STRAIGHT, LIMIT)
"""What `bench --peers` measures beside the artifact's own backend, of those that can run here."""

PEER_PACKAGES: Final = {
    OPENVINO: (("openvino", "openvino"),),
    TORCH: (("torch", "export"),),
    TORCH_COMPILE: (("torch", "export"),),
    STRAIGHT: (("torch", "export"), ("onnxscript", "export"), ("onnxruntime", "cpu")),
    LIMIT: (("onnx", "strict"),),
}
"""The packages of each, with the optional dependency group that brings them."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Candidates that can be measured in processes of their own, and what `over_limit` is measured against."""

    candidates: tuple[Candidate, ...]
    limit: Candidate | None


def with_peers(candidates: Sequence[Candidate], concurrency: int = 1) -> list[Candidate]:
    """Return the candidates, and after them the peers of the first that are not among them.

    With several requests in flight what runs in torch is left out: it takes one at a time here.
    """
    first = candidates[0]
    out = {candidate.backend for candidate in candidates if candidate.source is first.source}
    if concurrency > 1:
        LOG.warning("left out: %s take one request at a time", " and ".join(UNFOLDED))
        out |= {*UNFOLDED}
    return [*candidates, *(first.on(backend) for backend in ALL_PEERS if backend not in out)]


@contextmanager
def prepared(candidates: Sequence[Candidate], *, drop: Sequence[Candidate] = ()) -> Iterator[Prepared]:
    """Yield the candidates with the graphs made that some of them need; those of `drop` that cannot run are left out.

    The limit is that of the first artifact it was asked for.
    """
    with ExitStack() as stack:
        ready: list[Candidate] = []
        limit: Candidate | None = None
        for number, candidate in enumerate(candidates):
            one = candidate
            if candidate.backend in (*PEERS, *UNFOLDED) or candidate in drop:
                folder = stack.enter_context(scratch_folder())
                one = _ready(candidate, candidates[0], folder / f"{number}.onnx")
            if one.reason and candidate in drop:
                LOG.warning("left out: %s: %s", candidate.name, one.reason)
            elif candidate.backend == LIMIT:
                limit = limit or one
            else:
                ready.append(one)
        yield Prepared(candidates=tuple(ready), limit=limit)


def _ready(candidate: Candidate, first: Candidate, target: Path) -> Candidate:
    """Return a candidate that another process can open, or one with the reason why it cannot run."""
    artifact = candidate.artifact
    if artifact is None:  # a checkpoint, which torch runs as it is
        return candidate
    label = _limit_name(candidate, first) if candidate.backend == LIMIT else candidate.name
    try:
        for package, extra in PEER_PACKAGES.get(str(candidate.backend), ()):
            require(package, extra=extra)
        if candidate.backend == STRAIGHT:
            return Candidate.of(
                _straight(artifact, candidate, target), backend=CPU, label=label, stands_for=artifact.path
            )
        if candidate.backend == LIMIT:
            return Candidate.of(export_limit(artifact, target), backend=_engine(first), label=label)
        if candidate.backend in UNFOLDED:
            return _unfolded(artifact, candidate)
    except NetVLADDeployError as error:
        return Candidate.of(artifact, backend=candidate.backend, label=label, reason=str(error))
    return candidate


def _straight(artifact: AnyArtifact, candidate: Candidate, target: Path) -> OnnxArtifact:
    from netvlad_deploy.export.straight import export_straight

    LOG.info("exporting %s", candidate.name)
    return export_straight(unfolded_module(artifact, candidate.unfolded), artifact, target)


def _unfolded(artifact: AnyArtifact, candidate: Candidate) -> Candidate:
    """Return a candidate that says where its checkpoint is."""
    if candidate.backend == TORCH_COMPILE:
        from netvlad_deploy.runtime.torch_runner import check_compiler

        check_compiler()
    file = candidate.unfolded.file_of(artifact)
    return Candidate.of(artifact, backend=candidate.backend, unfolded=replace(candidate.unfolded, checkpoint=file))


def _engine(first: Candidate) -> str:
    """Return the backend that the limit runs on: that of the first candidate where it is one of the two of a CPU."""
    return OPENVINO if first.backend == OPENVINO else CPU


def _limit_name(candidate: Candidate, first: Candidate) -> str:
    return f"limit of {candidate.path.name} on {_engine(first)}"
