"""Every dialect from its checkpoint to ONNX, in FP32 and in FP16, against its own formula in float64."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.models.dialects import DIALECTS
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array, Float64
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate
from tests.models.dialects.samples import SAMPLES, Sample
from tests.models.dialects.test_dialects import expected_of, local_descriptors

pytestmark = [pytest.mark.export, pytest.mark.ort]

ONE_OF_EACH = [next(name for name in SAMPLES if SAMPLES[name].dialect == each.name) for each in DIALECTS]
MOST_NODES = {"fp32": 40, "fp16": 62}


def exported(sample: Sample, folder: Path, precision: str) -> OnnxArtifact:
    options = sample.options
    source = Source(checkpoint=sample.save(folder), takes=FEATURES, **options)
    return export(source, folder / f"{precision}.onnx", GraphOptions(precision=precision, probe=True))


def distance(got: Array, expected: Float64) -> float:
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return float((1 - (got * expected).sum(axis=1) / lengths).max())


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize(("precision", "backend", "limit"), [("fp32", "onnxruntime", 1e-6), ("fp16", "strict", 2e-5)])
def test_the_graph_equals_the_formula_of_its_dialect(
    tmp_path: Path, name: str, precision: str, backend: str, limit: float
) -> None:
    sample = SAMPLES[name]
    artifact = exported(sample, tmp_path, precision)
    assert isinstance(artifact.spec, NetVLADSpec)
    assert len(onnx.load(artifact.path).graph.node) <= MOST_NODES[precision]
    short = precision == "fp16" and artifact.spec.normalize_input  # FP16 refuses features as short as in the samples
    x = local_descriptors(sample.width, tiny=max(sample.tiny, 0.01) if short else sample.tiny)
    if precision == "fp16" and not artifact.spec.normalize_input:  # FP16 asks for normalised features
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
    with open_runner(artifact, backend=backend) as runner:
        x = x.astype(runner.dtype)
        got = runner.run({FEATURES: x})[DESCRIPTOR].astype(np.float64)
    assert distance(got, expected_of(sample, x.astype(np.float64))) < limit
    report = validate(Candidate(path=artifact.path))
    assert report.verdict is Verdict.PASS, report.departure


def test_every_dialect_is_here() -> None:
    assert {SAMPLES[name].dialect for name in ONE_OF_EACH} == {dialect.name for dialect in DIALECTS}
