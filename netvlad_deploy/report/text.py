"""Artifacts, parity and latency as lines of text, and tables for the terminal and for Markdown."""

from collections.abc import Iterable, Sequence

from netvlad_deploy.artifact import Artifact, EngineArtifact, OnnxArtifact
from netvlad_deploy.latency.results import DeviceTimes, Estimate, LatencyReport
from netvlad_deploy.latency.statistics import comparison
from netvlad_deploy.parity.heads import OutputParity, ParityReport
from netvlad_deploy.parity.localise import Departure
from netvlad_deploy.report.escape import markdown_text
from netvlad_deploy.spec.graph_options import COARSE_STEP, FeatureRange, HeadsRange
from netvlad_deploy.spec.layer import AnySpec, HeadsSpec, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict

MIB = 2**20
MOST_CLUSTERS = 12
"""Most clusters that a line names."""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""The header and the rows of a table."""

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
    """Return the file, the layer, the tensors and the feature range of an artifact, of an engine also its build."""
    lines = [
        f"{artifact.path}  {artifact.precision}, {artifact.size_bytes} bytes, SHA-256 {artifact.sha256[:16]}",
        f"  {shape_words(artifact.spec)}, weights: {artifact.origin}",
        f"  {_tensors(artifact, artifact.inputs)} -> {_tensors(artifact, artifact.outputs)}",
        *_range_lines(artifact.spec, artifact.range),
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


def _range_lines(spec: AnySpec, limits: FeatureRange | HeadsRange) -> list[str]:
    """Return the features for which an artifact is accurate, of several heads with the sizes of each."""
    if isinstance(limits, HeadsRange) and isinstance(spec, HeadsSpec):
        return [
            f"  head {name}: {shape_words(own)}; {_range_words(limits.heads[name])}" for name, own in spec.heads.items()
        ]
    if isinstance(limits, FeatureRange) and not isinstance(spec, NetVLADSpec):
        return [f"  values up to {limits.largest:g}"] if limits.largest else []
    return [f"  {_range_words(limits)}"]


def _range_words(limits: FeatureRange) -> str:
    return (
        f"logit step {limits.logit_step:.2g} at features of norm {limits.norm:g}"
        + (f", values up to {limits.largest:g}" if limits.largest else "")
        + (f", norms from {limits.smallest:.2g}" if limits.smallest else "")
    )


def shape_words(spec: AnySpec) -> str:
    """Return in words the sizes of a layer and the order of the values in its descriptor."""
    if isinstance(spec, HeadsSpec):
        return spec.name
    if not isinstance(spec, NetVLADSpec):
        settings = "".join(f", {name} {value}" for name, value in spec.settings.items())
        width = f" D={spec.feature_size}" if spec.feature_size else ""
        return f"{spec.name}{width}, descriptor {spec.descriptor_size}{settings}"
    sizes = f"K={spec.num_clusters} D={spec.feature_size} G={spec.num_ghost_clusters}"
    projected = "" if spec.projection is None else f", projected from {spec.aggregate_size}"
    return f"{sizes}, descriptor {spec.descriptor_size}{projected} ({spec.flatten})"


def _destination(artifact: EngineArtifact) -> str:
    """Return the GPUs that an engine runs on, in words."""
    if artifact.targets:
        return ", ".join(artifact.targets)
    return "Ampere and later GPUs" if artifact.options.hardware_compatible else "the GPU it was built on"


def _tensors(artifact: Artifact, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {artifact.dtypes[name]}" for name in names)


def mebibytes(size_bytes: int | None) -> str:
    """Return a size in MiB with its unit, `unknown` for None.

    >>> mebibytes(3 * 2**19)
    '1.50 MiB'
    """
    return "unknown" if size_bytes is None else f"{size_bytes / MIB:.2f} MiB"


def parity_table(report: ParityReport) -> Table:
    """Return a row for each output of each case, and one of dashes for a case without outputs."""
    rows: list[tuple[str, ...]] = []
    for case in report.cases:
        shape = str(case.batch) if case.num_features is None else f"{case.batch} x {case.num_features}"
        step = "-" if case.num_features is None else f"{case.logit_step:.2g}"
        step += " coarse" if case.logit_step > COARSE_STEP else ""
        fault = "-"
        if case.smallest_fault is not None:
            fault = f"{100 * case.smallest_fault:.2g} %" if case.smallest_fault < 1 else "over 100 %"
        rows += [(one.verdict.value, case.name, shape, step, *_output_cells(one), fault) for one in case.outputs]
        if not case.outputs:
            rows.append((case.verdict.value, case.name, *["-"] * (len(PARITY_HEADER) - 2)))
    return PARITY_HEADER, rows


def _output_cells(output: OutputParity) -> tuple[str, ...]:
    distance = distance_text(None if output.cosine_min is None else 1 - output.cosine_min)
    return (
        output.output,
        f"{output.max_abs:.1e}",
        distance + (f" ({output.short_rows} short)" if output.short_rows else ""),
        f"{output.norm_error:.1e}",
        f"{output.worst_ratio:.2g}" + (f", {output.non_finite} not finite" if output.non_finite else ""),
        "-" if output.worst_cluster is None else str(output.worst_cluster),
    )


def distance_text(distance: float | None, absent: str = "-") -> str:
    """Return 1 - cosine with two digits, 0 where rounding leaves it negative, and `absent` for None."""
    return absent if distance is None else f"{max(0.0, distance):.1e}"


def parity_lines(report: ParityReport) -> list[str]:
    """Return the lines of a parity report: its verdict, a table of all cases, doubts, the departure and retrieval."""
    title = f"{report.verdict.value}  {report.candidate} against {report.reference}, {report.precision}"
    if report.reason:
        return [f"{title}: {report.reason}"]
    counted = f", {report.not_judged} not judged" if report.not_judged else ""
    lines = [f"{title}, {len(report.cases)} cases{counted}", *table(*parity_table(report))]
    lines += [report.miscounted] if report.miscounted else []
    lines += not_judged_lines(report)
    lines += [departure_line(report.departure)] if report.departure else []
    return lines + (table(*retrieval_table(report)) if report.retrieval else [])


def not_judged_lines(report: ParityReport) -> list[str]:
    """Return a line for each reason why cases prove nothing, with their names, and one for faults that none shows."""
    names: dict[str, list[str]] = {}
    for case in report.cases:
        if case.verdict is Verdict.NOT_JUDGED:
            names.setdefault(case.reason, []).append(case.name)
    lines = [f"not judged: {', '.join(cases)}: {reason}" for reason, cases in names.items()]
    return lines + ([f"not judged: {report.unseen}"] if report.unseen else [])


def retrieval_table(report: ParityReport) -> Table:
    """Return a row for each ranking of each bank."""
    return RETRIEVAL_HEADER, [
        (
            figure.bank,
            figure.arrangement,
            f"{figure.queries} x {figure.images}",
            f"{figure.top1:.1%}",
            f"{figure.top10:.1%}",
            f"{figure.rank_distance:.3f}",
            f"{figure.swapped_gap:.1e}",
        )
        for figure in report.retrieval
    ]


def departure_line(departure: Departure) -> str:
    """Return in words the first tensor in which a failing candidate departs, and the advice."""
    if not departure.tensor:
        return f"first departure: none. {departure.advice}"
    shown = listed(departure.clusters, MOST_CLUSTERS)
    return (
        f"first departure: {departure.tensor} of {departure.case!r}, error {departure.error:.1e} where "
        f"{departure.tolerance:.1e} is tolerated, in {len(departure.clusters)} {departure.unit} ({shown}). "
        f"{departure.advice}"
    )


def sentence(line: str) -> str:
    """Return a line of the terminal as a sentence of a page.

    >>> sentence("batch 1, 2 threads")
    'Batch 1, 2 threads.'
    """
    return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")


def listed(items: Sequence[object], most: int) -> str:
    """Return the first `most` items, separated by commas, and an ellipsis if there are more.

    >>> listed((3, 5, 8), 2)
    '3, 5 ...'
    """
    return ", ".join(map(str, items[:most])) + (" ..." if len(items) > most else "")


def latency_table(report: LatencyReport) -> Table:
    """Return a row for each candidate; a ratio is relative to the first of them, and to the limit if there is one."""
    header = (*LATENCY_HEADER, "over limit") if report.limit else LATENCY_HEADER
    return header, [
        (
            one.verdict.value,
            one.name + (f": {one.reason}" if one.reason else ""),
            *(estimate_text(one.percentiles_ms.get(name)) for name in ("p50", "p90", "p95", "p99")),
            "-" if one.variation is None else f"{one.variation:.1%}",
            estimate_text(one.throughput, ".0f"),
            " ".join(filter(None, (estimate_text(one.ratio), comparison(one.ratio)))),
            *([estimate_text(one.over_limit)] if report.limit else []),
        )
        for one in report.candidates
    ]


def estimate_text(estimate: Estimate | None, form: str = ".3f") -> str:
    """Return a value with its interval, a dash for None.

    >>> estimate_text(Estimate(value=1.5, low=1.25, high=2), ".2f")
    '1.50 [1.25, 2.00]'
    """
    if estimate is None:
        return "-"
    return f"{estimate.value:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"


def latency_title(report: LatencyReport) -> str:
    """Return in words the input, the schedule and the processor of a latency measurement."""
    size = report.image_size
    shape = f"num_features {report.num_features}" if size is None else f"images of {size[0]}x{size[1]}"
    flight = f"{report.concurrency} requests in flight, " if report.concurrency > 1 else ""
    return (
        f"batch {report.batch}, {shape}, {report.threads} threads, {flight}{report.rounds} rounds "
        f"of {report.block_ms:g} ms after {report.warmup_ms:g} ms, {report.machine['processor']}"
    )


def latency_lines(report: LatencyReport) -> list[str]:
    """Return the conditions, a table of all candidates, advice, and the comparison with a baseline."""
    return [
        latency_title(report),
        *table(*latency_table(report)),
        *device_lines(report),
        *(f"advice: {advice}" for advice in (*report.advice, *candidate_notes(report))),
        *regression_lines(report),
    ]


def candidate_notes(report: LatencyReport) -> list[str]:
    """Return the advice on each candidate with its name."""
    return [f"{one.name}: {advice}" for one in report.candidates for advice in one.advice]


def regression_lines(report: LatencyReport) -> list[str]:
    """Return the comparison with a baseline, and what limits it, in sentences; nothing where there was no baseline."""
    one = report.regression
    if one is None:
        return []
    compared = "measured in the same rounds" if one.paired else "from its stored figures"
    verdict = f"{one.verdict.value}  {estimate_text(one.ratio)} times the baseline {one.baseline}"
    return [
        f"{verdict}, SHA-256 {one.sha256[:12]}, {compared}; up to {1 + one.allowed:.4g} is allowed",
        *one.advice,
    ]


def device_lines(report: LatencyReport) -> list[str]:
    """Return a line for each candidate on a GPU: its times by the GPU's clock, and the state of the GPU."""
    return [
        f"{one.name} by the GPU's clock: copies in {one.device.h2d_ms:.3f} ms, work {one.device.compute_ms:.3f} ms, "
        f"copies out {one.device.d2h_ms:.3f} ms{_started(one.device)}; {one.conditions}"
        for one in report.candidates
        if one.device is not None
    ]


def _started(device: DeviceTimes) -> str:
    return "" if device.enqueue_ms is None else f", starting it {device.enqueue_ms:.3f} ms of the host's time"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its columns two spaces apart.

    >>> table(("case", "error"), [("random", "1e-7")])
    ['case    error', 'random  1e-7']
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table.

    >>> markdown_table(("case", "error"), [("random", "1e-7")])
    ['| case | error |', '| --- | --- |', '| random | 1e-7 |']
    """
    return [_row(header), "| " + " | ".join("---" for _ in header) + " |", *(_row(row) for row in rows)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"
