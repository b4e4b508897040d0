"""The result of a deployment: the verdict of each step, and its report page."""

from collections.abc import Sequence
from dataclasses import dataclass

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report import text
from netvlad_deploy.report.escape import markdown_text, printable
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


def deployment_markdown(deployment: Deployment) -> str:
    """Return the report page in Markdown: verdict, steps, artifacts, parity and latency."""
    lines = [
        f"# {deployment.verdict.value}: {markdown_text(deployment.onnx.path.name)}",
        "",
        *text.markdown_table(("verdict", "step", "reason"), step_rows(deployment.steps)),
        "",
        "## Artifacts",
        "",
        "```",
        *(printable(line) for one in (deployment.onnx, deployment.engine) if one for line in text.artifact_lines(one)),
        "```",
    ]
    for report in deployment.parity:
        lines += ["", "## Parity: " + markdown_text(f"{report.candidate} against {report.reference}"), ""]
        lines += (
            [f"Not run: {markdown_text(report.reason)}"]
            if report.reason
            else text.markdown_table(*text.parity_table(report))
        )
        lines += [f"\n{markdown_text(line)}." for line in text.not_judged_lines(report)]
        lines += ["", markdown_text(text.departure_line(report.departure)) + "."] if report.departure else []
        lines += ["", *text.markdown_table(*text.retrieval_table(report))] if report.retrieval else []
    lines += ["", "## Latency", "", markdown_text(text.latency_title(deployment.latency)) + ".", ""]
    lines += text.markdown_table(*text.latency_table(deployment.latency))
    lines += [f"\n{markdown_text(line)}." for line in text.device_lines(deployment.latency)]
    lines += ["", "The time ratio is over the first row, with its 95 % bootstrap interval.", ""]
    return "\n".join(lines)
