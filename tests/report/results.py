"""Results of every verb that has a page, made up: enough to draw each figure and each table once."""

import functools
import io
from dataclasses import replace
from pathlib import Path

from PIL import Image

from netvlad_deploy.latency.results import Estimate, LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.parity.localise import Departure
from netvlad_deploy.parity.ranks import RetrievalParity
from netvlad_deploy.report.deploy import Deployment, Step, deployment_page
from netvlad_deploy.report.evaluate import evaluation_page
from netvlad_deploy.report.latency import bench_page
from netvlad_deploy.report.page import Block, Page, Paragraph, Photo, Photos
from netvlad_deploy.report.parity import parity_page
from netvlad_deploy.report.precision import CasePrecision, PrecisionReport, precision_page
from netvlad_deploy.spec.graph_options import OperatorTypes
from netvlad_deploy.spec.verdict import Verdict
from tests.report.test_evaluate import REPORT
from tests.report.test_reports import BLIND, FAILED, LATENCY, OUTPUT, parity
from tests.test_artifact import engine_artifact, onnx_artifact

LONG = "photos-of-a-walk-through-the-old-town/model_best-vgg16-netvlad-whitening-4096.onnx"
"""A name that is wider than a phone."""

COMMAND = f"netvlad-deploy deploy {LONG} --resize 240x320 --flavor tensorrt-rtx --allow-not-run -o deployment"
RATIOS = replace(OUTPUT, cluster_ratios=tuple(10.0 ** (-k % 5 - 4) for k in range(300)))
QUANTILES = tuple(1 + 0.02 * place + (place == 50) for place in range(51))


def latency() -> LatencyReport:
    """Return a measurement of three candidates: the first, one of it with a ratio, and one that did not run."""
    first, second, third = LATENCY.candidates
    ratio = Estimate(value=0.5, low=0.4, high=0.6)
    doubt = "the machine was busy: its load was 3 on 2 cores, stop other work"
    timed = replace(second, name=LONG, percentiles_ms=first.percentiles_ms, quantiles_ms=QUANTILES)
    return replace(
        LATENCY,
        before={"load": "0.1"},
        after={"load": "3.0"},
        limit="its two matrix products alone",
        advice=(doubt,),
        candidates=(
            replace(first, quantiles_ms=tuple(9 * each for each in QUANTILES)),
            replace(timed, ratio=ratio, over_limit=Estimate(value=1.5, low=1.4, high=1.7)),
            third,
        ),
    )


def failed() -> ParityReport:
    """Return a comparison with a case of each verdict, and its departure."""
    departure = Departure(
        case="case 1", tensor="mean_residual", clusters=(1, 2), error=1.0, tolerance=0.1, advice="Look at the centroids"
    )
    ranks = RetrievalParity(
        bank="near ties", arrangement="crossed", queries=64, images=64, top1=1, top10=1, rank_distance=0, swapped_gap=0
    )
    report = replace(parity(RATIOS, FAILED), departure=departure, retrieval=(ranks,))
    return replace(report, cases=(*report.cases, BLIND))


def pages(graph: Block | None = None) -> dict[str, Page]:
    """Return a page of each verb that has one, by its name; `graph` is drawn on two of them."""
    onnx = replace(onnx_artifact(Path(LONG)), versions={"torch": "2.13"})
    engine = engine_artifact(Path("m.engine"))
    deployment = Deployment(
        steps=(Step(name="export", verdict=Verdict.PASS), Step(name="build", verdict=Verdict.NOT_RUN, reason="no GPU")),
        onnx=onnx,
        engine=engine,
        parity=(parity(*[RATIOS] * 17, OUTPUT), replace(parity(), candidate="m.engine", reason="no GPU")),
        latency=latency(),
    )
    precision = PrecisionReport(
        origin=LONG,
        precisions=("fp32", "fp16", "plain fp16"),
        operators=(OperatorTypes(operator="MatMul", half=2, single=0),),
        cases=tuple(
            CasePrecision(case=case, precision=name, feature_norm=1.0, distance=distance, non_finite=lost)
            for case in ("typical", "near centroids")
            for name, distance, lost in (("fp32", 1e-15, 0), ("fp16", 1e-7, 0), ("plain fp16", None, 2))
        ),
        warnings=("look out",),
    )
    right = [None, True, False, False, False, False]
    photos = [Photo(_jpeg(), LONG, "0.912", right=each) for each in right]
    matches = (Paragraph("hits"), Photos((photos, photos), "Queries with their best matches", "matches.png"))
    return {
        "deploy": deployment_page(deployment, graph=graph, command=COMMAND),
        "validate": parity_page(failed(), onnx, graph=graph, command=COMMAND),
        "bench": bench_page(latency(), (onnx, engine), command=COMMAND),
        "evaluate": evaluation_page(REPORT, (onnx,), matches, command=COMMAND),
        "precision": precision_page(precision, command=COMMAND),
    }


@functools.cache
def _jpeg() -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((176, 132)).save(stream, "JPEG")
    return stream.getvalue()
