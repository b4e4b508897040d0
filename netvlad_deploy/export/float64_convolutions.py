"""Convolutions in float64 on a CPU, where torch's own take too much memory or time.

Every patch of an image is laid out before it is multiplied, 1.4 GB for a layer of VGG16 at 480 x 640: so strips of rows
are computed one after the other. A grouped one is computed group by group, each on all threads, which wait for each
other hundreds of times in a layer, seconds where one thread takes milliseconds: so that is done on one.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

STRIP_BYTES = 2**24
"""Of the patches of one strip: small enough for the allocator to use the same memory again, whose pages are there."""


class Float64Convolutions(TorchFunctionMode):
    """Compute every float64 convolution so, while this is on.

    Args:
        strips: strip by strip too, which makes several operations of one.
    """

    def __init__(self, *, strips: bool) -> None:
        super().__init__()
        self.strips = strips

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take the convolutions, and let everything else through."""
        kwargs = kwargs or {}
        if function is not torch.conv2d or not args or args[0].dtype is not torch.float64:
            return function(*args, **kwargs)
        if args[0].shape[1] != args[1].shape[1]:  # grouped
            with _one_thread():
                return function(*args, **kwargs)
        return _in_strips(*args, **kwargs) if self.strips else function(*args, **kwargs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_strips(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return what `torch.conv2d` does, of which these are the arguments."""
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    above, beside = _pair(padding)
    padded = functional.pad(x, (beside, beside, above, above))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    rows = (padded.shape[2] - reach) // stride[0] + 1
    columns = (padded.shape[3] - dilation[1] * (weight.shape[3] - 1) - 1) // stride[1] + 1
    strip = max(1, STRIP_BYTES // max(1, len(x) * weight[0].numel() * columns * x.element_size()))
    strips = []
    for start in range(0, max(rows, 1), strip):
        last = min(start + strip, rows) - 1
        part = padded[:, :, start * stride[0] : last * stride[0] + reach]
        strips.append(torch.conv2d(part, weight, bias, stride, 0, dilation, groups))
    return torch.cat(strips, dim=2)
