"""The range of the features that an artifact says: both ends are right, and outside a descriptor would be wrong."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.netvlad import initialize
from netvlad_deploy.retrieval.embed_features import embed_array
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.graph_options import GraphOptions
from tests.modules import features, make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.mark.parametrize("normalize_input", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_both_ends_of_the_range_are_right(tmp_path: Path, precision: str, normalize_input: bool) -> None:
    """Features are FP32, as a caller has them: the loss of their cast to FP16 counts, too."""
    module = initialize(replace(make_module(3, 8, 1, batch_norm=False).spec, normalize_input=normalize_input), 0)
    artifact = export_onnx(module.eval(), tmp_path / "m.onnx", GraphOptions(precision=precision))
    limits, x = artifact.range, features(2, 30, 8)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    ends = [limits.largest or 0, (limits.smallest or 1e-15) * 1.001]
    with open_runner(artifact, backend="strict") as runner, open_runner(artifact, backend="oracle") as oracle:
        for end in ends:
            scaled = (x.astype(np.float64) * end).astype(np.float32)
            got = embed_array(runner, scaled, batch=2)
            assert np.abs(got - oracle.run({"features": scaled})["descriptor"]).max() < 5e-3, end
        beyond = [(x * np.float32(30)) * np.float32(ends[0])]
        beyond += [x * np.float32(0.9 * limits.smallest)] if limits.smallest else []
        for outside in beyond:
            with pytest.raises(InputError, match=r"too (small|large) for this artifact"):
                embed_array(runner, outside, batch=2)


@pytest.mark.parametrize(("options", "norm", "refused"), [
    ({"precision": "fp16"}, 1e-6, "its norm 1e-06 is under"),
    ({"precision": "fp16"}, 1e-8, "its norm 1e-08 is under"),
    ({"precision": "fp32"}, 3e19, r"e\+18 is over 5.76461e\+17"),
    ({"precision": "fp16", "input_dtype": "float32"}, 1e-8, "its norm 1e-08 is under"),
    ({"precision": "fp32"}, 1e-8, ""),
])  # fmt: skip
def test_the_range_prevents_wrong_descriptors(tmp_path: Path, options: Any, norm: float, refused: str) -> None:
    """The layer L2-normalises its input. Without the range `embed` gave descriptors off by 0.016 to 0.19."""
    spec = replace(make_module(8, 32, batch_norm=False).spec, normalize_input=True)
    artifact = export_onnx(initialize(spec, 0).eval(), tmp_path / "m.onnx", GraphOptions(**options))
    x = features(2, 30, 32)
    x = (x / np.linalg.norm(x, axis=-1, keepdims=True) * norm).astype(np.float32)
    with open_runner(artifact, backend="strict") as runner, open_runner(artifact, backend="oracle") as oracle:
        limits, expected = runner.range, oracle.run({"features": x})["descriptor"]
        if refused:
            with pytest.raises(InputError, match=refused):
                embed_array(runner, x, batch=2)
        runner.range = None
        off = np.linalg.norm(embed_array(runner, x, batch=2) - expected, axis=1).max()
        assert off > 0.01 if refused else off < 1e-3, limits


def test_a_row_far_shorter_than_its_image_is_refused_in_fp16(tmp_path: Path) -> None:
    """All of the weight on a row of norm 0.01 beside one of 1e4: FP16 has no weight so large, and would shorten it."""
    spec = replace(make_module(3, 8, batch_norm=False).spec, normalize_input=True)
    module = initialize(spec, 0).eval()
    x = np.zeros((1, 2, 8), np.float32)
    x[0, 0, 0], x[0, 1, 1] = 1e4, 0.01
    for precision, fits in (("fp32", True), ("fp16", False)):
        artifact = export_onnx(module, tmp_path / "m.onnx", GraphOptions(precision=precision), force=True)
        with open_runner(artifact, backend="strict") as runner, open_runner(artifact, backend="oracle") as oracle:
            if not fits:
                with pytest.raises(InputError, match=r"row 1 has norm 0\.01, over 32768 times less than the mean 5e"):
                    embed_array(runner, x, batch=1)
                runner.range = None
            off = np.linalg.norm(embed_array(runner, x, batch=1) - oracle.run({"features": x})["descriptor"])
            assert (off < 1e-3) == fits, off
    x[0, 1, 1] = 1  # 5,000 times
    with open_runner(artifact, backend="strict") as runner, open_runner(artifact, backend="oracle") as oracle:
        assert np.abs(embed_array(runner, x, batch=1) - oracle.run({"features": x})["descriptor"]).max() < 1e-3
