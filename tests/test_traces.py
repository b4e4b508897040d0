"""A graph that torch has traced is used again for modules that differ in weights alone, and gives the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netvlad_deploy.export.fold_head import FoldedNetVLAD
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.spec.graph_options import GraphOptions
from tests.modules import make_module
from tests.pipelines import tiny_pipeline
from tests.traces import traced_once

pytestmark = [pytest.mark.export, pytest.mark.usefixtures("traced_anew")]

Count = Callable[..., int]


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Count:
    """Return a function that exports a module to files of the same bytes, and counts how often torch traced so far."""
    real, calls = torch.onnx.export, []
    (tmp_path / "traces").mkdir()

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", traced_once(counted, tmp_path / "traces"))

    def exported(module: NetVLAD | Pipeline, options: GraphOptions | None = None) -> int:
        export_onnx(module, tmp_path / "m.onnx", options, force=True)
        return len(calls)

    return exported


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("make", [lambda: make_module(3, 8, 1), tiny_pipeline])
def test_the_second_export_is_not_traced_and_has_the_same_bytes(
    count: Count, tmp_path: Path, make: Callable[[], NetVLAD | Pipeline], precision: str
) -> None:
    seen = []
    for _ in range(2):
        assert count(make(), GraphOptions(precision=precision)) == 1
        seen.append({path.name: path.read_bytes() for path in tmp_path.glob("m.*")})
    assert seen[0] == seen[1]
    assert set(seen[0]) == {"m.onnx", "m.onnx.json", "m.reference.npz"}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_weights_in_a_graph_are_a_new_export(count: Count, tmp_path: Path, precision: str) -> None:
    options = GraphOptions(precision=precision)
    assert count(make_module(3, 8, 1, seed=0), options) == 1
    assert count(make_module(3, 8, 1, seed=1), options) == 1
    shared = (tmp_path / "m.onnx").read_bytes()
    for kept in (tmp_path / "traces").iterdir():
        kept.unlink()
    assert count(make_module(3, 8, 1, seed=1), options) == 2
    assert (tmp_path / "m.onnx").read_bytes() == shared


def test_a_difference_that_torch_sees_is_traced_anew(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight of zeros alone, an option, another forward pass under the same name, and a closure."""
    assert count(make_module(3, 8)) == 1
    other = make_module(3, 8)
    other.clusters2.data.zero_()
    assert count(other) == 2
    assert count(make_module(3, 8), GraphOptions(probe=True)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(FoldedNetVLAD, "_centre", lambda folded, _: folded.centroids)
        assert count(make_module(3, 8)) == 4
        assert count(make_module(3, 8)) == 5
    assert count(make_module(3, 8)) == 5
    pipeline, added = tiny_pipeline(), torch.tensor(1.0)
    assert count(pipeline) == 6

    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + added

    pipeline.backbone = nn.Sequential(pipeline.backbone, Shifted()).eval()
    assert count(pipeline) == 7
    assert count(pipeline) == 8
