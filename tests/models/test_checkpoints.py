"""Checkpoints of the reference: every file format gives the same module, and unusable files are refused."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.checkpoints import check_options, load_checkpoint
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.layer import NetVLADSpec
from tests.modules import make_module

pytestmark = pytest.mark.export


def save(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif path.suffix == ".npz":
        np.savez(path, allow_pickle=False, **{name: tensor.numpy() for name, tensor in content.items()})
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth", "m.pth.tar", "m.npz"])
def test_every_file_format_gives_the_same_module(tmp_path: Path, module: NetVLAD, name: str) -> None:
    loaded = load_checkpoint(save(tmp_path / name, module.state_dict()))
    assert loaded.spec == NetVLADSpec(num_clusters=6, feature_size=16, num_ghost_clusters=2)
    assert not loaded.training
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, ""),
        (lambda state: {f"module.{name}": tensor for name, tensor in state.items()}, ""),
        (lambda state: {"state_dict": {f"module.head.{name}": tensor for name, tensor in state.items()}}, "head"),
        (lambda state: {f"head.{name}": tensor for name, tensor in state.items()} | {"fc": torch.ones(2)}, "head."),
    ],
)
def test_containers_and_prefixes_are_stripped(tmp_path: Path, module: NetVLAD, wrap: Any, prefix: str) -> None:
    loaded = load_checkpoint(save(tmp_path / "m.pth", wrap(module.state_dict())), prefix=prefix)
    assert torch.equal(loaded.clusters, module.clusters)


def test_without_batch_norm_there_is_none(tmp_path: Path) -> None:
    module = make_module(3, 4, 1, batch_norm=False)
    assert load_checkpoint(save(tmp_path / "m.pt", module.state_dict())).batch_norm is None


def test_the_counter_of_batches_may_be_missing(tmp_path: Path, module: NetVLAD) -> None:
    state = {name: tensor for name, tensor in module.state_dict().items() if "num_batches" not in name}
    assert torch.equal(load_checkpoint(save(tmp_path / "m.pt", state)).clusters, module.clusters)


def test_a_reference_file_brings_its_own_epsilon(tmp_path: Path, module: NetVLAD) -> None:
    state = {**module.state_dict(), "batch_norm.eps": torch.tensor(1e-3, dtype=torch.float64)}
    loaded = load_checkpoint(save(tmp_path / "m.npz", state))
    assert loaded.batch_norm is not None
    assert loaded.batch_norm.eps == 1e-3


def test_a_whole_pickled_module_gives_its_weights(tmp_path: Path, module: NetVLAD) -> None:
    torch.save(module, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt")
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.pth.tar", "m.npz"])
def test_a_truncated_file_is_refused(tmp_path: Path, module: NetVLAD, name: str) -> None:
    path = save(tmp_path / name, module.state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("clusters2"), "lacks clusters or clusters2"),
        (lambda state: state.pop("batch_norm.running_var"), "Missing key.*batch_norm.running_var"),
        (lambda state: state.update(extra=torch.ones(1)), "Unexpected key.*extra"),
        (lambda state: state.update(clusters2=state["clusters2"].transpose(1, 2)), r"are not \(D, K\+G\) and"),
        (lambda state: state["clusters"].__setitem__((0, 0), torch.nan), "clusters is not finite"),
        (lambda state: state.update({"batch_norm.bias": torch.ones(3)}), "size mismatch for batch_norm.bias"),
        (lambda state: state.update(clusters=state["clusters"][:, :5]), "num_ghost_clusters is -1"),
    ],
)
def test_a_mismatched_checkpoint_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    state = make_module(6, 16, 2).state_dict()
    change(state)
    with pytest.raises(InputError, match=message):
        load_checkpoint(save(tmp_path / "m.pt", state))


def test_the_only_layer_needs_no_prefix_and_of_two_one_must_be_chosen(tmp_path: Path, module: NetVLAD) -> None:
    state = {f"text_pooling.{name}": tensor for name, tensor in module.state_dict().items()}
    assert torch.equal(load_checkpoint(save(tmp_path / "m.pt", state)).clusters, module.clusters)
    other = {f"pooling.audio.{name}": tensor for name, tensor in make_module(3, 8).state_dict().items()}
    path = save(tmp_path / "two.pt", {**state, **other})
    with pytest.raises(
        InputError, match=r"holds 2 NetVLADs: pooling.audio, text_pooling: choose one with --prefix, or "
    ):
        load_checkpoint(path)
    assert load_checkpoint(path, prefix="pooling.audio").spec.num_clusters == 3
    with pytest.raises(InputError, match=r"no NetVLAD behind --prefix pooling: .* behind pooling.audio, text_pooling"):
        load_checkpoint(path, prefix="pooling")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.pt is missing"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(InputError, match="is no checkpoint"):
        load_checkpoint(tmp_path / "m.txt")


def test_contradicting_options_are_refused() -> None:
    spec = NetVLADSpec(num_clusters=6, feature_size=16)
    check_options(spec, Path("m.pt"), num_clusters=6, feature_size=None)
    with pytest.raises(UsageError, match="has num_clusters 6, the options say 32"):
        check_options(spec, Path("m.pt"), num_clusters=32)


def test_arrays_that_are_no_weights_are_refused(tmp_path: Path, module: NetVLAD) -> None:
    np.savez(tmp_path / "m.npz", allow_pickle=False, clusters=np.array(["a"]))
    with pytest.raises(InputError, match="an array that torch cannot take"):
        load_checkpoint(tmp_path / "m.npz")
    state: dict[Any, Any] = {**module.state_dict()}
    state[7] = torch.ones(1)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"Unexpected key.*7"):
        load_checkpoint(tmp_path / "m.pt")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(InputError, match=r"page.pth is a web page"):
        load_checkpoint(tmp_path / "page.pth")
