"""Tiny networks of the library transformers: their settings, their folders, and a forward pass written here alone."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from netvlad_deploy.models.backbones.networks import Backbone
from netvlad_deploy.models.backbones.transformers_networks import KINDS, transformers_backbone
from netvlad_deploy.spec.images import ImageInput, Resize

State = dict[str, Tensor]
WIDTH, HEADS, LAYERS, PATCH, SIDE = 32, 2, 2, 8, 4
"""Channels, heads, layers, pixels of a patch, and patches of a side for which the position embeddings are."""

SETTINGS: dict[str, Any] = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "patch_size": PATCH,
    "image_size": SIDE * PATCH, "intermediate_size": 4 * WIDTH, "num_register_tokens": 3,
}  # fmt: skip
SIZE = (24, 40)
"""Height and width of images whose grid is another than that of the position embeddings."""

PREPROCESSOR: dict[str, Any] = {
    "do_resize": True, "size": {"height": 24, "width": 40}, "resample": 2, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3],
}  # fmt: skip


def settings(kind: str) -> dict[str, Any]:
    """Return the settings of a kind; the library refuses those of others."""
    others = {"dinov2": ("intermediate_size", "num_register_tokens"), "vit": ("num_register_tokens",)}
    others["dinov2_with_registers"] = ("intermediate_size",)
    return {name: value for name, value in SETTINGS.items() if name not in others[kind]}


def tiny(kind: str, size: tuple[int, int] = SIZE) -> Backbone:
    """Return the record of a tiny vision transformer."""
    return transformers_backbone(f"tiny-{kind}", kind, settings(kind), WIDTH, ImageInput(resize=Resize(size=size)))


def hub_state(kind: str, seed: int = 0) -> State:
    """Return random weights of the tiny network under the names of facebookresearch/dinov2."""
    generator = torch.Generator().manual_seed(seed)

    def make(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    state = {
        "cls_token": make(1, 1, WIDTH), "pos_embed": make(1, 1 + SIDE * SIDE, WIDTH), "mask_token": make(1, WIDTH),
        "patch_embed.proj.weight": make(WIDTH, 3, PATCH, PATCH, scale=0.1), "patch_embed.proj.bias": make(WIDTH),
        "norm.weight": 1 + make(WIDTH, scale=0.2), "norm.bias": make(WIDTH, scale=0.2),
    }  # fmt: skip
    if KINDS[kind].registers:
        state["register_tokens"] = make(1, 3, WIDTH)
    for layer in range(LAYERS):
        start = f"blocks.{layer}."
        for norm in ("norm1", "norm2"):
            state |= {
                f"{start}{norm}.weight": 1 + make(WIDTH, scale=0.2),
                f"{start}{norm}.bias": make(WIDTH, scale=0.2),
            }
        shapes = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        shapes |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for name, (rows, columns) in shapes.items():
            state |= {
                f"{start}{name}.weight": make(rows, columns, scale=0.2),
                f"{start}{name}.bias": make(rows, scale=0.2),
            }
        state |= {f"{start}ls1.gamma": make(WIDTH, scale=0.5), f"{start}ls2.gamma": make(WIDTH, scale=0.5)}
    return state


def old_names(state: State, kind: str) -> State:
    """Return weights of torch.hub's names under the names that the library's published files have."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            layer, what = name.split(".")[1], name.rpartition(".")[2]
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{layer}.attention.attention.{part}.{what}"] = rows
            continue
        for old, new in (
            ("blocks.", "encoder.layer."), ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"), ("ls2.gamma", "layer_scale2.lambda1"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("pos_embed", "embeddings.position_embeddings"), ("cls_token", "embeddings.cls_token"),
            ("mask_token", "embeddings.mask_token"), ("register_tokens", "embeddings.register_tokens"),
        ):  # fmt: skip
            name = name.replace(old, new)
        renamed[f"layernorm.{name.rpartition('.')[2]}" if name.startswith("norm.") else name] = tensor
    if kind == "vit":
        vit = {}
        for name, tensor in renamed.items():
            for old, new in (
                ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):  # fmt: skip
                name = name.replace(old, new)
            if "layer_scale" not in name and "mask_token" not in name:
                vit[name] = tensor
        return vit
    return renamed


def tokens(state: State, images: Tensor, *, offset: float, antialias: bool, scaled: bool = True) -> Tensor:
    """Return the last hidden state (B,1+R+h*w,D) of weights under torch.hub's names, without modules."""
    patches = functional.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    batch, _, rows, columns = patches.shape
    table = state["pos_embed"]
    if (rows, columns) != (SIDE, SIDE):
        grid = table[:, 1:].float().reshape(1, SIDE, SIDE, WIDTH).permute(0, 3, 1, 2)
        factor = ((rows + offset) / SIDE, (columns + offset) / SIDE) if offset else None
        size = None if offset else (rows, columns)
        grid = functional.interpolate(grid, size=size, scale_factor=factor, mode="bicubic", antialias=antialias)
        table = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], 1)
    x = torch.cat([state["cls_token"].repeat(batch, 1, 1), patches.flatten(2).transpose(1, 2)], 1) + table
    if "register_tokens" in state:
        x = torch.cat([x[:, :1], state["register_tokens"].repeat(batch, 1, 1), x[:, 1:]], 1)

    def norm(values: Tensor, name: str) -> Tensor:
        centred = values - values.mean(-1, keepdim=True)
        root = (centred.square().mean(-1, keepdim=True) + (1e-6 if scaled else 1e-12)).sqrt()
        return centred / root * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for start in (f"blocks.{layer}." for layer in range(LAYERS)):
        if f"{start}norm1.weight" not in state:
            break
        query, key, value = linear(norm(x, f"{start}norm1"), f"{start}attn.qkv").chunk(3, -1)
        joined = []
        for part in range(HEADS):
            own = slice(part * WIDTH // HEADS, (part + 1) * WIDTH // HEADS)
            logits = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(WIDTH / HEADS)
            joined.append(logits.softmax(-1) @ value[..., own])
        step = linear(torch.cat(joined, -1), f"{start}attn.proj")
        x = x + (step * state[f"{start}ls1.gamma"] if scaled else step)
        hidden = linear(norm(x, f"{start}norm2"), f"{start}mlp.fc1")
        step = linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{start}mlp.fc2")
        x = x + (step * state[f"{start}ls2.gamma"] if scaled else step)
    return norm(x, "norm")


def write_folder(folder: Path, kind: str, state: State, **changed: Any) -> Path:
    """Write a model folder of the library, with changes to its preprocessor."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **settings(kind)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, **changed}))
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder
