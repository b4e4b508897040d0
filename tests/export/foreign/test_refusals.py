"""A file that is no plain NetVLAD, or cannot be looked through, is refused in one line that says what was found."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.export.foreign import read as reading
from netvlad_deploy.export.foreign.read import read_foreign
from netvlad_deploy.export.foreign.sites import find_site
from netvlad_deploy.parity.adoption import prove_head
from netvlad_deploy.spec.verdict import Verdict
from tests.export.foreign.graphs import Broadcast, export_by_torch, loaded, saved, tensorflow_graph

pytestmark = [pytest.mark.export, pytest.mark.ort]
K, D = 4, 8


class Twice(nn.Module):
    """Two layers: joined in one descriptor, or one output each."""

    def __init__(self, *, joined: bool) -> None:
        super().__init__()
        self.first, self.second, self.joined = Broadcast(K, D), Broadcast(K, D), joined

    def forward(self, x: Tensor) -> Any:
        found = self.first(x), self.second(x)
        return torch.cat(found, dim=1) if self.joined else found


class Burst(Broadcast):
    """Local descriptors that are like others count less."""

    def forward(self, x: Tensor) -> Tensor:
        weights = (functional.normalize(x, dim=2) @ functional.normalize(x, dim=2).transpose(1, 2)).sigmoid().sum(2)
        a = (x @ self.weight).softmax(-1) / weights.unsqueeze(-1)
        residual = (a.transpose(1, 2) @ x).transpose(1, 2) - a.sum(1, keepdim=True) * self.centres
        return functional.normalize(functional.normalize(residual, dim=1).flatten(1), dim=1)


class Gated(Broadcast):
    """What follows the whitening is no L2 normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sigmoid()


class Inside(Broadcast):
    """Assignments of long local descriptors do not count, which no usual input shows."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).softmax(-1)
        a = torch.where(x.norm(dim=2, keepdim=True) > 2e4, torch.zeros_like(a), a)
        residual = (a.transpose(1, 2) @ x).transpose(1, 2) - a.sum(1, keepdim=True) * self.centres
        return functional.normalize(functional.normalize(residual, dim=1).flatten(1), dim=1)


class Positions(Broadcast):
    """Assignments of positions beyond a thousand do not count, which no usual input shows."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).softmax(-1) * (torch.arange(x.shape[1]) < 1000).float()[None, :, None]
        residual = (a.transpose(1, 2) @ x).transpose(1, 2) - a.sum(1, keepdim=True) * self.centres
        return functional.normalize(functional.normalize(residual, dim=1).flatten(1), dim=1)


class Floored(Broadcast):
    """Projected descriptors are divided by at least 0.05, which usual ones do not show."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(super().forward(x), dim=1, eps=0.05)


class Both(Broadcast):
    """A descriptor and its whitening are outputs."""

    def forward(self, x: Tensor) -> Any:
        vlad = super().forward(x)
        return vlad, functional.normalize(vlad @ self.projection, dim=1)

    projection = torch.eye(K * D)[:, :6]


class Plain(nn.Module):
    """A classifier, which has a softmax and no NetVLAD."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        classes: Tensor = self.map(x.mean(1)).softmax(-1)
        return classes


class NotNormalised(Broadcast):
    """No intra-normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).softmax(-1)
        residual = (a.transpose(1, 2) @ x).transpose(1, 2) - a.sum(1, keepdim=True) * self.centres
        return functional.normalize(residual.flatten(1), dim=1)


class OtherAxis(Broadcast):
    """The softmax is over the positions."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).softmax(1)
        residual = (a.transpose(1, 2) @ x).transpose(1, 2) - a.sum(1, keepdim=True) * self.centres
        return functional.normalize(functional.normalize(residual, dim=1).flatten(1), dim=1)


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two in one": (lambda: Twice(joined=True), r"it has 2 NetVLADs in one descriptor, \S+, \S+, expected one"),
    "two": (lambda: Twice(joined=False), r"it has 2 NetVLADs, \S+, \S+: choose one with --head NAME"),
    "burst": (lambda: Burst(K, D), "weighs local descriptors by a Sigmoid: burst weighting, as in VLAD-BuFF"),
    "gated": (lambda: Gated(K, D, size=6, l2=False), "the projection it computes Sigmoid, expected an L2"),
    "inside": (lambda: Inside(K, D), "it computes Greater, Where, by which it may treat some inputs in another way"),
    "positions": (lambda: Positions(K, D), "it computes Less, Range, by which it may treat some inputs in another way"),
    "floored": (lambda: Floored(K, D, size=6, l2=False), "kept from 0 by 0.05, expected 1e-05 at most"),
    "both": (lambda: Both(K, D), r"its NetVLAD leads to 2 outputs, vlad, \S+: choose one with --head NAME"),
    "none": (Plain, "it has no NetVLAD: .* adopt --no-head takes the file as it is"),
    "not normalised": (lambda: NotNormalised(K, D), "differ in length by .* expected intra-normalisation"),
    "other axis": (lambda: OtherAxis(K, D), "computes something else: .* cases differ"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_network_that_is_no_plain_netvlad_is_refused(name: str, tmp_path: Path) -> None:
    build, words = MODULES[name]
    torch.manual_seed(0)
    model = read_foreign(export_by_torch(build(), tmp_path / "m.onnx", torch.randn(2, 6, D)))
    with pytest.raises(InputError, match=words):
        prove_head(model, find_site(model))


def test_one_of_two_heads_is_chosen_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Twice(joined=False)
    model = read_foreign(export_by_torch(module, tmp_path / "m.onnx", torch.randn(2, 6, D)))
    found = prove_head(model, find_site(model, name="/second/Softmax"))
    assert np.array_equal(found.layer.tensors["clusters"], module.second.weight.detach().numpy())
    with pytest.raises(InputError, match="it has no NetVLAD 'third', but /first/Softmax, /second/Softmax"):
        find_site(model, name="third")


def test_one_of_two_outputs_of_a_head_is_chosen_by_its_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = export_by_torch(Both(K, D), tmp_path / "m.onnx", torch.randn(2, 6, D))
    model = read_foreign(path)
    names = [each.name for each in model.proto.graph.output]
    plain, whitened = (prove_head(model, find_site(model, name=name)).layer.spec for name in names)
    assert (plain.projection, whitened.descriptor_size) == (None, 6)


def _mask(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["b", "n"]))


def _integers(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def _opset(version: int) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.opset_import[0].version = version

    return change


def _custom(model: Any) -> None:
    model.graph.node[0].domain = "com.example"


def _loop(model: Any) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["y"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)],
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))


def _noise(model: Any) -> None:
    model.graph.node.append(helper.make_node("RandomUniformLike", ["x"], ["noise"]))


def _dropout(model: Any) -> None:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("Dropout", ["x", "", "yes"], ["dropped"]))


def _empty(model: Any) -> None:
    del model.graph.node[:]


def _ours(model: Any) -> None:
    model.metadata_props.add(key="netvlad_deploy.spec", value="{}")


def _external(location: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        tensor = next(each for each in model.graph.initializer if each.name == "w")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a mask": (_mask, r"takes 2 inputs, x \(float\), mask \(int64\), expected one"),
    "integers": (_integers, r"takes x \(int64\), expected float or float16"),
    "opset 8": (_opset(8), "has operator set 8, expected 9 to 23: export it again"),
    "opset 24": (_opset(24), "has operator set 24, expected 9 to 23"),
    "custom": (_custom, r"has custom operators, com\.example\.Mul, expected those of ONNX alone"),
    "control flow": (_loop, "has control flow, If, expected a plain graph"),
    "noise": (_noise, "has RandomUniformLike, at random or in training mode"),
    "training": (_dropout, "has Dropout, at random or in training mode, .* call eval"),
    "no node": (_empty, "has no operator"),
    "our own": (_ours, "was made by this package: build, validate and embed take it as it is"),
    "data missing": (_external("weights.bin"), r"needs its external data 'weights\.bin', which is missing"),
    "data outside": (_external("../weights.bin"), r"external data outside its folder, '\.\./weights\.bin'"),
    "data anywhere": (_external("/etc/hostname"), "external data outside its folder"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_cannot_be_looked_through_is_refused(name: str, tmp_path: Path) -> None:
    change, words = CHANGES[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4 * D * K))
    model = loaded(tensorflow_graph(tmp_path / "in" / "tf.onnx", K, D, seed=0))
    change(model)
    path = saved(model, tmp_path / "in" / "tf.onnx")
    with pytest.raises(InputError, match=words) as refused:
        read_foreign(path)
    assert str(path) in str(refused.value)


def test_a_link_to_external_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4 * D * K))
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    model = loaded(tensorflow_graph(tmp_path / "in" / "tf.onnx", K, D, seed=0))
    _external("weights.bin")(model)
    with pytest.raises(InputError, match="external data outside its folder"):
        read_foreign(saved(model, tmp_path / "in" / "tf.onnx"))


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    path = tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=0)
    model = loaded(path)
    (weight,) = (each for each in model.graph.initializer if each.name == "w")
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    _external("weights.bin")(model)
    found = read_foreign(saved(model, path))
    expected = np.random.default_rng(0).standard_normal((D, K)).astype(np.float32)
    assert np.array_equal(find_site(found).logits.weight, expected)


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", bytes(100), b"\x08\x08\x3a\x05abc"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"m\.onnx (is no ONNX model|has no operator|has operator set 0|is damaged)"):
        read_foreign(tmp_path / "m.onnx")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=0)
    monkeypatch.setattr(reading, "MAX_MODEL_BYTES", 1000)
    with pytest.raises((InputError, ArtifactError), match="has more than 1000 bytes"):
        read_foreign(path)


def test_half_precision_is_widened_and_said(tmp_path: Path) -> None:
    path = tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=0)
    model = loaded(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name != "eps":
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    found = read_foreign(saved(model, path))
    assert found.notes == ("float16 tensors of the file were widened to float32",)
    assert prove_head(found, find_site(found)).layer.spec.num_clusters == K


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_refused_in_words_or_read(tmp_path: Path, seed: int) -> None:
    """A few bytes are changed, cut out or added: whatever comes of it is an InputError, or a NetVLAD that is proved."""
    random = np.random.default_rng(seed)
    content = bytearray(tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=0).read_bytes())
    for _ in range(int(random.integers(1, 4))):
        place, kind = int(random.integers(len(content))), int(random.integers(3))
        if kind == 0:
            content[place] = int(random.integers(256))
        elif kind == 1:
            del content[place : place + int(random.integers(1, 30))]
        else:
            content[place:place] = random.bytes(4)
    (tmp_path / "tf.onnx").write_bytes(content)
    with contextlib.suppress(InputError):
        model = read_foreign(tmp_path / "tf.onnx")
        assert prove_head(model, find_site(model)).proof.verdict is Verdict.PASS
