"""The result of an adoption, and its lines."""

from dataclasses import dataclass

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.text import artifact_lines, distance_text


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """An artifact made of an ONNX file that others wrote.

    Args:
        artifact: the new file.
        head: the name of the softmax of the NetVLAD in the old file; empty if its head was not looked for.
        nodes: the number of nodes in the old file.
        adopted_nodes: that in the new one.
        notes: what was assumed, or left out of the proof, in sentences.
        proofs: the comparisons that the adoption passed: the old head with the oracle, and the new file with the old.
    """

    artifact: OnnxArtifact
    head: str
    nodes: int
    adopted_nodes: int
    notes: tuple[str, ...]
    proofs: tuple[ParityReport, ...]


def adoption_lines(adoption: Adoption) -> list[str]:
    """Return the artifact, what became of the old file's nodes, the notes and the proofs."""
    found = f"NetVLAD found at {adoption.head}, " if adoption.head else ""
    lines = [*artifact_lines(adoption.artifact)]
    lines.append(f"  {found}{adoption.nodes} nodes became {adoption.adopted_nodes}")
    lines += [f"  {note}" for note in adoption.notes]
    return lines + [_proof_line(proof) for proof in adoption.proofs]


def _proof_line(proof: ParityReport) -> str:
    """Return a comparison in one line, with the worst of its figures."""
    outputs = [output for case in proof.cases for output in case.outputs]
    cosine = min((each.cosine_min for each in outputs if each.cosine_min is not None), default=None)
    ratio = max((each.worst_ratio for each in outputs), default=0.0)
    distance = distance_text(None if cosine is None else 1 - cosine)
    title = f"{proof.verdict.value}  {proof.candidate} against {proof.reference}, {proof.precision}"
    counted = f"{len(proof.cases)} cases" + (f", {proof.not_judged} not judged" if proof.not_judged else "")
    return f"{title}: {counted}, 1-cos up to {distance}, error/tolerance up to {ratio:.2g}"
