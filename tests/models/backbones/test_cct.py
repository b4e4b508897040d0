"""CCT-14 in the benchmark's files: tokens by a pass of its own, cut layers, and images of one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import BACKBONES
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ALIASED, ImageChanges, Resize
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.validate import validate
from tests.models.backbones.networks import Maker, Shapes, State
from tests.models.dialects import formulas
from tests.pipelines import read_pipeline

pytestmark = [pytest.mark.export, pytest.mark.ort]

WIDTH, SIDE = 384, 384


def cct_state(layers: int, make: Maker) -> State:
    """Return the tensors of a CCT with so many layers, by the names of the benchmark's module, without its prefix."""

    def linear(name: str, before: int, after: int, *, bias: bool = True) -> State:
        state = {f"{name}.weight": make(after, before, scale=(1.5 / before) ** 0.5)}
        return {**state, f"{name}.bias": make(after, scale=0.1)} if bias else state

    def norm(name: str) -> State:
        return {f"{name}.weight": 1 + make(WIDTH, scale=0.2), f"{name}.bias": make(WIDTH, scale=0.2)}

    state = {
        "tokenizer.conv_layers.0.0.weight": make.kernel(3, 64, 7),
        "tokenizer.conv_layers.1.0.weight": make.kernel(64, WIDTH, 7),
        "classifier.positional_emb": make(1, 576, WIDTH, scale=0.5),
        **linear("classifier.attention_pool", WIDTH, 1),
        **norm("classifier.norm"),
    }
    for number in range(layers):
        start = f"classifier.blocks.{number}"
        state |= {**norm(f"{start}.pre_norm"), **norm(f"{start}.norm1")}
        state |= linear(f"{start}.self_attn.qkv", WIDTH, 3 * WIDTH, bias=False)
        state |= {**linear(f"{start}.self_attn.proj", WIDTH, WIDTH), **linear(f"{start}.linear1", WIDTH, 3 * WIDTH)}
        state |= linear(f"{start}.linear2", 3 * WIDTH, WIDTH)
    return state


def tokens_of(state: State, x: Tensor, layers: int, *, post_norm: bool = True) -> Tensor:
    """Return the tokens (B,576,384) of normalised images, from the tensors alone."""

    def normed(name: str, t: Tensor) -> Tensor:
        centred = t - t.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    for number in (0, 1):
        x = functional.conv2d(x, state[f"tokenizer.conv_layers.{number}.0.weight"], stride=2, padding=3).clamp(min=0)
        x = functional.max_pool2d(x, 3, 2, padding=1)
    t = torch.stack([x[:, :, row, column] for row in range(24) for column in range(24)], dim=1)
    t = t + state["classifier.positional_emb"]
    for number in range(layers):
        start = f"classifier.blocks.{number}"
        joined = normed(f"{start}.pre_norm", t) @ state[f"{start}.self_attn.qkv.weight"].T
        taken = []
        for head in range(6):
            q, k, v = (joined[..., part * 384 + head * 64 :][..., :64] for part in range(3))
            taken.append((q @ k.mT / 8).softmax(-1) @ v)
        mixed = torch.cat(taken, -1) @ state[f"{start}.self_attn.proj.weight"].T + state[f"{start}.self_attn.proj.bias"]
        t = t + mixed
        t = normed(f"{start}.norm1", t) if post_norm else t
        hidden = t @ state[f"{start}.linear1.weight"].T + state[f"{start}.linear1.bias"]
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        t = t + hidden @ state[f"{start}.linear2.weight"].T + state[f"{start}.linear2.bias"]
    return normed("classifier.norm", t)


def head() -> State:
    random = Maker(7)
    return {"aggregation.conv.weight": random(3, WIDTH, 1, scale=8.0), "aggregation.centroids": random(3, WIDTH)}


def save(folder: Path, state: State) -> Path:
    whole = {**{f"backbone.{name}": tensor for name, tensor in state.items()}, **head()}
    torch.save({"model_state_dict": whole}, folder / "best_model.pth")
    return folder / "best_model.pth"


def test_a_pipeline_equals_a_pass_of_its_own_and_other_layers_do_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = cct_state(2, Maker(1))
    with caplog.at_level("INFO"):
        pipeline = read_pipeline(save(tmp_path, state))
    assert pipeline.name == "cct384"
    assert pipeline.images.resize == Resize(size=(SIDE, SIDE), filter=ALIASED)
    assert pipeline.images.fixed
    assert "ignored: backbone.* (2 tensors)" in caplog.messages, "the pooling of tokens is behind the cut"
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), dtype=np.uint8))
    x = (images.float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    own = {name: tensor.double().numpy() for name, tensor in head().items()}
    with torch.inference_mode():
        got = pipeline(images).double().numpy()
        for post_norm, right in ((True, True), (False, False)):
            tokens = tokens_of(state, x.permute(0, 3, 1, 2), 2, post_norm=post_norm)
            wanted = formulas.deep_visual_geo_localization(own, tokens.double().numpy())
            distance = float(1 - (got * wanted).sum() / np.linalg.norm(got) / np.linalg.norm(wanted))
            assert (distance < 1e-8) is right, distance
            assert right or distance > 1e-4


@pytest.mark.parametrize("layers", [14, 9, 1])
def test_layers_that_were_cut_off_are_not_missing(layers: int) -> None:
    backbone, tensors = BACKBONES["cct384"].read(cct_state(layers, Shapes()))
    with torch.device("meta"):
        built = {name: tensor.shape for name, tensor in backbone.build().state_dict().items()}
    pooled = {name: tensor.shape for name, tensor in tensors.items() if "attention_pool" not in name}
    assert built == pooled


def test_a_hole_among_the_layers_and_a_missing_tensor_are_named(tmp_path: Path) -> None:
    state = cct_state(3, Maker(2))
    holed = {name: tensor for name, tensor in state.items() if ".blocks.1." not in name}
    with pytest.raises(InputError, match=r"lacks backbone.classifier.blocks.1.linear1.bias, .*of the backbone cct384"):
        read_pipeline(save(tmp_path, holed))
    del state["classifier.blocks.2.norm1.bias"]
    with pytest.raises(InputError, match=r"lacks backbone.classifier.blocks.2.norm1.bias of the backbone cct384"):
        read_pipeline(save(tmp_path, state))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, cct_state(1, Maker(3)))
    words = "has position embeddings for 384x384 alone, images are 480x640: pass --resize 384x384"
    with pytest.raises(UsageError, match=words):
        read_pipeline(path, changes=ImageChanges(resize=Resize(size=(480, 640))))
    with pytest.raises(UsageError, match=words):
        read_backbone("cct384", changes=ImageChanges(resize=Resize(size=(480, 640))), seed=0)


def test_its_graph_in_fp16_is_proved_by_its_golden_images(tmp_path: Path) -> None:
    pipeline = read_pipeline(save(tmp_path, cct_state(1, Maker(4))))
    artifact = export_onnx(pipeline, tmp_path / "cct.onnx", GraphOptions(precision="fp16"))
    assert validate(Candidate(path=artifact.path)).verdict is Verdict.PASS
