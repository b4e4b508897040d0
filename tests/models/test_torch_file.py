"""Files of torch give the tensors that `torch.load(weights_only=True)` gives, bit by bit, whoever wrote them."""

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.weights_file import REAL_DTYPES, read_tensors

pytestmark = pytest.mark.export

OF_ZIP_ALONE = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch does not read from its older layout."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "zip": {},
    "row": {"_use_new_zipfile_serialization": False},
    "protocol 4": {"pickle_protocol": 4},
    "protocol 5": {"pickle_protocol": 5},
}


def random_bits(dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor (2,3,4) of random bits: numbers of every size, NaN and infinity among them."""
    bits = torch.randint(0, 256, (24 * dtype.itemsize,), generator=torch.manual_seed(1), dtype=torch.uint8)
    return (bits > 127 if dtype is torch.bool else bits.view(dtype)).reshape(2, 3, 4)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def content() -> OrderedDict[str, torch.Tensor]:
    """Return a state of every type as torch writes tensors: views of one storage, none, one or no value, parameters."""
    state: OrderedDict[str, torch.Tensor] = OrderedDict()
    for dtype in sorted(REAL_DTYPES, key=str):
        whole = random_bits(dtype)
        views = (whole, whole[:, 1:, ::2], whole.permute(2, 0, 1), whole[1, 2, 3], whole[:0], whole[:1].expand(5, 3, 4))
        state.update({f"{dtype}.{number}": view for number, view in enumerate((*views, whole.clone()))})
    state["parameter"], state["frozen"] = (torch.nn.Parameter(torch.randn(3, 2), flag) for flag in (True, False))
    state["buffer"] = torch.nn.Buffer(torch.randn(3))
    for name in ("parameter", "buffer"):
        state[f"{name} with attributes"] = state[name].detach().clone()
        state[f"{name} with attributes"].note = "of a trainer"  # type: ignore[attr-defined]
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_those_of_torch_bit_by_bit(tmp_path: Path, layout: str) -> None:
    state = content()
    if layout == "row":
        state = OrderedDict((name, each) for name, each in state.items() if each.dtype not in OF_ZIP_ALONE)
    torch.save(state, tmp_path / "m.pt", **LAYOUTS[layout])
    weights_only = "pickle_protocol" not in LAYOUTS[layout]  # it does not know the protocols after 2
    expected = torch.load(tmp_path / "m.pt", weights_only=weights_only)
    found = read_tensors(tmp_path / "m.pt")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits_of(found[name]).equal(bits_of(tensor)), name


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a.weight": torch.ones(2, 2)}, tmp_path / "m.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_tensors(tmp_path / "m.pt")["a.weight"].equal(torch.ones(2, 2))


@pytest.mark.parametrize("row", [False, True])
@pytest.mark.parametrize(
    "beside", [np.arange(4.0), np.ones((2, 3), order="F"), np.float64(3), np.array(["a"]), bytearray(b"abc")]
)
def test_values_of_protocol_5_beside_the_weights_are_left_out(tmp_path: Path, beside: object, row: bool) -> None:
    saved = {"recalls": beside, "state_dict": {"a.weight": torch.ones(2, 2)}}
    torch.save(saved, tmp_path / "m.pt", pickle_protocol=5, _use_new_zipfile_serialization=not row)
    assert list(read_tensors(tmp_path / "m.pt")) == ["a.weight"]


def test_arrays_of_protocol_5_are_weights_as_well(tmp_path: Path) -> None:
    torch.save({"a.weight": np.asfortranarray(np.arange(6.0).reshape(2, 3))}, tmp_path / "m.pt", pickle_protocol=5)
    assert read_tensors(tmp_path / "m.pt")["a.weight"].equal(torch.arange(6.0, dtype=torch.float64).reshape(2, 3))


def test_a_list_of_states_and_one_tensor_are_said_to_be_that(tmp_path: Path) -> None:
    for saved, message in (
        ([{"a.weight": torch.ones(2, 2)}], "holds a list instead of tensors by name"),
        ({"models": [{"a.weight": torch.ones(2, 2)}]}, r"holds no weights by name, found models \(a list\)"),
        (torch.ones(2, 2), "holds one tensor instead of tensors by name"),
    ):
        torch.save(saved, tmp_path / "m.pt")
        with pytest.raises(InputError, match=message):
            read_tensors(tmp_path / "m.pt")


def test_the_name_of_a_member_is_told_in_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("two\nlines", b"")
    with pytest.raises(InputError, match=r"expected one data\.pkl, found two lines") as refused:
        read_tensors(tmp_path / "m.pt")
    assert "\n" not in str(refused.value)
