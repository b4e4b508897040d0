"""Tensors beside a head, anywhere in the file, are used, refused, or left out by an option that says so."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import find_head, read_head
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.workflow.source import Source, load_module
from tests.models.backbones import networks
from tests.models.dialects import formulas
from tests.models.dialects.samples import SAMPLES, State, projection
from tests.models.dialects.samples import Source as Random
from tests.models.dialects.test_dialects import descriptors, local_descriptors

pytestmark = pytest.mark.export

CLUSTERS, WIDTH = 4, 8


def layer(start: str) -> State:
    return Random(3).convolution(CLUSTERS, WIDTH, 9.0, start)


def save(folder: Path, state: State) -> Path:
    torch.save({"epoch": 3, "state_dict": state}, folder / "best.pth")
    return folder / "best.pth"


def refusal(path: Path, **options: object) -> str:
    """Return the one line that refuses an export."""
    with pytest.raises(InputError) as refused:
        load_module(Source(checkpoint=path, **options))  # type: ignore[arg-type]
    message = str(refused.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("prefix", ["", "pool", "pool._orig_mod", "pool._orig_mod.", "module.pool"])
@pytest.mark.parametrize("wrapped", ["pool._orig_mod.", "pool.module.", "_orig_mod.pool.", "module._orig_mod.pool."])
def test_whitening_outside_the_prefix_is_used(tmp_path: Path, wrapped: str, prefix: str) -> None:
    state = {**layer("pool."), **projection("WPCA.0.weight", 5, CLUSTERS * WIDTH, 1, 1)(Random(4))}
    path = save(tmp_path, {name.replace("pool.", wrapped): tensor for name, tensor in state.items()})
    head = read_head(path, prefix=prefix)
    assert (head.dialect, head.spec.descriptor_size, head.assumed) == ("patch-netvlad", 5, "")
    x = local_descriptors(WIDTH)
    expected = formulas.patch_netvlad({name: tensor.double().numpy() for name, tensor in state.items()}, x)
    assert np.abs(descriptors(head, x) - expected).max() < 1e-10


@pytest.mark.parametrize("before", ["model.", "net.", "ema_model.", "student.module.network."])
@pytest.mark.parametrize(
    "name",
    ["pytorch-netvlad", "patch-netvlad", "deep-visual-geo-localization, fc", "hloc, whiten", "openibl, pca_layer",
     "pointnetvlad", "overlaptransformer", "soccernet", "openplacerecognition", "lyakaap, bare"],
)  # fmt: skip
def test_a_wrapper_before_all_names_changes_nothing(tmp_path: Path, name: str, before: str) -> None:
    sample = SAMPLES[name]
    plain = read_head(sample.save(tmp_path))
    state = {before + key: tensor for key, tensor in sample.state.items()}
    for beside in (
        {},
        {"criterion.centers": torch.ones(9, 7), "step": torch.ones(())},
        {"x.weight": torch.ones(101, 2)},
    ):
        path = sample.save(tmp_path, {**state, **beside})
        for prefix in ("", before):
            head = read_head(path, prefix=prefix)
            assert (head.dialect, head.spec) == (plain.dialect, plain.spec)
            assert all(torch.equal(head.tensors[key], tensor) for key, tensor in plain.tensors.items())
    assert "x.weight" in find_head(path).unplaced
    assert "x.* (1 tensor) beside the head, and nothing says whether" in refusal(path)


def test_a_projection_of_any_name_outside_the_prefix_is_refused_or_left_out_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, {**layer("aggregator."), **projection("fc.weight", 5, CLUSTERS * WIDTH)(Random(4))})
    for prefix in ("", "aggregator"):
        for takes in (None, FEATURES):
            message = refusal(path, prefix=prefix, takes=takes)
            assert message.endswith("does not have: fc.weight: pass --head-only for the descriptor before it")
    module = load_module(Source(checkpoint=path, head_only=True))[0]
    assert isinstance(module, NetVLAD)
    assert module.spec.projection is None


@pytest.mark.parametrize("name", ["bnneck.running_mean", "scale", "pool.bn2.weight"])
def test_a_batch_norm_or_scale_of_the_descriptor_alone_is_a_projection(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, {**layer("pool."), name: torch.ones(CLUSTERS * WIDTH)})
    assert f"a projection after the head that pytorch-netvlad does not have: {name}" in refusal(path)
    assert read_head(path, head_only=True).spec.projection is None


def test_a_batch_norm_of_local_descriptors_is_refused_or_left_out_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, {**layer("pool."), "bn.running_var": torch.ones(WIDTH), "bn.bias": torch.ones(WIDTH)})
    assert "holds bn.* (2 tensors) beside the head, and nothing says whether that stands before" in refusal(path)
    assert find_head(path).unplaced == ("bn.bias", "bn.running_var")
    load_module(Source(checkpoint=path, takes=FEATURES))
    one_value = {"logit_scale": torch.ones(()), "gem.p": torch.ones(1), "steps": torch.arange(9)}
    load_module(Source(checkpoint=save(tmp_path, {**layer("pool."), **one_value})))


def test_a_layer_after_a_projection_is_refused_too(tmp_path: Path) -> None:
    """A second layer takes the whitened descriptor, not the aggregate."""
    state = {**layer("pool."), **projection("WPCA.0.weight", 5, CLUSTERS * WIDTH, 1, 1)(Random(4))}
    path = save(tmp_path, {**state, "mlp.weight": torch.ones(3, 5)})
    assert "a projection after the head that patch-netvlad does not have: mlp.weight" in refusal(path)


def test_a_backbone_outside_the_prefix_is_used_where_it_is_known(tmp_path: Path) -> None:
    weights = networks.alexnet_state()
    random = Random(5)
    head = random.convolution(3, 256, 9.0, "aggregation.")
    path = save(tmp_path, {**{f"backbone.{name}": tensor for name, tensor in weights.items()}, **head})
    for prefix in ("", "aggregation"):
        module = load_module(Source(checkpoint=path, prefix=prefix))[0]
        assert isinstance(module, Pipeline)
        assert module.name == "alexnet"
    wrapped = {f"model.{name}": tensor for name, tensor in torch.load(path, weights_only=True)["state_dict"].items()}
    for prefix in ("", "model", "model.aggregation"):
        module = load_module(Source(checkpoint=save(tmp_path, wrapped), prefix=prefix))[0]
        assert isinstance(module, Pipeline)
        assert torch.equal(module.backbone.state_dict()["10.weight"], weights["10.weight"])


@pytest.mark.parametrize("root", ["backbone.", "encoder.", "base_model."])
@pytest.mark.parametrize("start", ["aggregator.", "model.vlad.", "head."])
def test_a_backbone_of_an_unknown_project_is_refused_or_left_out_by_name(tmp_path: Path, start: str, root: str) -> None:
    state = {**layer(start), **Random(6).vgg(root)}
    path = save(tmp_path, state)
    message = refusal(path)
    assert f"the backbone {root}* (3 tensors) is a network of 2 convolutions, from 3 input channels to 4" in message
    assert message.endswith("or --input features for the head alone")
    assert isinstance(load_module(Source(checkpoint=path, takes=FEATURES))[0], NetVLAD)


@pytest.mark.parametrize(
    ("name", "beside", "left_out"),
    [
        ("soccernet", "feature_extractor.weight", "feature_extractor.* (1 tensor)"),
        ("soccernet-temporally-aware", "feature_extractor.weight", "feature_extractor.* (1 tensor)"),
        ("hloc", "adapter.weight", "adapter.* (1 tensor)"),
    ],
)
def test_a_layer_that_may_stand_before_the_head_is_refused_or_left_out_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, beside: str, left_out: str
) -> None:
    sample = SAMPLES[name]
    state = {key: tensor for key, tensor in sample.state.items() if not key.startswith("backbone.")}
    path = sample.save(tmp_path, {**state, beside: torch.ones(sample.width, 3)})
    message = refusal(path)
    assert f"holds {left_out} beside the head, and nothing says whether that stands before or after it" in message
    assert message.endswith("--input features for the head on its local descriptors, or --head-only to leave it out")
    with caplog.at_level("INFO"):
        assert isinstance(load_module(Source(checkpoint=path, takes=FEATURES))[0], NetVLAD)
        assert isinstance(load_module(Source(checkpoint=path, head_only=True))[0], NetVLAD)
    assert any(each.startswith("ignored: ") and left_out in each for each in caplog.messages)
    assert f"left out: {beside}: the descriptor is the one before the projection" in caplog.messages


def test_gated_units_of_collaborative_experts_are_projections(tmp_path: Path) -> None:
    """The gated units map the pooled text on, and stand outside `text_pooling`."""
    sample = SAMPLES["collaborative-experts, text_pooling"]
    state = {**sample.state, "module.text_GU.audio.fc.weight": torch.ones(4, 60)}
    message = refusal(sample.save(tmp_path, state), prefix="text_pooling")
    assert "a projection after the head that collaborative-experts does not have: text_GU.audio.fc.weight" in message
    head = read_head(sample.save(tmp_path, sample.state), prefix="text_pooling")
    assert head.projections == ()
    assert not any(name.startswith("pooling.") for name in head.unplaced)
    assert "holds 2 NetVLADs: pooling.audio, text_pooling: " in refusal(sample.save(tmp_path))


@pytest.mark.parametrize("name", ["pointnetvlad", "overlaptransformer", "overlapnetvlad"])
def test_a_network_of_points_is_left_out_by_name_alone(tmp_path: Path, name: str) -> None:
    path = SAMPLES[name].save(tmp_path)
    assert "--input features" in refusal(path)
    module = load_module(Source(checkpoint=path, takes=FEATURES))[0]
    assert isinstance(module, NetVLAD)
    assert module.spec.projection is not None


def test_two_copies_of_a_network_must_be_chosen_from(tmp_path: Path) -> None:
    own, averaged = layer("pool."), {name: tensor + 1 for name, tensor in layer("ema_model.pool.").items()}
    path = save(tmp_path, {**own, **averaged})
    assert "holds 2 NetVLADs: ema_model.pool, pool: choose one with --prefix" in refusal(path)
    assert torch.equal(read_head(path, prefix="pool").tensors["clusters2"][0].T, own["pool.centroids"])
    chosen = read_head(path, prefix="ema_model")
    assert torch.equal(chosen.tensors["clusters2"][0].T, averaged["ema_model.pool.centroids"])


def test_a_prefix_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    path = save(tmp_path, layer("pool."))
    assert "holds no NetVLAD behind --prefix vlad: there is one behind pool" in refusal(path, prefix="vlad")
    assert "lacks pool.conv.weight" in refusal(save(tmp_path, {"pool.centroids": torch.ones(2, 3)}), prefix="pool")


def test_two_tensors_of_one_name_without_their_wrappers_are_refused(tmp_path: Path) -> None:
    state = layer("pool.")
    twice = {**state, "pool._orig_mod.centroids": state["pool.centroids"].clone()}
    assert read_head(save(tmp_path, twice)).spec.num_clusters == CLUSTERS
    assert "holds pool.centroids twice" in refusal(save(tmp_path, {**twice, "pool._orig_mod.centroids": torch.ones(2)}))
    assert "twice" in refusal(save(tmp_path, {**state, "pool._orig_mod.centroids": state["pool.centroids"].half()}))
    twice["pool._orig_mod.centroids"][0, 0] += 1
    message = refusal(save(tmp_path, twice))
    assert message.endswith(
        "holds pool.centroids twice, as it is and wrapped as pool._orig_mod.centroids: save one of them"
    )


def test_every_name_is_used_ignored_or_refused(tmp_path: Path) -> None:
    """No tensor of any sample is lost: each is the head's, the projection's, or listed as ignored."""
    for sample in SAMPLES.values():
        head = find_head(sample.save(tmp_path), **sample.options)
        listed = {re.sub(r"module\.", "", name) for name in sample.state}
        rest = listed - set(head.ignored) - set(head.projected)
        made = 1 if rest in ({"aggregation.conv.weight"}, {"c_centers"}) else 0  # layers that one tensor makes up
        own = len([name for name in head.tensors if name != "batch_norm.eps"]) - len(following(head)) - made
        assert len(rest) in (own, own + 1)


def following(head: object) -> list[str]:
    return [name for name in head.tensors if name.startswith(("projection.", "gating."))]  # type: ignore[attr-defined]
