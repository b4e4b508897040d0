"""The result of a deployment: the verdict of each step, and its report page."""

from collections.abc import Sequence
from dataclasses import dataclass

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.artifacts import artifact_section, repeat_section
from netvlad_deploy.report.latency import latency_facts, latency_section
from netvlad_deploy.report.page import Block, Grid, Page, Section
from netvlad_deploy.report.parity import parity_facts, parity_headline, parity_sections
from netvlad_deploy.report.text import mebibytes
from netvlad_deploy.spec.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Step:
    """The verdict of one step of a deployment; `reason` says why it did not run, or which cases failed."""

    name: str
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Every artifact and report of a deployment, and a verdict for each step."""

    steps: tuple[Step, ...]
    onnx: OnnxArtifact
    engine: EngineArtifact | None
    parity: tuple[ParityReport, ...]
    latency: LatencyReport

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of all steps together: FAIL if any failed, else NOT_RUN if any did not run."""
        return Verdict.combine(step.verdict for step in self.steps)


def step_rows(steps: Sequence[Step]) -> list[tuple[str, str, str]]:
    """Return verdict, name and reason of each step; those that did not run come last."""
    ordered = sorted(steps, key=lambda step: step.verdict is Verdict.NOT_RUN)
    return [(step.verdict.value, step.name, step.reason) for step in ordered]


def deployment_page(deployment: Deployment, *, graph: Block | None = None, command: str = "") -> Page:
    """Return the page of a deployment; `graph` is the drawing of its graph, `command` the line that made it."""
    artifacts = [each for each in (deployment.onnx, deployment.engine) if each is not None]
    steps = Section("Steps", (Grid(("verdict", "step", "reason"), step_rows(deployment.steps)),))
    return Page(
        title=deployment.onnx.path.name,
        verdict=deployment.verdict,
        headline=_headline(deployment),
        facts=_facts(deployment),
        sections=(
            steps,
            *parity_sections(deployment.parity),
            latency_section(deployment.latency),
            *(artifact_section(each, graph if each is deployment.onnx else None) for each in artifacts),
            repeat_section(artifacts, command=command, versions=False),
        ),
    )


def _headline(deployment: Deployment) -> str:
    """Return the outcome in a sentence: what failed, else what did not run, and what is proven of the ONNX file."""
    words = {
        Verdict.FAIL: "Failed: {}.",
        Verdict.NOT_JUDGED: "Nothing is proven by: {}.",
        Verdict.NOT_RUN: "Not run on this machine: {}.",
    }
    names = {verdict: [step.name for step in deployment.steps if step.verdict is verdict] for verdict in words}
    said = [words[verdict].format(", ".join(found)) for verdict, found in names.items() if found]
    first = [parity_headline(report) for report in deployment.parity if report.verdict is Verdict.PASS]
    return " ".join((*first, *said))


def _facts(deployment: Deployment) -> tuple[tuple[str, str], ...]:
    built: tuple[tuple[str, str], ...] = ()
    if deployment.engine is not None:
        figures = deployment.engine.figures
        built = (
            ("activations of the engine", mebibytes(figures.activation_bytes)),
            ("kernels of the engine", str(len(figures.kernels))),
        )
    size = ("size of the ONNX file", mebibytes(deployment.onnx.size_bytes))
    return (*parity_facts(deployment.parity[0]), *latency_facts(deployment.latency), size, *built)
