"""A failing candidate is told in which tensor, and in which clusters, it first departs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.heads import compare
from netvlad_deploy.parity.localise import ADVICE, AGREES, HIDDEN, Departure
from netvlad_deploy.report.text import departure_line
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import AGGREGATE, STAGES
from netvlad_deploy.support.arrays import Arrays
from tests.modules import make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]

PRECISIONS = (GraphOptions(), GraphOptions(precision="fp16"))
Fault = Callable[[FoldedNetVLAD], None]


def wrong_bias(folded: FoldedNetVLAD) -> None:
    assert folded.assignment_bias is not None
    folded.assignment_bias[2] += 0.5


def swapped_columns(folded: FoldedNetVLAD) -> None:
    order = [0, 4, 2, 3, 1, 5, 6, 7]
    folded.assignment_weight.copy_(folded.assignment_weight[:, order])
    if folded.assignment_scale is not None:
        folded.assignment_scale.copy_(folded.assignment_scale[order])


def ghost_last(folded: FoldedNetVLAD) -> None:
    straight = folded._soft_assignment

    def shifted(logits: Tensor, mask: Tensor | None) -> Tensor:
        return straight(torch.cat([logits[..., 2:], logits[..., :2]], -1), mask)

    folded._soft_assignment = shifted  # type: ignore[method-assign]


def wrong_centroid(folded: FoldedNetVLAD) -> None:
    folded.centroids[3] *= 0.9


def clusters_first(folded: FoldedNetVLAD) -> None:
    straight = folded._normalize

    def flattened(mean_residual: Tensor, assignment_sum: Tensor) -> Tensor:
        width, clusters = mean_residual.shape[2], mean_residual.shape[1]
        return straight(mean_residual, assignment_sum).reshape(-1, width, clusters).transpose(1, 2).flatten(1)

    folded._normalize = flattened  # type: ignore[method-assign]


def departure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: GraphOptions, fault: Fault) -> Departure:
    def broken(module: NetVLAD, options: GraphOptions) -> FoldedNetVLAD:
        folded = fold(module, options)
        fault(folded)
        return folded

    monkeypatch.setattr(onnx_model, "fold", broken)
    artifact = export_onnx(make_module(6, 32, 2), tmp_path / "m.onnx", options)
    with open_runner(artifact, backend="strict") as runner:
        report = compare(runner, load_reference(artifact.reference_path))
    assert report.departure is not None
    return report.departure


@pytest.mark.parametrize("options", PRECISIONS, ids=lambda options: options.precision_name)
@pytest.mark.parametrize(
    ("fault", "tensor", "clusters"),
    [
        (wrong_bias, "assignment_logits", {2}),
        (swapped_columns, "assignment_logits", {1, 4}),
        (ghost_last, "soft_assignment", set(range(6))),
        (wrong_centroid, "mean_residual", {3}),
        (clusters_first, "descriptor", set(range(6))),
    ],
)
def test_the_first_wrong_tensor_and_its_clusters_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: GraphOptions,
    fault: Fault,
    tensor: str,
    clusters: set[int],
) -> None:
    found = departure(tmp_path, monkeypatch, options, fault)
    assert found.tensor == tensor
    assert set(found.clusters) >= clusters
    assert found.error > found.tolerance
    assert found.advice == ADVICE[tensor]


def test_one_wrong_centroid_is_one_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert departure(tmp_path, monkeypatch, GraphOptions(), wrong_centroid).clusters == (3,)


class Outside(Runner):
    """A runner that shows its outputs alone, as an engine does."""

    def __init__(self, inner: Runner) -> None:
        super().__init__(inner.name, inner.spec, inputs=inner.inputs, outputs=inner.outputs, dtype=inner.dtype)
        self._inner = inner

    def _run(self, feeds: Arrays) -> Arrays:
        return self._inner.run(feeds)


@pytest.mark.parametrize(("probe", "tensor"), [(False, "descriptor"), (True, "soft_assignment")])
def test_an_engine_shows_no_more_than_its_outputs(tmp_path: Path, probe: bool, tensor: str) -> None:
    module = make_module(6, 32, 2)
    right = export_onnx(module, tmp_path / "right.onnx")
    module.clusters.data[:, 1] *= 1.1
    wrong = export_onnx(module, tmp_path / "wrong.onnx", GraphOptions(probe=probe))
    with open_runner(wrong) as runner:
        found = compare(Outside(runner), load_reference(right.reference_path)).departure
    assert found is not None
    assert found.tensor == tensor
    assert (found.advice == HIDDEN) is not probe


def test_a_wrong_reference_is_not_blamed_on_the_candidate(tmp_path: Path) -> None:
    module = make_module(6, 32, 2)
    right = export_onnx(module, tmp_path / "right.onnx")
    module.clusters2.data[0, :, 1] *= 1.1
    wrong = export_onnx(module, tmp_path / "wrong.onnx")
    with open_runner(right) as runner, open_runner(wrong) as against:
        found = compare(runner, load_reference(right.reference_path), against=against).departure
    assert found is not None
    assert (found.tensor, found.advice) == ("", AGREES)
    assert departure_line(found).startswith("first departure: none.")


def test_the_line_says_tensor_case_clusters_and_advice() -> None:
    found = Departure(
        case="typical", tensor="mean_residual", clusters=tuple(range(20)), error=0.25, tolerance=1e-3, advice="look"
    )
    assert departure_line(found) == (
        "first departure: mean_residual of 'typical', error 2.5e-01 where 1.0e-03 is tolerated, "
        "in 20 clusters (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 ...). look"
    )


def test_every_stage_has_its_advice() -> None:
    assert set(ADVICE) == {*STAGES, AGGREGATE}
