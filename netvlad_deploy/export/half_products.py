"""FP16 for backbones with LayerNorms: products are in FP16, all else stays in FP32.

What enters a linear layer, a convolution or a product of attention is rounded to FP16, and so is what comes out. In
FP32 stay the residual stream, LayerNorm, LayerScale, position embeddings and activation functions: the stream of a
trained transformer has peaks of thousands beside values of 1, and is added up over all layers. A cast stands in the
graph wherever the type changes, since engines are strongly typed. Softmax is one operator on FP16 between the products
of attention, so that engines can fuse the three; inside, they compute it in FP32.
"""

import re
from typing import Any, Final

import torch
from torch import Tensor, nn

HALF_MODULES: Final = (nn.Linear, nn.Conv2d)
"""Modules that an FP16 graph computes in FP16."""

ACTIVATION_NAME: Final = re.compile("GELU|SiLU|Swish|Mish|Tanh|Sigmoid")
"""Part of the names of classes of activation functions that would round in several steps, 1 + erf(x) the worst."""


class InFloat32(nn.Module):
    """A module that is computed in FP32, whatever it is given."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        """Return the result of the module for x in FP32."""
        result: Tensor = self.part(x.float())
        return result


def has_norms(backbone: nn.Module) -> bool:
    """Return True if a backbone has LayerNorms, as transformers have and ConvNeXt."""
    return any(isinstance(part, nn.LayerNorm) for part in backbone.modules())


def half_products(backbone: nn.Module) -> nn.Module:
    """Convert the products of a backbone to FP16 in place, and return it; what is between them stays in FP32."""
    for name, part in list(backbone.named_modules()):
        if isinstance(part, HALF_MODULES):
            part.half()
            part.register_forward_pre_hook(_to_half)
        elif isinstance(part, nn.LayerNorm) or ACTIVATION_NAME.search(type(part).__name__):
            backbone.set_submodule(name, InFloat32(part))
    return backbone


def _to_half(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.half() if isinstance(each, Tensor) and each.dtype is torch.float32 else each for each in inputs)
