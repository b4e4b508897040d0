"""Convolutions and linear layers in float64 on a CPU, where torch's own take too much memory or time.

torch copies every patch of an image before it multiplies, 1.4 GB for a layer of VGG16 at 480 x 640: so an image is
convolved in strips of rows, one after the other. torch computes a grouped convolution group by group on all threads,
which wait for each other hundreds of times in a layer, seconds where one thread takes milliseconds: so one thread does
it. The matrix of a linear layer may stay in FP32, and is widened for the one product: a large transformer would take
twice its size more.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

STRIP_BYTES = 2**24
"""Size of the patches of one strip: small enough for the allocator to reuse memory, which is faster than new pages."""


class Float64Products(TorchFunctionMode):
    """A mode in which float64 convolutions and linear layers take little memory and time.

    Args:
        strips: convolve in strips, which is several operations where there was one; grouped convolutions never are.
    """

    def __init__(self, *, strips: bool) -> None:
        super().__init__()
        self.strips = strips

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute float64 convolutions and linear layers here, and leave every other function to torch."""
        kwargs = kwargs or {}
        if function is functional.linear and args[0].dtype is torch.float64 and args[1].dtype is torch.float32:
            return function(args[0], args[1].double(), *args[2:], **kwargs)
        if function is not torch.conv2d or not args or args[0].dtype is not torch.float64:
            return function(*args, **kwargs)
        if args[0].shape[1] == args[1].shape[1]:
            return _in_strips(*args, **kwargs) if self.strips else function(*args, **kwargs)
        threads = torch.get_num_threads()  # grouped convolutions run on one
        torch.set_num_threads(1)
        try:
            return function(*args, **kwargs)
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
    """Return `torch.conv2d` of the same arguments, (B,O,h,w), computed in strips of rows."""
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    rows_added, columns_added = _pair(padding)
    padded = functional.pad(x, (columns_added, columns_added, rows_added, rows_added))
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
