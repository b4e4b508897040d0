"""Arrays of others: real DLPack capsules of NumPy and torch, which lie on the CPU."""

from typing import Any

import numpy as np
import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.tensorrt.device_array import device_array, from_dlpack


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.uint8, np.bool_])
def test_a_real_capsule_is_read(dtype: Any) -> None:
    array = np.zeros((2, 3, 4), dtype)
    view = from_dlpack(array.__dlpack__())
    assert (view.address, view.shape, view.dtype, view.ndim) == (array.ctypes.data, (2, 3, 4), array.dtype, 3)


def test_the_capsule_still_releases_its_tensor() -> None:
    """A capsule that was only read must remain usable by its own end, once."""
    array = np.ones((1, 2, 3), np.float32)
    for _ in range(1000):
        view = from_dlpack(array.__dlpack__())
        del view
    assert array.sum() == 6


def test_a_length_of_one_may_have_any_stride() -> None:
    from_dlpack(np.ones((1, 5, 3), np.float32)[:, :5].__dlpack__())
    with pytest.raises(InputError, match="make it contiguous"):
        from_dlpack(np.ones((2, 5, 3), np.float32)[:, ::2].__dlpack__())
    with pytest.raises(InputError, match=r"type code 5 .* fits no input"):
        from_dlpack(np.ones(3, np.complex64).__dlpack__())


def test_an_array_on_the_cpu_is_no_device_array() -> None:
    assert device_array(np.ones(3), 5, 0) is None
    assert device_array([1.0], 5, 0) is None


@pytest.mark.export
def test_a_cpu_tensor_of_torch_is_no_device_array() -> None:
    import torch

    assert device_array(torch.ones(3), 5, 0) is None
    tensor = torch.ones(2, 3, dtype=torch.bool)
    assert from_dlpack(tensor.__dlpack__()).address == tensor.data_ptr()
