"""Layers that normalise their input, have a bias, or flatten the other way: parity holds, and every fault is seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.equations import by_cluster
from netvlad_deploy.oracle.reference_file import load_reference, reference_arrays
from netvlad_deploy.parity.heads import ParityReport, compare
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, CLUSTERS_LAST, FLATTENINGS, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import npz_content
from netvlad_deploy.support.files import stage_files
from netvlad_deploy.workflow.validate import validate
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]

K, D = 8, 32
SPEC = NetVLADSpec(
    num_clusters=K,
    feature_size=D,
    num_ghost_clusters=2,
    batch_norm=False,
    assignment_bias=True,
    normalize_input=True,
    flatten=CLUSTERS_FIRST,
)
PRECISIONS = (GraphOptions(), GraphOptions(precision="fp16"), GraphOptions(precision="fp16", wide_logits=True))


def make(spec: NetVLADSpec = SPEC, alpha: float = 10, seed: int = 0) -> NetVLAD:
    """Return a sharp layer with these conventions."""
    module = NetVLAD.of(spec).eval()
    generator = torch.Generator().manual_seed(seed)
    centroids = torch.nn.functional.normalize(torch.randn(K + 2, D, generator=generator)) * 0.9
    module.clusters.data = 2 * alpha * centroids.T
    module.clusters2.data = centroids[:K].T[None].contiguous()
    if module.assignment_bias is not None:
        module.assignment_bias.data = -alpha * (centroids**2).sum(1) + torch.linspace(-1, 1, K + 2)
    return module


def against_its_oracle(artifact: OnnxArtifact) -> ParityReport:
    backend = "strict" if artifact.precision != "fp32" else None
    with open_runner(artifact, backend=backend) as runner:
        return compare(runner, load_reference(artifact.reference_path))


def with_reference_of(artifact: OnnxArtifact, other: NetVLAD) -> OnnxArtifact:
    """Return the artifact beside the oracle's file of another layer: the fault is in the graph, then."""
    state = {name: tensor.numpy() for name, tensor in other.state_dict().items()}
    with stage_files(force=True) as staging:
        staging.write(artifact.reference_path, npz_content(reference_arrays(state, other.spec)))
    return replace(artifact, spec=other.spec)


@pytest.mark.parametrize("options", PRECISIONS, ids=lambda options: options.precision_name)
@pytest.mark.parametrize("flatten", FLATTENINGS)
@pytest.mark.parametrize("normalize_input", [False, True])
def test_parity_holds(tmp_path: Path, options: GraphOptions, flatten: str, normalize_input: bool) -> None:
    spec = replace(SPEC, flatten=flatten, normalize_input=normalize_input)
    artifact = export_onnx(make(spec), tmp_path / "m.onnx", replace(options, probe=True, masked=True))
    report = against_its_oracle(artifact)
    assert report.verdict is Verdict.PASS, report.departure
    products = [node for node in onnx.load(artifact.path).graph.node if node.op_type == "MatMul"]
    assert products[-1].input[1] == "features"  # no normalised copy of them, which would be the largest tensor


def _shift_a_centroid(module: NetVLAD) -> NetVLAD:
    module.clusters2.data[0, :, 3] *= 1.01
    return module


def _shift_a_bias(module: NetVLAD) -> NetVLAD:
    assert module.assignment_bias is not None
    module.assignment_bias.data[2] += 0.1
    return module


def _no_normalisation(module: NetVLAD) -> NetVLAD:
    other = make(replace(module.spec, normalize_input=False))
    other.load_state_dict(module.state_dict())
    return other


FAULTS: dict[str, Callable[[NetVLAD], NetVLAD]] = {
    "a centroid 1 % off": _shift_a_centroid,
    "a bias 0.1 off": _shift_a_bias,
    "input not normalised": _no_normalisation,
}


@pytest.mark.parametrize("options", PRECISIONS[:2], ids=lambda options: options.precision_name)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails(tmp_path: Path, options: GraphOptions, fault: str) -> None:
    """With probes: a bias is nearly a factor on one cluster's assignments, which the descriptor hides in FP16."""
    artifact = export_onnx(FAULTS[fault](make()), tmp_path / "m.onnx", replace(options, probe=True))
    assert against_its_oracle(with_reference_of(artifact, make())).verdict is Verdict.FAIL


def test_the_other_flattening_fails_and_a_fault_is_found_in_its_cluster(tmp_path: Path) -> None:
    artifact = export_onnx(make(replace(SPEC, flatten=CLUSTERS_LAST)), tmp_path / "m.onnx")
    assert against_its_oracle(with_reference_of(artifact, make())).verdict is Verdict.FAIL
    artifact = export_onnx(_shift_a_centroid(make()), tmp_path / "n.onnx", GraphOptions(probe=True))
    report = against_its_oracle(with_reference_of(artifact, make()))
    assert report.departure is not None
    assert report.departure.clusters == (3,)


def test_a_descriptor_is_split_as_it_was_flattened() -> None:
    parts = np.arange(2 * K * D, dtype=np.float64).reshape(2, K, D)
    assert np.array_equal(by_cluster(parts.reshape(2, -1), SPEC), parts)
    last = replace(SPEC, flatten=CLUSTERS_LAST)
    assert np.array_equal(by_cluster(parts.swapaxes(1, 2).reshape(2, -1), last), parts)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_norm_of_a_local_descriptor_is_of_no_matter(tmp_path: Path, scale: float) -> None:
    artifact = export_onnx(make(), tmp_path / "m.onnx", GraphOptions(precision="fp16"))
    assert artifact.range.step_at(scale) == artifact.range.logit_step
    x = features(2, 30, D, scale=scale)
    with open_runner(artifact, backend="strict") as runner:
        once = runner.run({"features": x.astype(np.float16)})["descriptor"]
        scaled = runner.run({"features": (x * 4).astype(np.float16)})["descriptor"]
    assert np.abs(once - scaled).max() < 2e-3


def test_the_torch_backend_keeps_the_conventions(tmp_path: Path) -> None:
    artifact = export_onnx(make(), tmp_path / "m.onnx")
    assert validate(Candidate(path=artifact.path, backend="torch")).verdict is Verdict.PASS
