"""Relja's `.mat` files: the tensors made of MATLAB's structs, and the refused files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import load_checkpoint, read_head
from netvlad_deploy.models.dialects.relja import read_matlab
from netvlad_deploy.spec.layer import ADD
from netvlad_deploy.support.formats import is_checkpoint
from tests.models.dialects.samples import SAMPLES
from tests.models.dialects.test_dialects import errors, expected_of, local_descriptors

pytestmark = pytest.mark.export

WHITENED, BIASED = SAMPLES["relja"], SAMPLES["relja, vladv2"]
IMAGE = np.broadcast_to(np.array([123.68, 116.78, 103.94], np.float32), (6, 6, 3))


def cells(*values: Any) -> np.ndarray:
    """Return a MATLAB cell array."""
    array = np.empty((1, len(values)), dtype=object)
    array[0, :] = values
    return array


def numpy_of(tensor: torch.Tensor) -> np.ndarray:
    return np.asarray(tensor.numpy())


def layers_of(state: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """Return the layers as MatConvNet has them: convolutions (H,W,I,O), and (1,1,D,K) in the custom layer."""
    convolution = [numpy_of(state[f"backbone.0.{part}"]) for part in ("weight", "bias")]
    head = [numpy_of(state["vlad.assignment"])[None, None], numpy_of(state["vlad.negated_centres"])[None, None]]
    if "vlad.assignment_bias" in state:
        head.insert(1, numpy_of(state["vlad.assignment_bias"])[None])
    layers: list[dict[str, Any]] = [
        {"type": "conv", "name": "conv1_1", "weights": cells(convolution[0].transpose(2, 3, 1, 0), convolution[1])},
        {"type": "relu", "name": "relu1_1"},
        {"type": "normalize", "name": "preL2"},
        {"type": "custom", "name": "vlad:core", "weights": cells(*head)},
        {"type": "normalize", "name": "vlad:intranorm"},
        {"type": "custom", "name": "postL2"},
    ]
    if "pca.weight" in state:
        pca = numpy_of(state["pca.weight"])[None, None], numpy_of(state["pca.bias"])[:, None]
        layers += [{"type": "conv", "name": "WPCA", "weights": cells(*pca)}, {"type": "custom", "name": "finalL2"}]
    return layers


def save(folder: Path, layers: list[dict[str, Any]], **meta: Any) -> Path:
    normalization = {"averageImage": IMAGE} | meta
    net = {"layers": cells(*layers), "meta": {"normalization": normalization}}
    scipy.io.savemat(folder / "net.mat", {"net": net})
    return folder / "net.mat"


@pytest.mark.parametrize("name", ["relja", "relja, vladv2"])
def test_a_file_of_matlab_equals_the_formula(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    path = save(tmp_path, layers_of(sample.state))
    assert is_checkpoint(path)
    x = local_descriptors(sample.width)
    head = read_head(path)
    assert (head.dialect, head.spec.epsilon) == ("relja", ADD)
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10
    assert load_checkpoint(path).spec == head.spec


def test_the_backbone_and_the_mean_are_there_in_torchs_layout(tmp_path: Path) -> None:
    state = read_matlab(save(tmp_path, layers_of(WHITENED.state)))
    assert set(state) == {*WHITENED.state} - {"backbone.2.weight"}
    for name, tensor in state.items():
        assert torch.equal(tensor, WHITENED.state[name]), name
        assert tensor.dtype is torch.float32
    assert state["average_image"].tolist() == pytest.approx((123.68, 116.78, 103.94))
    assert "average_image" not in read_matlab(save(tmp_path, layers_of(BIASED.state), averageImage=np.zeros((0, 3))))


def test_a_mean_may_be_a_single_colour(tmp_path: Path) -> None:
    path = save(tmp_path, layers_of(BIASED.state), averageImage=np.arange(3.0).reshape(1, 1, 3))
    assert read_matlab(path)["average_image"].tolist() == [0.0, 1.0, 2.0]


def without(layers: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [layer for layer in layers if layer["name"] != name]


@pytest.mark.parametrize("name", ["preL2", "vlad:intranorm", "postL2", "finalL2"])
def test_another_head_is_refused_by_its_layers(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        InputError, match=r"the head is .*, expected preL2, vlad:core, vlad:intranorm, postL2, and WPCA"
    ):
        read_matlab(save(tmp_path, without(layers_of(WHITENED.state), name)))


def test_a_layer_with_other_weights_is_refused(tmp_path: Path) -> None:
    layers = layers_of(WHITENED.state)
    layers[3]["weights"] = cells(np.ones((1, 1, 9, 4)), "text")
    with pytest.raises(InputError, match="layer vlad:core has 2 weights, expected 2 or 3 arrays"):
        read_matlab(save(tmp_path, layers))
    layers = layers_of(WHITENED.state)
    layers[0]["weights"] = cells(np.ones((3, 3, 4)), np.ones(4))
    with pytest.raises(InputError, match=r"layer conv1_1 has weights of shape \(3, 3, 4\), expected \(H, W, I, O\)"):
        read_matlab(save(tmp_path, layers))


def test_layers_that_are_matlab_objects_are_refused_with_the_cure(tmp_path: Path) -> None:
    """SciPy gives an object without its properties."""
    layers = layers_of(WHITENED.state)
    layers[3] = {"s0": "MCOS", "object": np.ones(3)}
    with pytest.raises(InputError, match=r"has layers that are MATLAB objects: run net.layers\{i\}= struct"):
        read_matlab(save(tmp_path, layers))


@pytest.mark.parametrize(
    "content", [{"x": np.ones(3)}, {"x\n": np.ones(3)}, {"net": np.ones(3)}, {"net": {"layers": np.ones(2)}}, {}]
)
def test_a_mat_file_of_something_else_is_refused_in_one_line(tmp_path: Path, content: dict[str, Any]) -> None:
    scipy.io.savemat(tmp_path / "other.mat", content)
    with pytest.raises(InputError, match=r"other.mat is no NetVLAD of MatConvNet: .*vlad:core, found (x|net|nothing)$"):
        read_matlab(tmp_path / "other.mat")


@pytest.mark.parametrize("keep", [0, 3, 200, 1500])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path, layers_of(WHITENED.state))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"net.mat is (empty|text|damaged or cut short \(|no MATLAB file of v)"):
        read_head(path)


def test_random_bytes_and_newer_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.mat"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(InputError, match="no MATLAB file"):
        read_head(path)
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(64))
    with pytest.raises(InputError, match=r"is of MATLAB 7.3: save it with -v7$"):
        read_head(path)
