"""The names under which networks of the library transformers are saved, brought to one form.

A vision transformer's tensors have other names in older files of the library, in newer ones, and in the files of
facebookresearch/dinov2, which also join query, key and value. The form here is near the library's newest.

Source: huggingface/transformers, conversion_mapping.py and convert_dinov2_to_hf.py; facebookresearch/dinov2,
dinov2/models/vision_transformer.py, dinov2/layers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from torch import Tensor

from netvlad_deploy.errors import InputError

RENAMES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^network\.", ""),
        (r"^(dinov2_with_registers|dinov2|vit|resnet|mobilenet_v2|efficientnet)\.", ""),
        (r"^blocks\.(\d+\.)?(\d+)\.", r"layers.\2."),
        (r"^encoder\.layer\.", "layers."),
        (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
        (r"\.attn\.proj\.|\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.attention(\.attention)?\.(query|key|value)\.", r".attention.\2_proj."),
        (r"\.attention\.query_proj\.", ".attention.q_proj."),
        (r"\.attention\.key_proj\.", ".attention.k_proj."),
        (r"\.attention\.value_proj\.", ".attention.v_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        (r"\.mlp\.(w3|weights_out)\.", ".mlp.down_proj."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
    )
)
"""Applied one after the other: a pattern in a name, and what takes its place."""

JOINED: Final = (
    (re.compile(r"\.attn\.qkv\."), (".attention.q_proj.", ".attention.k_proj.", ".attention.v_proj.")),
    (re.compile(r"\.mlp\.(w12|weights_in)\."), (".mlp.gate_proj.", ".mlp.up_proj.")),
)
"""Tensors that hold several of the library's, one after the other in their rows."""


def canonical(name: str) -> str:
    """Return the one name of a tensor that no other is joined with.

    >>> canonical("blocks.3.attn.proj.weight"), canonical("encoder.layer.3.attention.output.dense.weight")
    ('layers.3.attention.o_proj.weight', 'layers.3.attention.o_proj.weight')
    """
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def canonical_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors by their one name; joined ones are split.

    Raises: InputError if two have the same name, or a joined one cannot be split.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for each, part in _parts(canonical(name), tensor):
            if each in found:
                raise InputError(f"holds {each} twice, one of them as {name}")
            found[each] = part
    return found


def is_of_torch_hub(names: Iterable[str]) -> bool:
    """Return True if the names are those of facebookresearch/dinov2."""
    return any(name.endswith("patch_embed.proj.weight") for name in names)


def _parts(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return the tensors that one of this name holds, by their names."""
    for pattern, replacements in JOINED:
        if pattern.search(name):
            if tensor.ndim == 0 or tensor.shape[0] % len(replacements):
                raise InputError(
                    f"{name} is {tuple(tensor.shape)}, expected {len(replacements)} equal parts in its rows"
                )
            parts = tensor.chunk(len(replacements))
            return [(pattern.sub(new, name), part) for new, part in zip(replacements, parts, strict=True)]
    return [(name, tensor)]
