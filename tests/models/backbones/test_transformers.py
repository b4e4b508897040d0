"""Vision transformers of the library against a forward pass from their raw tensors, under every naming of files."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import BACKBONES, weights
from netvlad_deploy.models.backbones.networks import Backbone, SizedBackbone
from netvlad_deploy.models.backbones.transformers_networks import transformers_backbone
from netvlad_deploy.models.head import BackboneState
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import golden_image
from netvlad_deploy.spec.images import IMAGENET_MEAN, IMAGENET_STD, ImageChanges, ImageInput, Resize
from netvlad_deploy.workflow.source import Source, load_module
from tests.models.backbones import transformers as tiny

pytestmark = pytest.mark.export

IMAGES = torch.randn(2, 3, *tiny.SIZE, generator=torch.Generator().manual_seed(5))


def loaded(
    backbone: Backbone, state: tiny.State, size: tuple[int, int] = tiny.SIZE
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the network with these weights for images of a size, and the names that were left out."""
    found = BackboneState(root="", tensors=state, candidates=(), images=ImageInput())
    module, beyond = weights.load_weights(backbone, found)
    images = weights.fix_size(module, backbone.name, ImageInput(resize=Resize(size=size)))
    assert images.fixed
    return module, beyond


def errors(module: nn.Module, expected: Tensor, first: int) -> tuple[float, float]:
    """Return the largest errors of the feature map and of the class token."""
    with torch.inference_mode():
        feature_map, token = module(IMAGES)
    rows, columns = (length // tiny.PATCH for length in tiny.SIZE)
    assert feature_map.shape == (2, tiny.WIDTH, rows, columns)
    local = feature_map.permute(0, 2, 3, 1).flatten(1, 2)
    return float((local - expected[:, first:]).abs().max()), float((token - expected[:, 0]).abs().max())


@pytest.mark.parametrize(
    ("kind", "hub"),
    [
        ("dinov2", True),
        ("dinov2", False),
        ("dinov2_with_registers", True),
        ("dinov2_with_registers", False),
        ("vit", False),
    ],
)
def test_a_transformer_equals_a_forward_pass_from_its_tensors(kind: str, hub: bool) -> None:
    state, registers = tiny.hub_state(kind), kind == "dinov2_with_registers"
    offset = 0.1 if hub and not registers else 0.0
    saved = state if hub else tiny.old_names(state, kind)
    module, beyond = loaded(tiny.tiny(kind), saved)
    forward = partial(tiny.tokens, state, IMAGES, scaled=kind != "vit")
    first = 4 if registers else 1
    assert max(errors(module, forward(offset=offset, antialias=registers), first)) < 2e-5
    assert errors(module, forward(offset=0.1 - offset, antialias=registers), first)[0] > 1e-3, "the other offset"
    assert errors(module, forward(offset=offset, antialias=not registers), first)[0] > 1e-3, "the other interpolation"
    assert errors(module, forward(offset=offset, antialias=registers).flip(1), first)[0] > 0.1, "tokens turned round"
    assert beyond == (() if kind == "vit" else ("embeddings.mask_token",))


def test_an_exchanged_query_and_key_fail_the_same_comparison() -> None:
    state = tiny.hub_state("dinov2")
    other = {**state}
    for name in [name for name in state if ".attn.qkv." in name]:
        query, key, value = state[name].chunk(3)
        other[name] = torch.cat([value, key, query])
    module, _ = loaded(tiny.tiny("dinov2"), other)
    assert errors(module, tiny.tokens(state, IMAGES, offset=0.1, antialias=False), 1)[0] > 0.1


def test_position_embeddings_of_their_own_grid_are_taken_as_they_are() -> None:
    state, size = tiny.hub_state("dinov2"), (32, 32)
    module, _ = loaded(tiny.tiny("dinov2", size), state, size)
    assert isinstance(module, SizedBackbone)
    expected = state["pos_embed"][:, 1:]
    assert torch.equal(module.get_buffer("positions")[:, 1:], expected)
    assert torch.equal(module.get_buffer("positions")[:, :1], state["pos_embed"][:, :1] + state["cls_token"])


def test_the_names_a_vocabulary_saves_are_read_again() -> None:
    state = tiny.hub_state("dinov2_with_registers")
    module, _ = loaded(tiny.tiny("dinov2_with_registers"), state)
    again, beyond = loaded(tiny.tiny("dinov2_with_registers"), dict(module.state_dict()))
    with torch.inference_mode():
        assert torch.equal(module(IMAGES)[0], again(IMAGES)[0])
    assert beyond == ()


def test_every_tensor_is_accounted_for() -> None:
    state = tiny.hub_state("dinov2")
    with pytest.raises(InputError, match=r"lacks network\.encoder\.layer\.1\.norm2\.bias of the backbone tiny-dinov2"):
        loaded(tiny.tiny("dinov2"), {name: each for name, each in state.items() if name != "blocks.1.norm2.bias"})
    with pytest.raises(InputError, match=r"holds layers\.0\.attention\.odd, which the backbone tiny-dinov2"):
        loaded(tiny.tiny("dinov2"), {**state, "layers.0.attention.odd": torch.ones(2)})
    with pytest.raises(InputError, match=r"holds layernorm\.bias twice, one of them as layernorm\.bias"):
        loaded(tiny.tiny("dinov2"), {**state, "layernorm.bias": torch.ones(tiny.WIDTH)})
    with pytest.raises(InputError, match=r"layers\.0\.attn\.qkv\.bias is \(5,\), expected 3 equal parts in its rows"):
        loaded(tiny.tiny("dinov2"), {**state, "blocks.0.attn.qkv.bias": torch.ones(5)})


def test_the_benchmark_s_vit_is_found_at_its_depth_and_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated to one of two layers, behind either name of the benchmark's code, for images of its own 32x32."""
    settings = tiny.settings("vit")
    named = transformers_backbone("vit-b16", "vit", settings, tiny.WIDTH, ImageInput(resize=Resize(size=(32, 32))))
    monkeypatch.setitem(BACKBONES, "vit-b16", named)
    state = {name: each for name, each in tiny.hub_state("vit").items() if not name.startswith("blocks.1.")}
    head = {
        "aggregation.conv.weight": torch.randn(3, tiny.WIDTH, 1),
        "aggregation.centroids": torch.randn(3, tiny.WIDTH),
    }
    for root in ("backbone.", "backbone.vit_model."):
        saved = {root + name: each for name, each in tiny.old_names(state, "vit").items()}
        saved[f"{root}pooler.dense.weight"] = torch.ones(tiny.WIDTH, tiny.WIDTH)
        torch.save({**saved, **head}, tmp_path / "best.pth")
        ready = read_backbone(None, tmp_path / "best.pth")
        assert (ready.name, ready.images.size, ready.images.fixed) == ("vit-b16", (32, 32), True)
        ready = read_backbone(None, tmp_path / "best.pth", changes=ImageChanges(resize=Resize(size=tiny.SIZE)))
        expected = tiny.tokens(state, IMAGES, offset=0.0, antialias=False, scaled=False)
        assert max(errors(ready.module, expected, 1)) < 2e-5


def test_a_file_of_salad_is_its_dinov2_under_its_aggregator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map and class token go to the aggregator; the file's names are torch.hub's, and so is the interpolation."""
    named = transformers_backbone("dinov2-b", "dinov2", tiny.settings("dinov2"), tiny.WIDTH, ImageInput())
    monkeypatch.setitem(BACKBONES, "dinov2-b", named)
    state, random = tiny.hub_state("dinov2"), torch.Generator().manual_seed(8)
    saved = {f"backbone.model.{name}": each for name, each in state.items()}
    for name, rows, columns in (
        ("token_features.0", 16, tiny.WIDTH), ("token_features.2", 6, 16), ("cluster_features.0", 16, tiny.WIDTH),
        ("cluster_features.3", 4, 16), ("score.0", 16, tiny.WIDTH), ("score.3", 5, 16),
    ):  # fmt: skip
        shape = (rows, columns) if name.startswith("token") else (rows, columns, 1, 1)
        saved |= {f"aggregator.{name}.weight": torch.randn(shape, generator=random) / 4}
        saved |= {f"aggregator.{name}.bias": torch.randn(rows, generator=random)}
    torch.save({"state_dict": {**saved, "aggregator.dust_bin": torch.tensor(0.7)}}, tmp_path / "salad.ckpt")
    changes = ImageChanges(resize=Resize(size=tiny.SIZE))
    pipeline = load_module(Source(checkpoint=tmp_path / "salad.ckpt", changes=changes))[0]
    assert isinstance(pipeline, Pipeline)
    images = torch.from_numpy(np.stack([golden_image(*tiny.SIZE, seed) for seed in (1, 2)]))
    normalized = (images - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    expected = tiny.tokens(state, normalized.permute(0, 3, 1, 2), offset=0.1, antialias=False)
    with torch.inference_mode():
        got, wanted = pipeline(images), pipeline.head(expected[:, 1:], expected[:, 0])
        swapped = pipeline.head(expected[:, 1:], expected[:, 1])
    assert float((got - wanted).abs().max()) < 1e-5
    assert float((got - swapped).abs().max()) > 1e-3, "another token for the class token"


@pytest.mark.parametrize(
    ("resize", "said"),
    [
        ("none", r"takes images of one size, images are of several \(.*no resize\): pass --resize HxW, or --crop HxW"),
        ("shorter:32", "takes images of one size"),
        ("28x41", "multiple of 8, images are 28x41: pass --resize 32x40, or --crop 24x40"),
    ],
)
def test_a_size_that_cannot_be_taken_is_refused(resize: str, said: str) -> None:
    module = tiny.tiny("dinov2").build()
    images = ImageInput(resize=Resize.parse(resize))
    with pytest.raises(UsageError, match=said):
        weights.fix_size(module, "tiny", images)
    with pytest.raises(ValueError, match="expected None"):
        module(IMAGES)


def test_a_crop_decides_the_size() -> None:
    module = tiny.tiny("dinov2").build()
    images = weights.fix_size(module, "tiny", ImageInput(resize=Resize(shortest=30), crop=(24, 24)))
    assert (images.size, images.fixed) == ((24, 24), True)


def test_networks_by_name_give_maps_of_their_width() -> None:
    """The convolutional ones whole; of the transformers, the settings alone: their code is tried above."""
    for name, side in (("mobilenetv2", 64), ("efficientnet-b0", 64)):
        ready = read_backbone(name, changes=ImageChanges(resize=Resize(size=(side, side))), seed=0)
        with torch.inference_mode():
            assert ready.module(torch.zeros(1, 3, side, side)).shape == (1, ready.width, 2, 2)
        assert ready.images.fixed == (name == "mobilenetv2")
    for name, width, depth, patch in (
        ("dinov2-s", 384, 12, 14), ("dinov2-b-registers", 768, 12, 14), ("dinov2-l", 1024, 24, 14),
        ("vit-b16", 768, 12, 16),
    ):  # fmt: skip
        with torch.device("meta"):
            state = BACKBONES[name].build().state_dict()
        projection = next(each for key, each in state.items() if key.endswith("projection.weight"))
        assert (BACKBONES[name].width, projection.shape) == (width, (width, 3, patch, patch))
        layers = {key.split("layer")[1].split(".")[1] for key in state if ".layer." in key or ".layers." in key}
        assert len(layers) == depth
