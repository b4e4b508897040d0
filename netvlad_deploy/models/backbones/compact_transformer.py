"""CCT-14 for images of 384x384: convolutions make tokens, of which a transformer without a class token makes others.

It is written out here, since the names in the benchmark's files are those of its own module. The benchmark gives the
head every token after the last LayerNorm, and may have cut off layers (`trunc_te`).

Source: SHI-Labs/Compact-Transformers, src/utils/transformers.py and tokenizer.py (Hassani et al. 2021);
gmberton/deep-visual-geo-localization-benchmark, model/network.py and model/cct/cct.py; wwwzihan/DSS-VLAD,
model/cct/transformers.py, the benchmark's own file, for what is left out before the head.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from netvlad_deploy.errors import UsageError
from netvlad_deploy.models.backbones.networks import Backbone, SizedBackbone
from netvlad_deploy.spec.images import ImageInput, Resize, Size

WIDTH: Final = 384
HEADS: Final = 6
USUAL_LAYERS: Final = 14
GRID: Final = 24
"""Rows and columns of the tokens: every convolution and every pooling halves the side of an image, 384."""

BLOCK_NAME: Final = re.compile(r"classifier\.blocks\.(\d{1,2})\.")
"""Start of the names of a layer, with its number."""


class Tokenizer(nn.Module):
    """Two convolutions of 7x7, each with stride 2, a ReLU and a pooling: images (B,3,384,384) to a map (B,D,24,24)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(before, after, 7, stride=2, padding=3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
                )
                for before, after in ((3, 64), (64, WIDTH))
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the map (B,D,24,24)."""
        feature_map: Tensor = self.conv_layers(images)
        return feature_map


class Attention(nn.Module):
    """Attention of all tokens (B,N,D) to each other, in six heads; the three projections have no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what each token takes from the others (B,N,D)."""
        size = WIDTH // HEADS
        query, key, value = self.qkv(tokens).unflatten(2, (3, HEADS, size)).permute(2, 0, 3, 1, 4)  # (B,heads,N,d)
        weights = torch.softmax(torch.matmul(query * size**-0.5, key.transpose(2, 3)), dim=-1)
        result: Tensor = self.proj(torch.matmul(weights, value).transpose(1, 2).flatten(2))
        return result


class Layer(nn.Module):
    """One layer: attention is added to the tokens, these are normalised, and two linear layers are added to that."""

    def __init__(self) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(WIDTH)
        self.self_attn = Attention()
        self.linear1 = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.linear2 = nn.Linear(3 * WIDTH, WIDTH)
        self.activation = nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B,N,D) after the layer."""
        tokens = self.norm1(tokens + self.self_attn(self.pre_norm(tokens)))
        result: Tensor = tokens + self.linear2(self.activation(self.linear1(tokens)))
        return result


class Encoder(nn.Module):
    """Tokens (B,N,D) with position embeddings through all layers and the last LayerNorm."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.positional_emb = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, GRID**2, WIDTH), std=0.2))
        self.blocks = nn.Sequential(*(Layer() for _ in range(layers)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens (B,N,D)."""
        result: Tensor = self.norm(self.blocks(tokens + self.positional_emb))
        return result


class CompactTransformer(SizedBackbone):
    """Normalised images (B,3,384,384) to the feature map (B,384,24,24) of all tokens; `layers` were not cut off."""

    own_size: Size | None = (16 * GRID, 16 * GRID)

    def __init__(self, layers: int = USUAL_LAYERS) -> None:
        super().__init__()
        self.tokenizer = Tokenizer()
        self.classifier = Encoder(layers)

    def fix_size(self, size: Size) -> None:
        """Take images of this height and width, which are the original's.

        Raises: UsageError for another size: the original has position embeddings for one alone.
        """
        if size != self.own_size:
            raise UsageError(
                f"the backbone cct384 has position embeddings for 384x384 alone, images are {size[0]}x{size[1]}: pass "
                "--resize 384x384"
            )
        super().fix_size(size)

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map (B,384,24,24).

        Raises: ValueError if the images have another size.
        """
        if tuple(images.shape[2:]) != self.own_size:
            raise ValueError(f"images are {tuple(images.shape[2:])}, expected {self.own_size}")
        tokens = self.classifier(self.tokenizer(images).flatten(2).transpose(1, 2))
        feature_map: Tensor = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
        return feature_map


def _shown(backbone: Backbone, tensors: Mapping[str, Tensor]) -> tuple[Backbone, dict[str, Tensor]]:
    """Return the backbone with as many layers as tensors show, and the tensors."""
    numbers = {int(match[1]) for match in map(BLOCK_NAME.match, tensors) if match}
    layers = min(USUAL_LAYERS, len(numbers)) or USUAL_LAYERS
    return replace(backbone, build=partial(CompactTransformer, layers)), dict(tensors)


CCT384: Final = Backbone(
    name="cct384",
    build=CompactTransformer,
    width=WIDTH,
    images=ImageInput(resize=Resize(size=(16 * GRID, 16 * GRID))),
    beyond=("classifier.attention_pool.", "classifier.fc."),
    shown=_shown,
    signature="tokenizer.conv_layers.",
)
"""CCT-14/7x2 for 384x384, by the benchmark's name; behind its cut stand the pooling of tokens and a classifier."""
