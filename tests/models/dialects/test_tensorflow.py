"""TensorFlow's dialects from the files that TensorFlow writes, to a descriptor and to a graph."""

from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import read_head
from netvlad_deploy.models.dialects import find_head_in
from netvlad_deploy.spec.layer import ADD, CLAMP, RSQRT
from tests.command import Command
from tests.models.aggregators.hfnet import HFNET_SAMPLES
from tests.models.bundles import write_bundle
from tests.models.dialects import tensorflow_formulas as formulas
from tests.models.dialects.sample import Sample, Source, State
from tests.models.dialects.tensorflow_samples import TENSORFLOW_SAMPLES
from tests.models.dialects.test_dialects import errors, expected_of, local_descriptors

pytestmark = pytest.mark.export

BUNDLES = ("netvlad-tf-open", "loupe")


def bundle(folder: Path, state: State, *, optimizer: bool = False) -> Path:
    """Write the variables of a state as a checkpoint, whose names have `/` where a state has `.`."""
    arrays = {name.replace(".", "/"): np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()}
    if optimizer:
        arrays |= {f"{name}/{slot}": array for name, array in arrays.items() for slot in ("Adam", "Adam_1")}
        arrays |= {"beta1_power": np.float32(0.9), "global_step": np.int64(12)}
    return write_bundle(folder, "model.ckpt-12", arrays)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_checkpoint_of_training_equals_the_formula(tmp_path: Path, name: str) -> None:
    sample = TENSORFLOW_SAMPLES[name]
    head = read_head(bundle(tmp_path, sample.state, optimizer=True))
    assert head.dialect == sample.dialect
    x = local_descriptors(sample.width, tiny=sample.tiny)
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10


@pytest.mark.ort
@pytest.mark.parametrize("name", BUNDLES)
def test_an_index_is_exported_and_described_like_any_checkpoint(tmp_path: Path, command: Command, name: str) -> None:
    sample = TENSORFLOW_SAMPLES[name]
    path = bundle(tmp_path, sample.state)
    result = command("export", path, "--input", "features", "-o", tmp_path / "m.onnx")
    assert result.code == 0, result.err
    assert command("validate", tmp_path / "m.onnx").code == 0
    assert f"a checkpoint in the dialect {sample.dialect}" in command("inspect", path).out


@pytest.mark.ort
@pytest.mark.parametrize("name", HFNET_SAMPLES)
def test_hf_net_is_exported_from_its_index_as_an_aggregator(tmp_path: Path, command: Command, name: str) -> None:
    sample = HFNET_SAMPLES[name]
    backbone = {"MobilenetV2.Conv.weights": torch.ones(3, 3, 1, 4)}
    path, feeds = bundle(tmp_path, {**sample.state, **sample.beside, **backbone}, optimizer=True), sample.feeds()
    features = torch.from_numpy(feeds["features"])
    with torch.inference_mode():
        got = read_head(path).module(path).double()(features).numpy()
        whole = read_head(path, head_only=True).module(path).double()(features).numpy()
    assert np.abs(got - sample.expected(feeds)).max() < 1e-12
    assert whole.shape == (3, 60)
    alone = {key: each.double().numpy() for key, each in sample.state.items() if "dimensionality" not in key}
    assert np.abs(whole - sample.formula(alone, feeds)).max() < 1e-12
    refused = command("export", path, "-o", tmp_path / "m.onnx")
    assert refused.code == 65
    assert "holds MobilenetV2.* (1 tensor) beside the head" in refused.err
    assert "pass --input features" in refused.err
    assert command("export", path, "--input", "features", "-o", tmp_path / "m.onnx").code == 0
    assert command("validate", tmp_path / "m.onnx").code == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"vlad.pre_proj.weights": torch.ones(1, 1, 9, 12)},
            r"holds vlad\.pre_proj\.weights in the layer, which hfnet",
        ),
        ({"vlad.clusters": torch.ones(1, 1, 1, 12, 5)}, r"\(1, 1, 1, 12, 5\) and .* are not \(1, 1, 1, K, D\) and"),
        (
            {"vlad.memberships.BatchNorm.beta": torch.ones(4)},
            r"do not fit: expected vlad\.memberships\.BatchNorm\.beta",
        ),
        ({"dimensionality_reduction.weights": torch.ones(59, 7)}, r"expected \(60, P\) for 60 values"),
        ({"dimensionality_reduction.biases": torch.ones(7)}, r"lacks dimensionality_reduction\.weights of hfnet"),
    ],
)
def test_another_head_of_hf_net_is_refused(tmp_path: Path, changes: State, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_head(bundle(tmp_path, {**HFNET_SAMPLES["mobilenetvlad"].state, **changes}))


def altered(sample: Sample, changes: State, *left_out: str) -> Sample:
    state = {name: tensor for name, tensor in sample.state.items() if not any(part in name for part in left_out)}
    return Sample(dialect=sample.dialect, state={**state, **changes}, formula=sample.formula, width=sample.width)


def test_loupe_with_biases_in_place_of_batch_norm_equals_the_formula(tmp_path: Path) -> None:
    random, scope = Source(3), "tower.video_VLAD."
    biases = {f"{scope}cluster_biases": random(4), f"{scope}gating_biases": random(6)}
    sample = altered(TENSORFLOW_SAMPLES["loupe"], biases, "_bn.")
    head = read_head(bundle(tmp_path, sample.state))
    x = local_descriptors(sample.width)
    assert (head.dialect, head.spec.batch_norm, head.spec.epsilon) == ("loupe", False, RSQRT)
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10


def test_loupe_has_the_epsilon_of_slim_and_not_that_of_torch(tmp_path: Path) -> None:
    sample = TENSORFLOW_SAMPLES["loupe"]
    small = {name: torch.full_like(each, 1e-3) for name, each in sample.state.items() if "moving_variance" in name}
    sample = altered(sample, small)
    head = read_head(bundle(tmp_path, sample.state))
    x = local_descriptors(sample.width)
    assert max(errors(head, expected_of(sample, x), x)) < 1e-10
    torchs = {name: each for name, each in head.tensors.items() if not name.endswith("eps")}
    assert errors(type(head)(spec=head.spec, tensors=torchs), expected_of(sample, x), x)[0] > 1e-3


def test_a_cluster_that_nothing_is_assigned_to_shows_the_norms_of_matconvnet() -> None:
    """Its residuals sum to 7e-7: that becomes 0.58 in MatConvNet, 0.71 in TensorFlow and 1 in torch."""
    state = {
        "assignment.kernel": torch.tensor([[0.0, -14.5], [0.0, -14.5]])[None, None],
        "cluster_centers": torch.zeros(1, 1, 1, 2, 2),
    }
    head = find_head_in(state, name="netvlad-tf-open")[1]
    x = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    expected = formulas.netvlad_tf_open_before_pca({name: each.double().numpy() for name, each in state.items()}, x, "")
    assert head.spec.epsilon == ADD
    assert max(errors(head, expected, x)) < 1e-10
    for other in (CLAMP, RSQRT):
        changed = type(head)(spec=type(head.spec)(**{**vars(head.spec), "epsilon": other}), tensors=head.tensors)
        assert errors(changed, expected, x)[0] > 3e-3, other


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "netvlad-tf-open",
            {"vgg16_netvlad_pca.assignment.kernel": torch.ones(1, 1, 9, 5)},
            r"\(1, 1, 1, 9, 4\) and vgg16_netvlad_pca.assignment.kernel \(1, 1, 9, 5\) are not \(1, 1, 1, D, K\)",
        ),
        ("netvlad-tf-open", {"vgg16_netvlad_pca.WPCA.kernel": torch.ones(1, 1, 35, 7)}, r"expected \(1, 1, 36, P\)"),
        (
            "netvlad-tf-open",
            {"vgg16_netvlad_pca.assignment.bias": torch.ones(4)},
            "which netvlad-tf-open does not have",
        ),
        ("loupe", {"tower.video_VLAD.covar_weights": torch.ones(9, 4)}, "which loupe does not have"),
        ("loupe", {"tower.video_VLAD.cluster_biases": torch.ones(4)}, r"holds both cluster_bn\.\* and cluster_biases"),
        (
            "loupe",
            {"tower.hidden1_weights": torch.ones(36, 2)},
            "holds a projection after the head that loupe does not",
        ),
    ],
)
def test_another_layer_under_such_names_is_refused(tmp_path: Path, name: str, changes: State, words: str) -> None:
    sample = altered(TENSORFLOW_SAMPLES[name], changes)
    with pytest.raises(InputError, match=words):
        read_head(bundle(tmp_path, sample.state))


def test_a_projection_without_its_bias_is_refused(tmp_path: Path) -> None:
    sample = altered(TENSORFLOW_SAMPLES["netvlad-tf-open"], {}, "WPCA.bias")
    with pytest.raises(InputError, match=r"lacks vgg16_netvlad_pca\.WPCA\.bias of netvlad-tf-open"):
        read_head(bundle(tmp_path, sample.state))
