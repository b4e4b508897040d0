"""Refused checkpoints: damaged, of another head, unknown, or with a projection after the head."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.export import onnx_model
from netvlad_deploy.models.checkpoints import load_checkpoint, read_head
from netvlad_deploy.models.dialects import DIALECTS
from netvlad_deploy.models.tensor_names import unwrapped
from netvlad_deploy.oracle.reference_file import reference_arrays
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, GATINGS, NORM_FLOORS, Projection
from netvlad_deploy.support.arrays import npz_content
from tests.models.dialects.samples import SAMPLES, Sample, State, projection
from tests.models.dialects.samples import Source as Random
from tests.modules import make_projected

pytestmark = pytest.mark.export

BARE = {name: replace(sample, state=unwrapped(sample.state)) for name, sample in SAMPLES.items() if not sample.prefix}
PROJECTED = [name for name, sample in SAMPLES.items() if sample.projected]


def needs(sample: Sample) -> list[str]:
    """Return the whole names that its dialect needs, the weight first and the centroids next."""
    dialect = next(each for each in DIALECTS if each.name == sample.dialect)
    (place,) = dialect.places(sample.state)
    return [place.start + name for name in dialect.needs]


def refusal(sample: Sample, folder: Path, state: State, **options: object) -> str:
    """Return the one line that refuses a state."""
    with pytest.raises(InputError) as refused:
        read_head(sample.save(folder, state), **{**sample.options, **options})
    message = str(refused.value)
    assert message.startswith(str(folder / "best.pth.tar"))
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", BARE)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    sample = BARE[name]
    for missing in needs(sample):
        state = {key: tensor for key, tensor in sample.state.items() if key != missing} or {"w": torch.ones(2, 2)}
        message = refusal(sample, tmp_path, state, dialect=sample.dialect)
        assert f"lacks {missing} of {sample.dialect}, found " in message
        if not missing.endswith(("bias", "out_projection.weight")):  # without them, it is another dialect
            assert re.search("lacks .*" + re.escape(missing.rpartition(".")[2]), refusal(sample, tmp_path, state))


SEVERAL = [name for name in BARE if len(needs(BARE[name])) > 1]
"""Samples whose sizes show in more than one tensor."""


@pytest.mark.parametrize("name", SEVERAL)
def test_a_transposed_tensor_is_refused_with_both_shapes(tmp_path: Path, name: str) -> None:
    sample = BARE[name]
    both = needs(sample)[:2]
    for key in both:
        last = sample.state[key].ndim - 1
        axes = (last - 1, last) if key.endswith("2") else (0, 1)
        state = {**sample.state, key: sample.state[key].transpose(*axes).contiguous()}
        message = refusal(sample, tmp_path, state)
        assert all(f"{name} {tuple(state[name].shape)}" in message for name in both)


@pytest.mark.parametrize("name", SEVERAL)
def test_centroids_of_another_head_are_refused_with_both_shapes(tmp_path: Path, name: str) -> None:
    sample = BARE[name]
    weight, centroids = needs(sample)[:2]
    state = {**sample.state, centroids: torch.cat([sample.state[centroids]] * 2, dim=-1)}
    if sample.dialect == "collaborative-experts":  # more centroids than columns, as if there were -G ghosts
        assert "num_ghost_clusters is -" in refusal(sample, tmp_path, state)
        state = {**sample.state, centroids: torch.cat([sample.state[centroids]] * 2, dim=1)}
    if sample.dialect == "mixture-of-embedding-experts":
        state = {**sample.state, centroids: sample.state[centroids][:, :, :-1]}
    message = refusal(sample, tmp_path, state)
    assert f"{weight} {tuple(state[weight].shape)} and {centroids} {tuple(state[centroids].shape)}" in message


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("lyakaap", "net_vlad.conv.bias", "(4,)"),
        ("pytorch-netvlad, vladv2", "pool.conv.bias", "(5,)"),
        ("pointnetvlad", "net_vlad.bn1.running_var", "(4,)"),
        ("pointnetvlad, cluster_biases", "net_vlad.cluster_biases", "(4,)"),
    ],
)
def test_a_bias_of_another_head_is_refused_with_both_shapes(tmp_path: Path, name: str, key: str, expected: str) -> None:
    message = refusal(SAMPLES[name], tmp_path, {**SAMPLES[name].state, key: torch.ones(3)})
    assert re.search(rf"weight\S* \(.*\) and {key} \(3,\) do not fit: expected {key} \({expected[1:-1]}\)", message)


def test_a_kernel_wider_than_one_is_refused(tmp_path: Path) -> None:
    sample = SAMPLES["soccernet"]
    state = {**sample.state, "pool_layer.conv.weight": torch.ones(5, 9, 3, 3)}
    assert "pool_layer.conv.weight (5, 9, 3, 3) and" in refusal(sample, tmp_path, state)


@pytest.mark.parametrize("name", BARE)
def test_a_tensor_that_is_not_finite_is_named_as_the_file_names_it(tmp_path: Path, name: str) -> None:
    sample = BARE[name]
    key = needs(sample)[0]
    damaged = sample.state[key].clone()
    damaged.view(-1)[0] = torch.inf
    assert f"{key} is not finite" in refusal(sample, tmp_path, {**sample.state, key: damaged})


def test_batch_norm_is_complete_or_not_there(tmp_path: Path) -> None:
    sample = SAMPLES["pointnetvlad"]
    without = {name: tensor for name, tensor in sample.state.items() if not name.startswith("net_vlad.bn1.")}
    assert "holds neither net_vlad.bn1.* and net_vlad.cluster_biases" in refusal(sample, tmp_path, without)
    both = {**sample.state, "net_vlad.cluster_biases": torch.ones(4)}
    assert "holds both" in refusal(sample, tmp_path, both)
    lame = {name: tensor for name, tensor in sample.state.items() if name != "net_vlad.bn1.running_mean"}
    assert "lacks net_vlad.bn1.running_mean of pointnetvlad" in refusal(sample, tmp_path, lame)


@pytest.mark.parametrize("key", ["aggregation.crn.conv1.weight", "aggregation.ab_params"])
def test_a_tensor_that_changes_the_layer_is_refused_under_all_options(tmp_path: Path, key: str) -> None:
    sample = SAMPLES["deep-visual-geo-localization"]
    message = refusal(sample, tmp_path, {**sample.state, key: torch.ones(3)}, head_only=True)
    assert f"holds {key} in the layer, which deep-visual-geo-localization does not have" in message


def test_an_unknown_checkpoint_is_refused_with_its_keys_and_the_nearest_dialect(tmp_path: Path) -> None:
    sample = SAMPLES["soccernet"]
    state = {f"layer{number:02}.weight": torch.ones(2) for number in range(20)}
    message = refusal(sample, tmp_path, state)
    assert message.endswith("layer10.weight, layer11.weight, ...")
    assert "layer12" not in message
    state["net_vlad.conv.weight"] = torch.ones(4, 9, 1, 1)
    assert "lacks net_vlad.centroids of openibl, the nearest dialect, found layer00" in refusal(sample, tmp_path, state)
    state["net_vlad.conv.bias"] = torch.ones(4)
    assert "lacks net_vlad.centroids of lyakaap, the nearest dialect" in refusal(sample, tmp_path, state)


def test_two_heads_in_one_checkpoint_must_be_told_apart(tmp_path: Path) -> None:
    hloc, openibl = SAMPLES["hloc"], SAMPLES["openibl"]
    state = {**hloc.state, **openibl.state}
    message = "holds 2 NetVLADs: net_vlad, netvlad: choose one with --prefix, or with --dialect (hloc, openibl)"
    assert message in refusal(hloc, tmp_path, state)
    assert read_head(hloc.save(tmp_path, state), prefix="netvlad").dialect == "hloc"
    assert read_head(hloc.save(tmp_path, state), dialect="hloc").spec.num_clusters == 5


def test_an_unknown_dialect_is_refused_with_all_names(tmp_path: Path) -> None:
    sample = SAMPLES["hloc"]
    with pytest.raises(UsageError, match=r"dialect 'vlad' is unknown: choose collaborative-experts, .*pointnetvlad"):
        read_head(sample.save(tmp_path), dialect="vlad")


@pytest.mark.parametrize("name", PROJECTED)
def test_a_projection_is_left_out_by_name_where_the_head_alone_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    sample = SAMPLES[name]
    whole = read_head(sample.save(tmp_path), **sample.options)
    caplog.clear()
    with caplog.at_level("INFO"):
        head = read_head(sample.save(tmp_path), head_only=True, **sample.options)
    warning, note = (record for record in caplog.records if not record.getMessage().startswith("assumed: "))
    assert (warning.levelname, note.levelname) == ("WARNING", "INFO")
    named = warning.getMessage().removeprefix("left out: ").partition(": ")
    assert named[2] == "the descriptor is the one before the projection"
    assert {key for key in named[0].split(", ") if key != "..."} <= set(whole.projected)
    assert set(head.ignored) == {*whole.ignored, *whole.projected}
    assert not set(whole.ignored) & set(whole.projected)
    assert head.spec == replace(whole.spec, projection=None)


PROJECTIONS = {
    "patch-netvlad": ("WPCA.0.weight", "WPCA.0.bias"),
    "deep-visual-geo-localization, fc": ("aggregation.1.weight", "aggregation.1.bias"),
    "openibl, pca_layer": ("pca_layer.weight", "pca_layer.bias"),
    "hloc, whiten": ("whiten.weight", "whiten.bias"),
    "pointnetvlad": ("net_vlad.hidden1_weights", "net_vlad.bn2.running_var"),
    "openplacerecognition": ("head.out_projection.weight", "head.out_projection.bias"),
    "relja": ("pca.weight", "pca.bias"),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_a_projection_that_does_not_fit_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    """The weight is missing, transposed, of a wider kernel or of another head, or the bias has another length."""
    sample, (weight, bias) = SAMPLES[name], PROJECTIONS[name]
    whole, inputs = sample.state[weight], read_head(sample.save(tmp_path), head_only=True).spec.aggregate_size
    expected = f"({inputs}, P)" if weight in ("net_vlad.hidden1_weights", "pca.weight") else f"(P, {inputs})"
    for missing in (weight, bias):
        state = {key: tensor for key, tensor in sample.state.items() if key != missing}
        assert f"lacks {missing}" in refusal(sample, tmp_path, state, dialect=sample.dialect)
    for damaged in (whole.transpose(0, 1), torch.cat([whole] * 2, 1 if whole.shape[1] == inputs else 0), whole[None]):
        message = refusal(sample, tmp_path, {**sample.state, weight: damaged.contiguous()})
        assert f"{weight} has shape {tuple(damaged.shape)}, expected {expected} for {inputs} values" in message
    message = refusal(sample, tmp_path, {**sample.state, bias: torch.ones(3)})
    size = whole.shape[0] if whole.shape[1] == inputs else whole.shape[1]
    assert f"{weight} {tuple(whole.shape)} and {bias} (3,) do not fit: expected {bias} ({size},)" in message


def test_a_projection_with_a_kernel_wider_than_one_is_refused(tmp_path: Path) -> None:
    sample = SAMPLES["patch-netvlad"]
    message = refusal(sample, tmp_path, {**sample.state, "WPCA.0.weight": torch.ones(8, 24, 3, 3)})
    assert "WPCA.0.weight has shape (8, 24, 3, 3), expected (P, 24)" in message


def test_gating_is_complete_and_square(tmp_path: Path) -> None:
    sample, start = SAMPLES["pointnetvlad"], "net_vlad.context_gating."
    for missing in ("gating_weights", "bn1.bias"):
        state = {key: tensor for key, tensor in sample.state.items() if key != start + missing}
        assert f"lacks {start}{missing}" in refusal(sample, tmp_path, state)
    narrow = {**sample.state, f"{start}gating_weights": torch.ones(6, 5)}
    assert f"{start}gating_weights has shape (6, 5), expected (6, 6)" in refusal(sample, tmp_path, narrow)
    other = {**sample.state, f"{start}gating_weights": torch.ones(5, 6)}
    assert f"{start}gating_weights has shape (5, 6), expected (6, P)" in refusal(sample, tmp_path, other)


@pytest.mark.parametrize(
    "key", ["WPCA.0.weight", "whiten.weight", "out_projection.weight", "gating_weights", "mystery.weight"]
)
def test_a_projection_of_any_name_is_found_by_its_width(tmp_path: Path, key: str) -> None:
    """Each name is of another dialect, or of none."""
    sample = SAMPLES["soccernet"]
    state = {**sample.state, **projection(key, 7, 45)(Random(0))}
    message = refusal(sample, tmp_path, state)
    assert "holds a projection after the head that soccernet does not have: " in message
    assert message.endswith(": pass --head-only for the descriptor before it")
    assert key in message
    assert key in read_head(sample.save(tmp_path, state), head_only=True).ignored


def test_a_projection_beside_the_references_own_keys_is_refused(tmp_path: Path) -> None:
    sample = SAMPLES["collaborative-experts"]
    state = {**sample.state, "hidden1_weights": torch.ones(60, 4)}
    assert "holds a projection after the head that collaborative-experts does not have: hidden1_weights" in refusal(
        sample, tmp_path, state
    )
    assert read_head(sample.save(tmp_path, state), head_only=True).ignored == ("hidden1_weights",)


def test_ignored_tensors_are_logged_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample = SAMPLES["pytorch-netvlad"]
    with caplog.at_level("INFO"):
        head = read_head(sample.save(tmp_path, {**sample.state, "step": torch.tensor(3)}))
    assert caplog.messages == ["ignored: encoder.* (3 tensors), step (1 tensor)"]
    assert head.preprocessing.startswith("local descriptors (batch, num_features, D): the last convolution of VGG16")


def test_a_reference_file_brings_its_own_conventions(tmp_path: Path) -> None:
    state = {name: SAMPLES["collaborative-experts"].state[name].numpy() for name in ("clusters", "clusters2")}
    marks = {"assignment_bias": np.ones(8), "normalize_input": np.ones(()), "clusters_first": np.ones(())}
    (tmp_path / "m.reference.npz").write_bytes(npz_content({**state, **marks}))
    spec = read_head(tmp_path / "m.reference.npz").spec
    assert (spec.assignment_bias, spec.normalize_input, spec.flatten) == (True, True, CLUSTERS_FIRST)


@pytest.mark.parametrize("epsilon", NORM_FLOORS)
@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("l2", [False, True])
def test_a_reference_file_brings_its_projection(tmp_path: Path, epsilon: str, gating: str | None, l2: bool) -> None:
    projection = Projection(size=5, bias=gating is None, batch_norm=gating is not None, l2=l2, gating=gating)
    module = make_projected(projection, 3, 6, 1, epsilon=epsilon)
    content = npz_content(reference_arrays(onnx_model._reference_arrays(module), module.spec))
    (tmp_path / "m.reference.npz").write_bytes(content)
    loaded = load_checkpoint(tmp_path / "m.reference.npz")
    assert loaded.spec == module.spec
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    assert read_head(tmp_path / "m.reference.npz", head_only=True).spec.projection is None
