"""Files of weights as people really have them: with objects beside the weights, around them, and in their place."""

import argparse
import collections
import datetime
import enum
import functools
import logging
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models import weights_file
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.weights_file import MAX_NAME_LENGTH, read_tensors
from tests.modules import make_module

pytestmark = pytest.mark.export


class EasyDict(dict[str, Any]):
    """A configuration as trainers have it: a dictionary with attributes."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__ = self


class Config:
    def __init__(self) -> None:
        self.path, self.options = pathlib.PurePosixPath("a/b"), {"lr": np.float64(0.1)}

    def __setstate__(self, state: object) -> None:
        raise AssertionError("code of the file ran")


class Slotted:
    __slots__ = ("value",)


class Kind(enum.Enum):
    VGG16 = "vgg16"


BESIDE: dict[str, Callable[[], Any]] = {
    "numpy float": lambda: np.float64(0.25),
    "numpy integer": lambda: np.int64(3),
    "numpy bool": lambda: np.bool_(True),
    "recalls by rank": lambda: {1: np.float32(0.5), 5: np.float64(0.75)},
    "numpy array": lambda: np.arange(6.0).reshape(2, 3),
    "numpy array in Fortran's order": lambda: np.asfortranarray(np.arange(6).reshape(2, 3)),
    "numpy array of the other byte order": lambda: np.arange(3, dtype=">f4"),
    "numpy array of objects": lambda: np.array([{"a": 1}, None], dtype=object),
    "numpy array of text": lambda: np.array(["day", "night"]),
    "numpy array of records": lambda: np.zeros(2, dtype=[("x", "f4"), ("y", "i8")]),
    "numpy date": lambda: np.datetime64("2020-01-01"),
    "numpy generator": lambda: np.random.default_rng(0).bit_generator.state,
    "namespace": lambda: argparse.Namespace(lr=0.1, save=pathlib.Path("x")),
    "path": lambda: pathlib.PurePosixPath("runs/best"),
    "defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "defaultdict of defaultdict": lambda: collections.defaultdict(lambda_free, a=collections.Counter("ab")),
    "date": lambda: datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),
    "easy dict": lambda: EasyDict(lr=0.1, inner=EasyDict(k=1)),
    "config": Config,
    "slots": Slotted,
    "enum": lambda: Kind.VGG16,
    "function": lambda: lambda_free,
    "class": lambda: Config,
    "device": lambda: torch.device("cuda:0"),
    "dtype": lambda: torch.float16,
    "optimizer": lambda: torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    "generator of torch": torch.get_rng_state,
    "complex, set, bytes": lambda: [1j, {1, 2}, frozenset("a"), b"abc", bytearray(b"x"), 2**100],
}


def lambda_free() -> dict[str, Any]:
    raise AssertionError("code of the file ran")


@pytest.mark.parametrize("layout", ["zip", "row", "protocol 4"])
@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_weights_are_left_out_and_do_not_run(
    tmp_path: Path, module: NetVLAD, kind: str, layout: str
) -> None:
    content = {"epoch": 3, "beside": BESIDE[kind](), "state_dict": module.state_dict(), "after": BESIDE[kind]()}
    options: dict[str, dict[str, Any]] = {
        "zip": {},
        "row": {"_use_new_zipfile_serialization": False},
        "protocol 4": {"pickle_protocol": 4},
    }
    torch.save(content, tmp_path / "m.pth", **options[layout])
    found = read_tensors(tmp_path / "m.pth")
    assert list(found) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_objects_that_are_left_out_are_named(tmp_path: Path, module: NetVLAD, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(
        {"args": argparse.Namespace(a=1), "best": np.float64(1), "model": module.state_dict()}, tmp_path / "m.pt"
    )
    with caplog.at_level(logging.INFO, logger="netvlad_deploy"):
        read_tensors(tmp_path / "m.pt")
    assert [record.message for record in caplog.records] == [
        "m.pt: left out, and not run: objects beside the weights of argparse.Namespace"
    ]


def weights(start: float = 0.0) -> dict[str, torch.Tensor]:
    return {
        "pool.conv.weight": torch.arange(6.0).reshape(3, 2, 1, 1) + start,
        "pool.centroids": torch.ones(3, 2) + start,
    }


ONE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "two deep": lambda state: {"model": {"state_dict": state, "epoch": 1}, "step": 4},
    "beside an optimizer": lambda state: {"net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2, 2)}}}},
    "beside an optimizer by name": lambda state: {"net": state, "optim": {"state": {"w": {"m": torch.ones(2, 2)}}}},
    "beside notes": lambda state: {"state_dict": state, "loss": torch.ones(9), "best": torch.tensor(0.5)},
    "numpy": lambda state: {name: tensor.numpy() for name, tensor in state.items()},
    "parameters": lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    "shared storage": lambda state: {
        name: torch.cat([tensor, tensor])[len(tensor) :] for name, tensor in state.items()
    },
    "strided": lambda state: {name: tensor.repeat_interleave(2, 0)[::2] for name, tensor in state.items()},
    "transposed": lambda state: {name: tensor.mT.contiguous().mT for name, tensor in state.items()},
    "by part": lambda state: {
        "pool": {name.removeprefix("pool."): tensor for name, tensor in state.items()},
        "epoch": 1,
    },
}


for _name in ("model", "net", "model_ema", "ema", "teacher", "network"):
    ONE[_name] = functools.partial(lambda name, state: {name: state}, _name)


@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize("kind", ONE)
def test_a_container_of_any_name_is_found(tmp_path: Path, kind: str, row: bool) -> None:
    torch.save(ONE[kind](weights()), tmp_path / "m.ckpt", _use_new_zipfile_serialization=not row)
    found = read_tensors(tmp_path / "m.ckpt")
    for name, tensor in weights().items():
        assert torch.equal(found[name.removeprefix("pool.") if kind == "by part" else name], tensor), name


def test_of_two_containers_none_is_taken(tmp_path: Path) -> None:
    torch.save({"model": weights(), "ema": weights(1.0), "epoch": 1}, tmp_path / "m.pt")
    found = read_tensors(tmp_path / "m.pt")
    assert set(found) == {f"{container}.{name}" for container in ("model", "ema") for name in weights()}
    assert torch.equal(found["ema.pool.centroids"], weights(1.0)["pool.centroids"])


class Scripted(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = torch.nn.Conv2d(2, 3, 1)
        self.norm = torch.nn.BatchNorm2d(3)
        self.sizes = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.norm(self.pool(x)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_the_weights_of_torchscript_are_read(tmp_path: Path, how: str) -> None:
    module = Scripted().eval()
    archive = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(1, 2, 3, 3))  # type: ignore[no-untyped-call]
    archive.save(str(tmp_path / "m.pt"))
    found = read_tensors(tmp_path / "m.pt")
    expected = module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frozen_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.freeze(torch.jit.script(Scripted().eval())).save(str(tmp_path / "m.pt"))
    with pytest.raises(InputError, match=r"TorchScript archive without named weights.*save it unfrozen"):
        read_tensors(tmp_path / "m.pt")


ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "float8": (lambda: torch.ones(3, 2).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn, expected real numbers"),
    "complex": (lambda: torch.ones(3, 2, dtype=torch.complex64), "of torch.complex64, expected real numbers"),
    "sparse": (lambda: torch.eye(3).to_sparse(), r"a sparse tensor: save it after to_dense"),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), r"a sparse tensor: save it after to_dense"),
    "meta": (lambda: torch.ones(3, 2, device="meta"), "a tensor of the meta device, which has no values"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8),
        r"a quantized tensor: save it after dequantize|values of a kind that is not known",
    ),
    "negative view": (lambda: torch.ones(3, 2, dtype=torch.complex64).conj().imag, r"after resolve_conj\(\)"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_weights_are_one_line(tmp_path: Path, kind: str, row: bool) -> None:
    make, message = ODD[kind]
    content = {"a.weight": torch.ones(2, 2), "b.weight": make()}
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=not row)
    with pytest.raises(InputError, match=message) as caught:
        read_tensors(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)


def test_complex_weights_of_numpy_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", allow_pickle=False, **{"a.weight": np.ones((2, 2), np.complex64)})
    with pytest.raises(InputError, match=r"a.weight of torch.complex64, expected real numbers"):
        read_tensors(tmp_path / "m.npz")


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1)


class Whole(Inner):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.config = Inner(), Config()


def test_parts_of_a_whole_module_that_were_read_are_not_said_to_be_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Whole()
    torch.save(whole, tmp_path / "m.pt")
    with caplog.at_level(logging.INFO, logger="netvlad_deploy"):
        assert list(read_tensors(tmp_path / "m.pt")) == list(whole.state_dict())
    read, left_out = (record.message for record in caplog.records)
    assert read.endswith("Whole, whose code did not run")
    assert "Config" in left_out
    assert "Inner" not in left_out


def test_an_optimizer_as_an_object_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.SGD(Inner().parameters(), momentum=0.9)
    for saved in ({**weights(), "optimizer": optimizer}, {"model": weights(), "ema": weights(), "optim": optimizer}):
        torch.save(saved, tmp_path / "m.pt")
        with caplog.at_level(logging.INFO, logger="netvlad_deploy"):
            assert len(read_tensors(tmp_path / "m.pt")) in (2, 4)
        assert "torch.optim.sgd.SGD" in caplog.records[-1].message


def test_an_object_where_a_weight_should_be_is_named(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(2, 2), "a.bias": Config()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"a.bias, an object of .*Config: .*save its state_dict alone"):
        read_tensors(tmp_path / "m.pt")
    torch.save({"model": Config(), "epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"found epoch, model \(an object of .*Config\): .*save its state_dict alone"):
        read_tensors(tmp_path / "m.pt")
    torch.save(Config(), tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"holds an object of .*Config instead of tensors by name"):
        read_tensors(tmp_path / "m.pt")


def test_a_small_file_that_asks_for_much_is_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(1).expand(10**6, 1000)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"repeats 4 bytes to a shape of \(1000000, 1000\), more than the whole file"):
        read_tensors(tmp_path / "m.pt")
    torch.save({"a.weight": torch.ones(3, 1).expand(3, 2)}, tmp_path / "m.pt")
    assert torch.equal(read_tensors(tmp_path / "m.pt")["a.weight"], torch.ones(3, 2))
    torch.save({"." * (MAX_NAME_LENGTH + 1): torch.ones(2, 2)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"a name of 513 characters begins \.\.\."):
        read_tensors(tmp_path / "m.pt")
    looped: dict[str, Any] = {"a.weight": torch.ones(2, 2)}
    looped["self"] = looped
    torch.save(looped, tmp_path / "m.pt")
    with pytest.raises(InputError, match="nested without an end"):
        read_tensors(tmp_path / "m.pt")


def test_a_file_of_too_many_tensors_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_file, "MAX_TENSORS", 5)
    torch.save({f"{index}.weight": torch.ones(2, 2) for index in range(6)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"it has 6 tensors, expected 5 at most"):
        read_tensors(tmp_path / "m.pt")


def test_a_storage_is_as_large_as_the_file_says_elsewhere_too(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.ones(4, 4)}, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(content.replace(b"cpu", b"gpu", 1))
    with pytest.raises(InputError, match=r"damaged or cut short \(BadZipFile: Bad CRC-32"):
        read_tensors(tmp_path / "m.pt")
    torch.save({"a.weight": torch.ones(4, 4)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pth").read_bytes()
    for changed in (content[:-8], content.replace(b"K\x10N", b"M\xff\xffN"), content[:60]):
        assert changed != content
        (tmp_path / "m.pth").write_bytes(changed)
        with pytest.raises(InputError, match="damaged or cut short"):
            read_tensors(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.PTH", "m.Pt", "m.ckpt", "m.bin", "M.TAR", "m.pt2"])
def test_suffixes_are_read_in_any_case(tmp_path: Path, name: str) -> None:
    torch.save(make_module(3, 4, 1).state_dict(), tmp_path / name)
    assert "clusters2" in read_tensors(tmp_path / name)
