"""The verb `validate`: an artifact against the oracle, its golden inputs or another artifact."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact, OnnxArtifact, copied, load_artifact
from netvlad_deploy.errors import UNAVAILABLE, ArtifactError, UsageError
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.goldens import Golden, load_goldens
from netvlad_deploy.oracle.reference_file import load_reference, load_references
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.parity.pipelines import compare_goldens
from netvlad_deploy.parity.ranks import Bank, near_ties
from netvlad_deploy.parity.several_heads import compare_heads
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import Candidate, check_lineage, parity_backend
from netvlad_deploy.runtime.unfolded import Unfolded, unfolded_module
from netvlad_deploy.spec.layer import HeadsSpec, NetVLADSpec
from netvlad_deploy.support.arrays import read_arrays
from netvlad_deploy.support.files import sha256_file
from netvlad_deploy.support.streams import stdout_to_stderr
from netvlad_deploy.workflow.source import Source

LOG = logging.getLogger(__name__)


def validate(
    candidate: Candidate,
    *,
    against: Path | None = None,
    read_as: Source | None = None,
    bank: Path | None = None,
    queries: Path | None = None,
    expect_cases: int | None = None,
) -> ParityReport:
    """Compare a head with the oracle, a pipeline or another aggregator with its golden inputs, or any with another.

    `against` is an artifact, or a checkpoint to run in torch; `read_as` gives the prefix, dialect and backbone with
    which that checkpoint was exported: all else stands in the artifact. `bank` and `queries` are feature files
    of the user's own images to rank, beside a synthetic bank of near ties. Another number of judged cases than
    `expect_cases` is a FAIL.

    NOT_RUN, with its reason, where the artifact cannot run on this machine.

    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> artifact = export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions())
    >>> report = validate(Candidate(path=artifact.path))
    >>> report.verdict.value, report.reference, report.cases[0].name
    ('PASS', 'oracle', 'typical')

    Raises: ArtifactError if a file is damaged or stale; ParityError if there is nothing to compare.
    """
    path = candidate.path
    artifact = candidate.artifact or load_artifact(path, hold=True)
    parameters, goldens = _read_reference(artifact)
    if (bank or queries) and (goldens or isinstance(parameters, dict)):
        reason = "is judged by its golden inputs alone" if goldens else "has several heads"
        raise UsageError(f"{path} {reason}: leave --bank and --queries out")
    if candidate.backend == "oracle" or (against is not None and against.resolve() == path.resolve()):
        raise UsageError(f"{path} would be compared with itself, which proves nothing: choose another reference")
    other = None if against is None else Candidate(path=against)
    _check_against(artifact, other, read_as)
    candidate = Candidate.of(artifact, backend=candidate.backend or parity_backend(artifact))
    reference = against.name if against else goldens[0].kind if goldens else "oracle"
    try:
        with stdout_to_stderr():
            report = _compare(candidate, artifact, parameters, goldens, other, read_as, _own_bank(bank, queries))
        report = replace(report, candidate=candidate.name, reference=reference)
    except UNAVAILABLE as error:
        report = ParityReport(
            candidate=candidate.name, reference=reference, precision=artifact.precision, cases=(), reason=str(error)
        )
    return replace(report, expected_cases=expect_cases)


def _compare(
    candidate: Candidate,
    artifact: AnyArtifact,
    parameters: ReferenceParameters | dict[str, ReferenceParameters] | None,
    goldens: Sequence[Golden],
    other: Candidate | None,
    read_as: Source | None,
    banks: Iterator[Bank],
) -> ParityReport:
    """Open both sides and compare them; the bytes of the artifact are let go of in the end."""
    with contextlib.ExitStack() as stack:
        stack.callback(artifact.release)
        if goldens:
            stack.enter_context(artifact.keep())  # its graph is opened twice: as it is, and to see inside
        runner = stack.enter_context(candidate.open(lineage=False))
        theirs = stack.enter_context(_open_reference(artifact, other, read_as)) if other else None
        if isinstance(parameters, dict):
            return compare_heads(runner, parameters, against=theirs)
        if not goldens and parameters is not None:
            ties = near_ties(parameters, shapes=next(iter(runner.feature_profiles), None))
            return compare(runner, parameters, against=theirs, banks=[ties, *banks])
        # a checkpoint brings no goldens: torch computes it in FP32
        their_goldens = _read_reference(other.artifact)[1] if other and other.artifact else ()
        return compare_goldens(runner, goldens, parameters, against=theirs, against_goldens=their_goldens)


def _own_bank(bank: Path | None, queries: Path | None) -> Iterator[Bank]:
    if bank is None and queries is not None:
        raise UsageError(f"queries {queries} have no images to rank: pass --bank too")
    if bank is not None:
        yield Bank(name=bank.name, images=read_arrays(bank), queries=read_arrays(queries) if queries else None)


def _open_reference(artifact: AnyArtifact, other: Candidate, read_as: Source | None) -> Runner:
    """Open the other side of the comparison: another artifact, or the same part of a checkpoint, in torch."""
    if other.artifact is not None:
        return other.on(parity_backend(other.artifact)).open()
    read_as = read_as or Source()
    unfolded = Unfolded(
        checkpoint=other.path, prefix=read_as.prefix, dialect=read_as.dialect, backbone=read_as.backbone
    )
    module = unfolded_module(artifact, unfolded)
    from netvlad_deploy.runtime.torch_runner import TorchRunner

    exported_from = None if isinstance(artifact, EngineArtifact) else artifact.parent
    if exported_from is not None:
        same = "the file" if sha256_file(other.path) == exported_from.sha256 else "another file than the one"
        LOG.info("%s is %s that %s was exported from", other.path, same, artifact.path)
    return TorchRunner(module)


def _read_reference(
    artifact: AnyArtifact,
) -> tuple[ReferenceParameters | dict[str, ReferenceParameters] | None, tuple[Golden, ...]]:
    """Return the oracle's parameters of an artifact and its golden inputs.

    The parameters are those of each of several heads by name, None without a NetVLAD; heads have no golden inputs.
    """
    netvlad = isinstance(artifact.spec, NetVLADSpec)
    with copied(artifact.path.parent, artifact.reference) as file:
        if isinstance(artifact.spec, HeadsSpec):
            return load_references(file, artifact.spec), ()
        goldens = () if netvlad and artifact.images is None else load_goldens(file)
        return load_reference(file) if netvlad else None, goldens


def _heads_of(artifact: AnyArtifact) -> set[str]:
    """Return the names of the heads in a graph of several, none of another."""
    return set(artifact.spec.heads) if isinstance(artifact.spec, HeadsSpec) else set()


def _check_against(artifact: AnyArtifact, other: Candidate | None, read_as: Source | None) -> None:
    """Refuse a comparison of an artifact with another candidate that would say nothing.

    Raises: ArtifactError if it is an engine of another ONNX file than the one it stands beside or against; UsageError
        if one takes images and the other does not, they have other heads, or there is no checkpoint to be read as is
        said.
    """
    compared = None if other is None else other.artifact
    if read_as not in (None, Source()) and (other is None or compared is not None):
        raise UsageError("--prefix, --dialect and --backbone say how a checkpoint is read: name it with --against")
    if compared is not None and (compared.images is None) != (artifact.images is None):
        raise UsageError(f"{artifact.path} takes {artifact.inputs[0]}, {compared.path} does not: compare two that do")
    if compared is not None and _heads_of(compared) != _heads_of(artifact):
        raise UsageError(f"{artifact.path} and {compared.path} have not the same heads: compare two that have")
    if not isinstance(artifact, EngineArtifact):
        return
    if artifact.parent is None:
        raise ArtifactError(f"{artifact.path} names no parent: build it again")
    known = {artifact.reference.name: artifact.reference.sha256}  # as it was read above
    if compared is not None and compared.path.resolve() == (artifact.path.parent / artifact.parent.name).resolve():
        known[artifact.parent.name] = compared.sha256
    check_lineage(artifact, known)
    if isinstance(compared, OnnxArtifact) and compared.sha256 != artifact.parent.sha256:
        raise ArtifactError(
            f"{artifact.path} was not built from {compared.path}: build it again, or compare with its own"
        )
