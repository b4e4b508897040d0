"""Results for a person at a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from netvlad_deploy.artifact import Artifact, EngineArtifact, OnnxArtifact
from netvlad_deploy.latency.timing import CandidateLatency, LatencyReport
from netvlad_deploy.parity.heads import OutputParity, ParityReport
from netvlad_deploy.parity.localise import Departure
from netvlad_deploy.report.escape import markdown_text
from netvlad_deploy.spec.graph_options import COARSE_STEP
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict

MIB = 2**20
LISTED_CLUSTERS = 12
"""How many clusters a line names."""

PARITY_HEADER = (
    "verdict",
    "case",
    "B x N",
    "logit step",
    "output",
    "max abs",
    "1-cos",
    "norm error",
    "error/tolerance",
    "cluster",
    "smallest fault",
)
RETRIEVAL_HEADER = ("retrieval", "against", "queries x bank", "top-1", "top-10", "rank distance", "largest swapped gap")
LATENCY_HEADER = ("verdict", "candidate", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "CV", "descriptors/s", "time ratio")


def artifact_lines(artifact: Artifact) -> list[str]:
    """Return what was written and what it is."""
    spec = artifact.spec
    lines = [
        f"{artifact.path}  {artifact.precision}, {artifact.size_bytes} bytes, SHA-256 {artifact.sha256[:16]}",
        f"  {shape_words(spec)}, weights: {artifact.origin}",
        f"  {_tensors(artifact, artifact.inputs)} -> {_tensors(artifact, artifact.outputs)}",
        f"  logit step {artifact.range.logit_step:.2g} at features of norm {artifact.range.norm:g}"
        + (f", values up to {artifact.range.largest:g}" if artifact.range.largest else "")
        + (f", norms from {artifact.range.smallest:.2g}" if artifact.range.smallest else ""),
    ]
    if isinstance(artifact, OnnxArtifact):
        lines.append(f"  opset {artifact.opset}, oracle's reference: {artifact.reference.name}")
    if isinstance(artifact, EngineArtifact):
        figures = artifact.figures
        lines += [
            f"  {artifact.flavor} {artifact.versions[artifact.flavor]} for {_destination(artifact)}, "
            f"flags {', '.join(artifact.flags) or 'none'}",
            *(f"  profile: {profile}" for profile in artifact.profiles),
            f"  built in {figures.build_ms:.0f} ms: {len(figures.kernels)} kernels, activations "
            f"{mebibytes(figures.activation_bytes)}, weights {mebibytes(figures.weight_bytes)}, memory of the host "
            f"{mebibytes(figures.host_bytes)}",
        ]
    return lines + [f"  warning: {warning}" for warning in artifact.warnings]


def shape_words(spec: NetVLADSpec) -> str:
    """Return the sizes of a layer, and the order of its values."""
    sizes = f"K={spec.num_clusters} D={spec.feature_size} G={spec.num_ghost_clusters}"
    if spec.projection is None:
        return f"{sizes}, descriptor {spec.descriptor_size} ({spec.flatten})"
    return f"{sizes}, descriptor {spec.descriptor_size}, projected from {spec.aggregate_size} ({spec.flatten})"


def _destination(artifact: EngineArtifact) -> str:
    """Return which GPUs an engine is for."""
    if artifact.targets:
        return ", ".join(artifact.targets)
    return "Ampere and later GPUs" if artifact.options.hardware_compatible else "the GPU it was built on"


def _tensors(artifact: Artifact, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {artifact.dtypes[name]}" for name in names)


def mebibytes(size_bytes: int | None) -> str:
    """Return a size in MiB, or say that it is unknown."""
    return "unknown" if size_bytes is None else f"{size_bytes / MIB:.2f} MiB"


def parity_rows(report: ParityReport) -> Iterator[tuple[str, ...]]:
    """Yield a row for each output of each case, under PARITY_HEADER; one of dashes for a case without outputs."""
    for case in report.cases:
        shape = str(case.batch) if case.num_features is None else f"{case.batch} x {case.num_features}"
        step = "-" if case.num_features is None else f"{case.logit_step:.2g}"
        step += " coarse" if case.logit_step > COARSE_STEP else ""
        fault = "-" if case.smallest_fault is None else _share(case.smallest_fault)
        for output in case.outputs:
            yield output.verdict.value, case.name, shape, step, *_output_cells(output), fault
        if not case.outputs:
            yield case.verdict.value, case.name, *["-"] * (len(PARITY_HEADER) - 2)


def _output_cells(output: OutputParity) -> tuple[str, ...]:
    return (
        output.output,
        f"{output.max_abs:.1e}",
        _cosine(output),
        f"{output.norm_error:.1e}",
        f"{output.worst_ratio:.2g}" + (f", {output.non_finite} not finite" if output.non_finite else ""),
        "-" if output.worst_cluster is None else str(output.worst_cluster),
    )


def _share(value: float) -> str:
    """Return a relative change in per cent, with two digits."""
    return f"{100 * value:.2g} %" if value < 1 else "over 100 %"


def _cosine(output: OutputParity) -> str:
    """Return the worst 1 - cosine, and how many items were too short for one."""
    short = f" ({output.short_rows} short)" if output.short_rows else ""
    return ("-" if output.cosine_min is None else f"{max(0.0, 1 - output.cosine_min):.1e}") + short


def parity_lines(report: ParityReport) -> list[str]:
    """Return the verdict and a table of all cases."""
    title = f"{report.verdict.value}  {report.candidate} against {report.reference}, {report.precision}"
    if report.reason:
        return [f"{title}: {report.reason}"]
    counted = f", {report.not_judged} not judged" if report.not_judged else ""
    lines = [f"{title}, {len(report.cases)} cases{counted}", *table(PARITY_HEADER, list(parity_rows(report)))]
    lines += not_judged_lines(report)
    lines += [departure_line(report.departure)] if report.departure else []
    return lines + (table(RETRIEVAL_HEADER, list(retrieval_rows(report))) if report.retrieval else [])


def not_judged_lines(report: ParityReport) -> list[str]:
    """Return a line for each reason why cases prove nothing, with those cases, and one for what no case reveals."""
    names: dict[str, list[str]] = {}
    for case in report.cases:
        if case.verdict is Verdict.NOT_JUDGED:
            names.setdefault(case.reason, []).append(case.name)
    lines = [f"not judged: {', '.join(cases)}: {reason}" for reason, cases in names.items()]
    return lines + ([f"not judged: {report.unseen}"] if report.unseen else [])


def retrieval_rows(report: ParityReport) -> Iterator[tuple[str, ...]]:
    """Yield a row for each ranking of each bank, under RETRIEVAL_HEADER."""
    for figure in report.retrieval:
        yield (
            figure.bank,
            figure.arrangement,
            f"{figure.queries} x {figure.images}",
            f"{figure.top1:.1%}",
            f"{figure.top10:.1%}",
            f"{figure.rank_distance:.3f}",
            f"{figure.swapped_gap:.1e}",
        )


def departure_line(departure: Departure) -> str:
    """Return where a failing candidate first departs, and what to change."""
    if not departure.tensor:
        return f"first departure: none. {departure.advice}"
    shown = ", ".join(map(str, departure.clusters[:LISTED_CLUSTERS])) + (
        " ..." if len(departure.clusters) > LISTED_CLUSTERS else ""
    )
    return (
        f"first departure: {departure.tensor} of {departure.case!r}, error {departure.error:.1e} where "
        f"{departure.tolerance:.1e} is tolerated, in {len(departure.clusters)} {departure.unit} ({shown}). "
        f"{departure.advice}"
    )


def latency_rows(report: LatencyReport) -> Iterator[tuple[str, ...]]:
    """Yield a row for each candidate, under LATENCY_HEADER."""
    return (_latency_row(candidate) for candidate in report.candidates)


def _latency_row(candidate: CandidateLatency) -> tuple[str, ...]:
    ratio = candidate.ratio
    milliseconds = (candidate.p50_ms, candidate.p90_ms, candidate.p95_ms, candidate.p99_ms)
    return (
        candidate.verdict.value,
        candidate.name + (f": {candidate.reason}" if candidate.reason else ""),
        *("-" if value is None else f"{value:.3f}" for value in milliseconds),
        "-" if candidate.variation is None else f"{candidate.variation:.1%}",
        "-" if candidate.descriptors_per_s is None else f"{candidate.descriptors_per_s:.0f}",
        "-" if ratio is None else f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
    )


def latency_title(report: LatencyReport) -> str:
    """Return what was measured, how and where."""
    size = report.image_size
    shape = f"num_features {report.num_features}" if size is None else f"images of {size[0]}x{size[1]}"
    return (
        f"batch {report.batch}, {shape}, {report.threads} threads, {report.rounds} rounds "
        f"of {report.block_ms:g} ms after {report.warmup_ms:g} ms, {report.machine['processor']}"
    )


def latency_lines(report: LatencyReport) -> list[str]:
    """Return the conditions and a table of all candidates; the ratio is time over the first candidate's."""
    return [latency_title(report), *table(LATENCY_HEADER, list(latency_rows(report))), *device_lines(report)]


def device_lines(report: LatencyReport) -> list[str]:
    """Return a line for each candidate on a device: what the device's own clock says, and under which conditions."""
    return [
        f"{one.name} by the GPU's clock: copies in {one.h2d_ms:.3f} ms, work {one.compute_ms:.3f} ms, copies out "
        f"{one.d2h_ms:.3f} ms; {one.conditions}"
        for one in report.candidates
        if one.h2d_ms is not None
    ]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows in columns, two spaces apart."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table's lines."""
    return [_row(header), "| " + " | ".join("---" for _ in header) + " |", *(_row(row) for row in rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"
