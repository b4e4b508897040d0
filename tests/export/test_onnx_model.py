"""ONNX files of heads: operators, axes, opsets, equal bytes, the reference file, and the refusals."""

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ExportError, FoldError, OutputError, UsageError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.graph_options import GraphOptions
from tests.modules import make_module

pytestmark = pytest.mark.export

NEWEST = onnx.defs.onnx_opset_version()


def operators(artifact: OnnxArtifact) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(artifact.path).graph.node)


def axes(value: Any) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("masked", "most"), [(False, 28), (True, 31)])
def test_census_of_the_graph(tmp_path: Path, masked: bool, most: int) -> None:
    found = operators(export_onnx(make_module(64, 512, 8), tmp_path / "m.onnx", GraphOptions(masked=masked)))
    assert found.total() <= most
    assert found["MatMul"] == 2
    assert found["Softmax"] == 1
    assert not set(found) & {"BatchNormalization", "ScatterND", "Shape", "Expand", "Loop", "If", "Scan"}


def test_axes_names_and_probes(exported: OnnxArtifact, masked: OnnxArtifact) -> None:
    graph = onnx.load(exported.path).graph
    assert {value.name: axes(value) for value in (*graph.input, *graph.output)} == {
        "features": ["batch", "num_features", 16],
        "descriptor": ["batch", 96],
        "soft_assignment": ["batch", "num_features", 6],
        "residual_sum": ["batch", 6, 16],
    }
    graph = onnx.load(masked.path).graph
    assert [(value.name, axes(value)) for value in graph.input][1] == ("mask", ["batch", "num_features"])


@pytest.mark.parametrize("opset", [17, 18, 21, NEWEST])
def test_every_opset_is_the_one_asked_for_and_passes_the_full_check(tmp_path: Path, opset: int) -> None:
    artifact = export_onnx(make_module(3, 8, 1), tmp_path / "m.onnx", GraphOptions(opset=opset))
    model = onnx.load(artifact.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert load_artifact(artifact.path) == artifact


@pytest.mark.parametrize("opset", [16, NEWEST + 1])
def test_an_unknown_opset_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} is outside 17 to {NEWEST}"):
        export_onnx(make_module(3, 8), tmp_path / "m.onnx", GraphOptions(opset=opset))
    assert not list(tmp_path.iterdir())


EXPORT_ONCE = """
import sys
from pathlib import Path
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import initialize
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.spec.graph_options import GraphOptions
spec = NetVLADSpec(num_clusters=3, feature_size=8, num_ghost_clusters=1)
export_onnx(initialize(spec, 0), Path(sys.argv[1]), GraphOptions(masked=True, probe=True))
"""


def test_the_same_input_gives_the_same_bytes_in_another_process_and_folder(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b" / "deeper"]
    for seed, folder in enumerate(folders):
        folder.mkdir(parents=True)
        subprocess.run(
            [sys.executable, "-c", EXPORT_ONCE, str(folder / "m.onnx")],
            check=True,
            env={"PYTHONHASHSEED": str(seed), "PATH": ""},
        )
    for name in ("m.onnx", "m.onnx.json", "m.reference.npz"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_the_file_carries_no_trace_of_the_machine(exported: OnnxArtifact) -> None:
    model = onnx.load(exported.path)
    del model.graph.initializer[:]
    text = model.SerializeToString().decode("latin-1")
    assert not re.search(r"\.py|site-packages|/home|/root|/tmp|stack_trace|torch", text)
    assert {entry.key for entry in model.metadata_props} == {"netvlad_deploy.spec", "netvlad_deploy.parent"}


def test_weights_are_inside(exported: OnnxArtifact) -> None:
    model = onnx.load(exported.path, load_external_data=False)
    assert {tensor.name for tensor in model.graph.initializer} >= {"assignment_weight", "assignment_bias", "centroids"}
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_clamps_survive_the_exporter(exported: OnnxArtifact) -> None:
    values = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(exported.path).graph.initializer]
    constants = {float(value[0]) for value in values if value.shape == (1,) and value.dtype == np.float32}
    assert constants == {float(np.float32(1e-12)), float(np.float32(1e-37))}


def test_the_reference_file_holds_unfolded_parameters(exported: OnnxArtifact, module: NetVLAD) -> None:
    with np.load(exported.reference_path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert set(arrays) == {*module.state_dict(), "batch_norm.eps", "reference_file"}
    for name, tensor in module.state_dict().items():
        assert np.array_equal(arrays[name], tensor.numpy()), name


def test_training_mode_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FoldError):
        export_onnx(make_module(3, 8).train(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        export_onnx(make_module(3, 8), tmp_path / "none" / "m.onnx")


def test_a_graph_that_breaks_a_promise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = onnx_model._trace

    def with_batch_norm(*arguments: Any) -> Any:
        graph = trace(*arguments)
        graph.model.graph.node[0].op_type = "BatchNormalization"
        return graph

    monkeypatch.setattr(onnx_model, "_trace", with_batch_norm)
    with pytest.raises(ExportError, match="a graph with BatchNormalization"):
        export_onnx(make_module(3, 8), tmp_path / "m.onnx")

    def with_another_opset(*arguments: Any) -> Any:
        folded, options = arguments
        return trace(folded, replace(options, opset=19))

    monkeypatch.setattr(onnx_model, "_trace", with_another_opset)
    with pytest.raises(ExportError, match="asked for opset 18, torch wrote"):
        export_onnx(make_module(3, 8), tmp_path / "m.onnx")


def test_a_half_precision_checkpoint_exports_in_fp32(tmp_path: Path) -> None:
    artifact = export_onnx(make_module(3, 8).half(), tmp_path / "m.onnx")
    tensors = onnx.load(artifact.path).graph.initializer
    assert {tensor.data_type for tensor in tensors} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert torch.finfo(torch.float16).bits == 16
