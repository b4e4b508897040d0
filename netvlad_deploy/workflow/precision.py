"""The verb `precision`: the error of some weights in each precision."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.cases import default_cases, largest_norm, rounded_cases
from netvlad_deploy.parity.heads import have_direction
from netvlad_deploy.report.precision import CasePrecision, PrecisionReport, draw_precisions, precision_page
from netvlad_deploy.report.write import REPORT_FILES, write_report
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import cosines
from netvlad_deploy.support.files import make_folder
from netvlad_deploy.support.require import require
from netvlad_deploy.support.scratch import scratch_folder
from netvlad_deploy.workflow.source import Source, load_head

LOG = logging.getLogger(__name__)

PRECISION_PICTURE = "precision.svg"


def precision(
    source: Source, folder: Path, *, feature_norm: float = 1.0, command: str = "", force: bool = False
) -> PrecisionReport:
    """Measure how far each precision is from the oracle for these weights, into a folder with a report and a picture.

    The layer exported after `module.half()` is measured beside them, to show the use of the typed graph. The report
    shows `command`, the line that was typed.

    >>> report = precision(Source(num_clusters=2, feature_size=4), Path("report"))
    >>> report.precisions
    ('fp32', 'fp16', 'fp16-wide-logits', 'plain fp16')
    >>> Path("report", "precision.svg").exists()
    True

    Raises: MissingDependencyError without matplotlib or ONNX Runtime; UsageError if the source takes images; InputError
        for an unusable checkpoint.
    """
    for package, extra in (("matplotlib", "report"), ("onnxruntime", "cpu")):
        require(package, extra=extra)
    module, origin = load_head(source)
    from netvlad_deploy.export.audit import LARGEST_FEATURE
    from netvlad_deploy.export.graph import operator_types
    from netvlad_deploy.export.onnx_model import export_onnx
    from netvlad_deploy.export.straight import export_straight

    make_folder(folder, (folder / name for name in (*REPORT_FILES, PRECISION_PICTURE)), force=force)
    with scratch_folder() as scratch, contextlib.ExitStack() as stack:
        artifacts = {}
        for name, wide in (("fp32", False), ("fp16", False), ("fp16", True)):
            options = GraphOptions(precision=name, wide_logits=wide, feature_norm=feature_norm)
            LOG.info("export %s", options.precision_name)
            artifacts[options.precision_name] = export_onnx(module, scratch / f"{options.precision_name}.onnx", options)
        LOG.info("export plain fp16")
        artifacts["plain fp16"] = export_straight(module, artifacts["fp16"], scratch / "plain.onnx", half=True)
        runners = {
            name: stack.enter_context(open_runner(artifact, backend="strict")) for name, artifact in artifacts.items()
        }
        LOG.info("run every case in every precision")
        parameters = load_reference(artifacts["fp16"].reference_path)
        report = PrecisionReport(
            origin=origin,
            precisions=tuple(artifacts),
            operators=operator_types(artifacts["fp16"].path),
            cases=tuple(_measure(runners, parameters, largest=LARGEST_FEATURE)),
            warnings=artifacts["fp16"].warnings,
        )
    page = precision_page(report, picture=PRECISION_PICTURE, command=command)
    pictures = {PRECISION_PICTURE: draw_precisions(report)}
    write_report(folder, "precision", report, page, pictures=pictures, force=force)
    return report


def _measure(
    runners: Mapping[str, Runner], parameters: ReferenceParameters, *, largest: float
) -> Iterator[CasePrecision]:
    """Yield the distance of every runner in every case of `validate` that FP16 can hold."""
    with OracleRunner(parameters) as oracle:
        for case, doubt in rounded_cases(default_cases(parameters, largest=largest), *runners.values()):
            if doubt:
                continue
            expected = oracle.run(case.feeds(oracle, masked=False))[DESCRIPTOR]
            long = have_direction(DESCRIPTOR, np.linalg.norm(expected, axis=1), oracle.parameters.spec)
            for precision, runner in runners.items():
                got = runner.run(case.feeds(runner, masked=False))[DESCRIPTOR]
                finite = np.isfinite(got).all(axis=1)
                kept = long & finite
                yield CasePrecision(
                    case=case.name,
                    precision=precision,
                    feature_norm=largest_norm(case.features),
                    distance=float(1 - cosines(got[kept], expected[kept]).min()) if kept.any() else None,
                    non_finite=int((~finite).sum()),
                )
