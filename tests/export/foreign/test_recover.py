"""A NetVLAD is found in whichever way it was written, and its parameters are those of its maker, bit by bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.foreign import recover as recovering
from netvlad_deploy.export.foreign.read import read_foreign
from netvlad_deploy.export.foreign.recover import Recovered
from netvlad_deploy.export.foreign.sites import find_site
from netvlad_deploy.parity import adoption
from netvlad_deploy.parity.adoption import ForeignHead, prove_head
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, CLUSTERS_LAST, RSQRT, NetVLADSpec, Projection
from tests.export.foreign.graphs import Broadcast, Looped, export_by_torch, loaded, saved, tensorflow_graph

pytestmark = [pytest.mark.export, pytest.mark.ort]
K, D = 5, 12
LOOP = NetVLADSpec(
    num_clusters=K, feature_size=D, batch_norm=False, assignment_bias=True, normalize_input=True, flatten=CLUSTERS_FIRST
)
BROADCAST = NetVLADSpec(num_clusters=K, feature_size=D, num_ghost_clusters=2)
WAYS: dict[str, tuple[Callable[[], Looped | Broadcast], tuple[int, ...], dict[str, object], NetVLADSpec]] = {
    "loop": (lambda: Looped(K, D, bias=True), (1, D, 2, 3), {}, LOOP),
    "loop, fixed": (lambda: Looped(K, D, bias=True), (1, D, 2, 3), {"dynamic": False}, LOOP),
    "loop, no bias": (lambda: Looped(K, D, rank=3), (2, 6, D), {"opset": 11}, replace(LOOP, assignment_bias=False)),
    "loop, raw": (
        lambda: Looped(K, D, bias=True, pre_l2=False), (1, D, 2, 3), {}, replace(LOOP, normalize_input=False),
    ),
    "loop, dynamo": (lambda: Looped(K, D, bias=True, rank=3), (2, 6, D), {"dynamo": True, "opset": 18}, LOOP),
    "BxDxKxN": (lambda: Broadcast(K, D, ghosts=2), (2, 6, D), {}, BROADCAST),
    "BxKxDxN": (lambda: Broadcast(K, D, ghosts=2, order="BKND"), (2, 6, D), {}, BROADCAST),
    "x + C, k*D+d": (
        lambda: Broadcast(K, D, ghosts=2, plus=True, last=False), (2, 6, D), {},
        replace(BROADCAST, flatten=CLUSTERS_FIRST),
    ),
    "whitening": (
        lambda: Broadcast(K, D, ghosts=2, size=7), (2, 6, D), {}, replace(BROADCAST, projection=Projection(size=7)),
    ),
    "square projection": (
        lambda: Broadcast(K, D, batch_norm=False, size=K * D, l2=False), (2, 6, D), {},
        NetVLADSpec(num_clusters=K, feature_size=D, batch_norm=False, projection=Projection(size=K * D, l2=False)),
    ),
}  # fmt: skip
"""By its name, a module, the shape of an example, how it is exported, and the spec that it must be recovered with."""


class OneImage(Broadcast):
    """Local descriptors (N,D) to one descriptor."""

    def forward(self, x: Tensor) -> Tensor:
        a = (x @ self.weight).log_softmax(-1).exp()
        residual = x.T @ a - a.sum(0) * self.centres
        return nn.functional.normalize(nn.functional.normalize(residual, dim=0).flatten(), dim=0)


def found_in(path: Path) -> ForeignHead:
    model = read_foreign(path)
    return prove_head(model, find_site(model))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    example = torch.zeros(1, D, 2, 3)
    return export_by_torch(Looped(K, D, bias=True), tmp_path_factory.mktemp("loop") / "loop.onnx", example)


@pytest.mark.parametrize("name", WAYS)
def test_the_layer_is_recovered_however_it_is_written(name: str, tmp_path: Path) -> None:
    build, shape, settings, spec = WAYS[name]
    torch.manual_seed(len(name))
    module = build()
    found = found_in(export_by_torch(module, tmp_path / "m.onnx", torch.randn(shape), **settings))  # type: ignore[arg-type]
    assert found.layer.spec == spec
    tensors = found.layer.tensors
    assert np.array_equal(tensors["clusters"], module.weights.detach().numpy())
    assert np.array_equal(tensors["clusters2"][0].T, module.centroids_by_cluster.detach().numpy())


def test_tensorflow_s_graph_is_recovered_with_its_epsilon(tmp_path: Path) -> None:
    found = found_in(tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=3))
    expected = replace(LOOP, flatten=CLUSTERS_LAST, epsilon=RSQRT)
    assert found.layer.spec == expected
    random = np.random.default_rng(3)
    weight = random.standard_normal((D, K)).astype(np.float32)
    bias = random.standard_normal(K).astype(np.float32)
    centres = random.standard_normal((1, 1, 1, D, K)).astype(np.float32)
    assert np.array_equal(found.layer.tensors["clusters"], weight)
    assert np.array_equal(found.layer.tensors["assignment_bias"], bias)
    assert np.array_equal(found.layer.tensors["clusters2"][0], -centres[0, 0, 0])


@pytest.mark.parametrize("name", ["clusters", "clusters2", "assignment_bias"])
def test_a_weight_that_was_read_wrongly_is_noticed(loop: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = recovering.recover

    def wrong(*args: object, **settings: object) -> Recovered:
        found = right(*args, **settings)  # type: ignore[arg-type]
        value = found.tensors[name].copy()
        value.flat[7 % value.size] *= 1.02
        return replace(found, tensors={**found.tensors, name: value})

    monkeypatch.setattr(adoption, "recover", wrong)
    with pytest.raises(InputError, match=r"computes something else: \d+ of 13 cases differ"):
        found_in(loop)


def test_an_order_that_was_read_wrongly_is_noticed(loop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = recovering.recover

    def wrong(*args: object, **settings: object) -> Recovered:
        found = right(*args, **settings)  # type: ignore[arg-type]
        return replace(found, spec=replace(found.spec, flatten=CLUSTERS_LAST))

    monkeypatch.setattr(adoption, "recover", wrong)
    with pytest.raises(InputError, match="computes something else"):
        found_in(loop)


def test_clusters_far_apart_are_measured_where_they_are(tmp_path: Path) -> None:
    """A vocabulary of long centroids, as Arandjelovic et al. start one: only what lies near a cluster goes to it."""
    torch.manual_seed(0)
    module = Looped(K, D, bias=True, pre_l2=False)
    centroids = 20 * torch.rand(K, 1) * nn.functional.normalize(torch.randn(K, D), dim=1)
    module.centroids.data, module.conv.weight.data = centroids, 2 * centroids[:, :, None, None]
    assert module.conv.bias is not None
    module.conv.bias.data = -(centroids**2).sum(1)
    found = found_in(export_by_torch(module, tmp_path / "m.onnx", torch.randn(1, D, 2, 3)))
    assert np.array_equal(found.layer.tensors["clusters2"][0].T, centroids.numpy())


def test_a_single_image_without_a_batch_is_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = OneImage(K, D)
    found = found_in(export_by_torch(module, tmp_path / "m.onnx", torch.randn(7, D), dynamic=False))
    assert np.array_equal(found.layer.tensors["clusters2"][0], module.centres.detach().numpy())


def test_another_epsilon_is_said(tmp_path: Path) -> None:
    """No case of `validate` has norms so small: the file is taken, and what differs is said."""
    path = tensorflow_graph(tmp_path / "tf.onnx", K, D, seed=3)
    model = loaded(path)
    (epsilon,) = (tensor for tensor in model.graph.initializer if tensor.name == "eps")
    epsilon.CopyFrom(onnx.numpy_helper.from_array(np.float32(1e-14), "eps"))
    found = found_in(saved(model, path))
    assert [note for note in found.notes if "norms below 1e-04 are kept from 0 in another way" in note]
    assert not found_in(tensorflow_graph(path, K, D, seed=3)).notes
