"""Where the keys of two dialects coincide, a file is told apart, refused with both names, or its reading is said."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import find_head, read_head, read_heads
from netvlad_deploy.models.dialects import DIALECTS, find_head_in
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.tensor_names import unwrapped
from tests.command import Command
from tests.models.dialects.samples import SAMPLES, Sample, State
from tests.models.dialects.test_dialects import descriptors, local_descriptors

pytestmark = pytest.mark.export

NAMES = [dialect.name for dialect in DIALECTS]
COINCIDING = {
    ("collaborative-experts", "mixture-of-embedding-experts"),
    ("collaborative-experts", "soccernet-temporally-aware"),
    ("pointnetvlad", "overlaptransformer"),
    ("pointnetvlad", "overlapnetvlad"),
    ("overlaptransformer", "overlapnetvlad"),
}
"""The dialects that read the tensors of one and the same layer, if they are made to, and give other descriptors."""


def layer_alone(sample: Sample) -> State:
    """Return the tensors of one layer saved by itself, and of the layers within it, without its name."""
    state = unwrapped(sample.state)
    place, _ = find_head_in(state, prefix=sample.prefix, name=sample.dialect)
    return {name.removeprefix(place.start): each for name, each in state.items() if name.startswith(place.start)}


def reading(state: State, name: str) -> Head | None:
    """Return the head as a dialect reads it that is made to, None if its keys are not there."""
    try:
        return find_head_in(state, name=name)[1]
    except InputError:
        return None


def differ(head: Head, other: Head) -> bool:
    """Return True if two readings of the same tensors give other descriptors."""
    x = local_descriptors(head.spec.feature_size)
    first, second = descriptors(head, x), descriptors(other, x)
    return first.shape != second.shape or float(np.abs(first - second).max()) > 1e-6


def said_of(state: State) -> tuple[Head | None, set[str]]:
    """Return the reading of a file, None if it is refused, and the words of the log or of the refusal."""
    try:
        head = find_head_in(state)[1]
    except InputError as error:
        return None, set(re.findall(r"[a-z-]+", str(error)))
    return head, set(re.findall(r"[a-z-]+", f"{head.dialect} {head.assumed}"))


@pytest.mark.parametrize("own", NAMES)
def test_no_pair_of_dialects_is_confused(own: str) -> None:
    """Another dialect's reading of a sample, whole or as a layer alone, is never taken without a word."""
    coincide = set()
    for sample in (each for each in SAMPLES.values() if each.dialect == own):
        if not sample.chosen:
            assert find_head_in(unwrapped(sample.state), prefix=sample.prefix)[1].dialect == own
        alone = layer_alone(sample)
        mine = reading(alone, own)
        for other in NAMES:
            theirs = reading(alone, other)
            if mine is None or theirs is None or not differ(mine, theirs):
                continue
            coincide.add(other)
            found, words = said_of(alone)
            assert {own, other} <= words or (found is not None and not differ(found, mine))
    assert coincide == {other for pair in COINCIDING if own in pair for other in pair} - {own}


def test_the_refusal_names_the_differing_conventions() -> None:
    state = {name: each for name, each in SAMPLES["overlaptransformer"].state.items() if name.startswith("net_vlad.")}
    with pytest.raises(InputError) as refused:
        find_head_in(state)
    assert str(refused.value) == (
        "could be pointnetvlad or overlaptransformer or overlapnetvlad, and nothing beside net_vlad.cluster_weights "
        "says which (local descriptors as they come in pointnetvlad, L2-normalised first in overlaptransformer, "
        "projection with BatchNorm in pointnetvlad, alone in overlaptransformer, descriptor not L2-normalised in "
        "pointnetvlad, L2-normalised in overlaptransformer; projection with BatchNorm in pointnetvlad, alone in "
        "overlapnetvlad): choose --dialect"
    )
    for name in ("pointnetvlad", "overlaptransformer"):
        assert find_head_in(state, name=name)[1].dialect == name


@pytest.mark.parametrize("beside", ["point_net.conv1.weight", "transformer_encoder.layers.0.linear1.weight"])
def test_names_beside_the_layer_tell_the_dialect(beside: str) -> None:
    head = {name: each for name, each in SAMPLES["pointnetvlad"].state.items() if name.startswith("net_vlad.")}
    state = {**head, beside: SAMPLES["pointnetvlad"].state["point_net.conv1.weight"]}
    expected = "pointnetvlad" if beside.startswith("point_net") else "overlaptransformer"
    assert find_head_in(state)[1].dialect == expected
    assert find_head_in({f"model.{name}": each for name, each in state.items()})[1].dialect == expected


def test_the_three_layers_of_cvtnet_are_refused_together() -> None:
    """CVTNet joins the three descriptors; the descriptor of one layer is not the network's."""
    layer = {name: each for name, each in SAMPLES["overlaptransformer"].state.items() if name.startswith("net_vlad.")}
    state = {
        name.replace("net_vlad.", f"{start}."): each
        for start in ("net_vlad", "net_vlad_ri", "net_vlad_bev")
        for name, each in layer.items()
    }
    with pytest.raises(InputError, match=r"holds 3 NetVLADs: net_vlad, net_vlad_bev, net_vlad_ri: choose one with"):
        find_head_in(state)
    with pytest.raises(InputError, match="could be pointnetvlad or overlaptransformer"):
        find_head_in(state, prefix="net_vlad_ri")
    assert find_head_in(state, prefix="net_vlad_ri", name="overlaptransformer")[1].spec.normalize_input


@pytest.mark.parametrize("prefix", ["pool_layer_before", "pool_layer_after"])
def test_one_half_of_soccernets_netvlad_is_chosen_by_its_name(tmp_path: Path, prefix: str) -> None:
    sample = SAMPLES["soccernet-temporally-aware, NetVLAD++"]
    path = sample.save(tmp_path)
    with pytest.raises(InputError, match="holds 2 NetVLADs: pool_layer_after, pool_layer_before: choose one"):
        read_head(path)
    head = read_head(path, prefix=prefix)
    assert (head.dialect, head.spec.normalize_input, head.assumed) == ("soccernet-temporally-aware", True, "")
    assert head.tensors["clusters"].equal(sample.state[f"{prefix}.clusters"])


def test_a_layer_without_a_name_is_read_with_a_line_that_says_how(tmp_path: Path, command: Command) -> None:
    openibl = SAMPLES["openibl"].state
    state = {name.replace("net_vlad.", "aggregator."): each for name, each in openibl.items() if "net_vlad" in name}
    path = SAMPLES["openibl"].save(tmp_path, state)
    said = (
        "openibl, by aggregator.conv.weight alone (local descriptors L2-normalised first, logits without a bias, "
        "residual x - c, order k*D+d, descriptor L2-normalised)"
    )
    assert find_head(path).assumed == said
    assert f"  assumed: {said}\n" in command("inspect", path).out
    assert f"assumed: {said}\n" in command("export", path).err
    assert find_head(path, dialect="openibl").assumed == ""


def test_batch_norm_that_may_not_be_used_is_said(tmp_path: Path) -> None:
    said = find_head(SAMPLES["mixture-of-embedding-experts"].save(tmp_path)).assumed
    assert said == (
        "collaborative-experts, not mixture-of-embedding-experts, which saves the same keys (logits with BatchNorm in "
        "collaborative-experts, without a bias in mixture-of-embedding-experts)"
    )
    assert find_head(SAMPLES["collaborative-experts"].save(tmp_path)).assumed == ""


def test_images_of_patch_netvlad_before_whitening_are_said(tmp_path: Path) -> None:
    sample = SAMPLES["pytorch-netvlad"]
    backbone = find_head(sample.save(tmp_path)).backbone
    assert backbone is not None
    assert backbone.assumed.endswith("resizes to 480x640: --dialect patch-netvlad)")
    chosen = find_head(sample.save(tmp_path), dialect="patch-netvlad").backbone
    assert chosen is not None
    assert (chosen.images.resize.size, chosen.assumed) == ((480, 640), "")


@pytest.mark.parametrize(
    ("name", "dialect", "message"),
    [
        ("lyakaap", "openibl", "holds net_vlad.conv.bias in the layer, which openibl does not have"),
        ("openibl", "lyakaap", "lacks net_vlad.conv.bias of lyakaap"),
        ("collaborative-experts", "soccernet-temporally-aware", "are not (D, K) and (1, D, K)"),
        ("patch-netvlad", "pytorch-netvlad", "a projection after the head that pytorch-netvlad does not have: WPCA.0"),
        ("hloc", "relja", "lacks vlad.assignment, vlad.negated_centres of relja"),
    ],
)
def test_a_dialect_that_contradicts_the_keys_is_refused(tmp_path: Path, name: str, dialect: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_head(SAMPLES[name].save(tmp_path), dialect=dialect)


def test_the_layers_of_cvtnet_are_read_each_in_its_own_way(tmp_path: Path) -> None:
    """One layer L2-normalises its local descriptors, two do not; attention as wide as a descriptor is before them."""
    heads = read_heads(SAMPLES["cvtnet"].save(tmp_path))
    assert {name: (head.dialect, head.spec.normalize_input) for name, head in heads.items()} == {
        "net_vlad": ("cvtnet", True),
        "net_vlad_ri": ("cvtnet-view", False),
        "net_vlad_bev": ("cvtnet-view", False),
    }


def test_a_transformer_as_wide_as_the_descriptor_is_no_projection(tmp_path: Path) -> None:
    sample = SAMPLES["overlaptransformer"]
    size = sample.state["net_vlad.hidden1_weights"].shape[1]
    state = {**sample.state, "transformer_encoder.layers.0.linear1.weight": torch.ones(1024, size)}
    assert read_head(sample.save(tmp_path, state)).dialect == "overlaptransformer"
    with pytest.raises(
        InputError, match="holds a projection after the head that overlaptransformer does not have: mlp"
    ):
        read_head(sample.save(tmp_path, {**state, "mlp.weight": torch.ones(7, size)}))
