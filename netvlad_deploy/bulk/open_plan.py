"""The runner of a plan, and what a run is for, as its manifest says it."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from netvlad_deploy.artifact import AnyArtifact
from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.descriptors.header import DescriptorHeader, StoredDtype
from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.one_head import OneHead
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.layer import FEATURES, MASK, AnySpec, HeadsSpec
from netvlad_deploy.support.files import sha256_file
from netvlad_deploy.support.streams import stdout_to_stderr


@contextlib.contextmanager
def open_plan_runner(
    plan: Plan, candidate: Candidate, *, threads: int | None = None, runtime_cache: Path | None = None
) -> Iterator[Runner]:
    """Yield the runner of a plan's artifact and head; standard output of libraries goes to standard error meanwhile.

    `threads` and `runtime_cache` are those of `open_runner`.

    Raises: ArtifactError if the candidate is another file than the plan was made with; UsageError if it takes more than
        a plan has; and as `open_runner`.
    """
    manifest = plan.manifest
    if (found := candidate_sha256(candidate)) != manifest.header.sha256:
        raise ArtifactError(
            f"{candidate.path} has SHA-256 {found[:12]}, the plan in {plan.folder} was made with "
            f"{manifest.header.sha256[:12]}: use that file"
        )
    source = candidate.on(manifest.backend)
    with stdout_to_stderr(), source.open(threads=threads, runtime_cache=runtime_cache, spin=False) as opened:
        runner = OneHead(opened, manifest.head) if manifest.head is not None else opened
        if plan.images is None and (others := set(runner.inputs) - {FEATURES, MASK}):
            raise UsageError(f"{candidate.name} takes {', '.join(others)} too, a feature file has none")
        yield runner


def candidate_sha256(candidate: Candidate) -> str:
    """Return the SHA-256 of an artifact, which its sidecar has proven, or of a checkpoint's file."""
    return sha256_file(candidate.path) if candidate.artifact is None else candidate.artifact.sha256


def header_for(candidate: Candidate, *, head: str | None, dtype: StoredDtype) -> DescriptorHeader:
    """Return what the descriptors of a candidate, and of one of its heads, say of themselves.

    A checkpoint is opened for that, since nothing else says what it holds.

    Raises: UsageError if the head is not one of the candidate's, or there are several and none is named.
    """
    artifact = candidate.artifact
    made: Runner | AnyArtifact
    if artifact is None:
        with stdout_to_stderr(), candidate.open() as made:
            images = None
    else:
        made, images = artifact, artifact.images
    if images is not None and head is not None:
        raise UsageError(f"{candidate.name} takes images and has one head: leave --head out")
    spec = _of_head(candidate.name, made.spec, head)
    return DescriptorHeader(
        artifact=candidate.path.name,
        sha256=candidate_sha256(candidate),
        precision=made.precision,
        descriptor_size=spec.descriptor_size,
        dtype=dtype,
        spec=json.loads(json.dumps(asdict(spec))),
        images=None if images is None else json.loads(json.dumps(asdict(images))),
    )


def _of_head(name: str, spec: AnySpec, head: str | None) -> AnySpec:
    if isinstance(spec, HeadsSpec):
        if head is None:
            raise UsageError(f"{name} has the heads {', '.join(spec.heads)}: choose one with --head")
        if head in spec.heads:
            return spec.heads[head]
    if head is not None:
        known = ", ".join(spec.heads) if isinstance(spec, HeadsSpec) else "one without a name"
        raise UsageError(f"{name} has no head {head!r}: it has {known}")
    return spec
