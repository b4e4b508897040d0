"""Each dialect's checkpoint gives the descriptors of its formula, but not with any one convention swapped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netvlad_deploy.models.checkpoints import load_checkpoint, read_head
from netvlad_deploy.models.dialects import DIALECTS, HEIRS, find_head_in, places
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.tensor_names import unwrapped
from netvlad_deploy.spec.layer import ADD, CLAMP, CLUSTERS_FIRST, CLUSTERS_LAST
from netvlad_deploy.support.arrays import Float64
from tests.models.dialects import formulas
from tests.models.dialects.formulas import Formula
from tests.models.dialects.samples import SAMPLES, Sample

pytestmark = pytest.mark.export

PATH = Path("swapped.pt")


def local_descriptors(width: int, rows: int = 23, tiny: float = 1e-6) -> Float64:
    """Return features (3, rows, D) of norms between a tenth and ten times their usual, but for four tiny ones an image.

    Those have the norm `tiny`, by default 1e-6, where one epsilon mode makes unit vectors of them and others do not.
    """
    random = np.random.default_rng(width)
    features = random.standard_normal((3, rows, width)) * 10 ** random.uniform(-1, 1, (3, rows, 1))
    features[:, :4] *= tiny / np.linalg.norm(features[:, :4], axis=-1, keepdims=True)
    return features


def expected_of(sample: Sample, x: Float64, formula: Formula | None = None) -> Float64:
    return (formula or sample.formula)({name: tensor.double().numpy() for name, tensor in sample.state.items()}, x)


def descriptors(head: Head, x: Float64) -> Float64:
    """Return the descriptors of the module in float64."""
    with torch.inference_mode():
        got: Float64 = head.module(PATH).double()(torch.from_numpy(x)).numpy()
    return got


def errors(head: Head, expected: Float64, x: Float64) -> tuple[float, float]:
    """Return the largest 1 - cos and the largest difference of the module in float64."""
    got = descriptors(head, x)
    cosines = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    return float((1 - cosines).max()), float(np.abs(got - expected).max())


@pytest.mark.parametrize("name", SAMPLES)
def test_the_module_equals_the_formula_of_its_dialect(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    x = local_descriptors(sample.width, tiny=sample.tiny)
    path = sample.save(tmp_path)
    angle, largest = errors(read_head(path, **sample.options), expected_of(sample, x), x)
    assert angle < 1e-12
    assert largest < 1e-10
    assert not load_checkpoint(path, **sample.options).training
    if sample.before is not None:
        head = read_head(path, **sample.options, head_only=True)
        assert max(errors(head, expected_of(sample, x, sample.before), x)) < 1e-10


def flip_input(head: Head) -> Head:
    return replace(head, spec=replace(head.spec, normalize_input=not head.spec.normalize_input))


def flip_flatten(head: Head) -> Head | None:
    if head.spec.num_clusters == 1:
        return None  # both orders are the same
    other = CLUSTERS_LAST if head.spec.flatten == CLUSTERS_FIRST else CLUSTERS_FIRST
    return replace(head, spec=replace(head.spec, flatten=other))


def flip_centroids(head: Head) -> Head | None:
    if not head.tensors["clusters2"].any():
        return None  # a layer without centroids
    return replace(head, tensors={**head.tensors, "clusters2": -head.tensors["clusters2"]})


def drop_bias(head: Head) -> Head | None:
    for name in ("assignment_bias", "batch_norm.bias"):
        if name in head.tensors:
            return replace(head, tensors={**head.tensors, name: torch.zeros_like(head.tensors[name])})
    return None


def drop_batch_norm(head: Head) -> Head | None:
    tensors = {name: tensor for name, tensor in head.tensors.items() if not name.startswith("batch_norm.")}
    return replace(head, spec=replace(head.spec, batch_norm=False), tensors=tensors) if head.spec.batch_norm else None


def drop_ghosts_early(head: Head) -> Head | None:
    """Leave ghost clusters out of the softmax."""
    count = head.spec.num_clusters
    tensors = {
        name: tensor if name == "clusters2" or not tensor.ndim else tensor[..., :count]
        for name, tensor in head.tensors.items()
    }
    spec = replace(head.spec, num_ghost_clusters=0)
    return replace(head, spec=spec, tensors=tensors) if head.spec.num_ghost_clusters else None


def change_epsilon(head: Head) -> Head | None:
    other = CLAMP if head.spec.epsilon == ADD else ADD
    return replace(head, spec=replace(head.spec, epsilon=other)) if head.spec.normalize_input else None


def following(head: Head, **changes: Any) -> Head | None:
    """Return the head with another projection, and those of its tensors that this has."""
    if head.spec.projection is None:
        return None
    projection = replace(head.spec.projection, **changes)
    if projection == head.spec.projection:
        return None
    spec = replace(head.spec, projection=projection)
    known = NetVLAD.of(spec).state_dict()
    return replace(head, spec=spec, tensors={name: head.tensors[name] for name in known if name in head.tensors})


def flip_projection_l2(head: Head) -> Head | None:
    return following(head, l2=head.spec.projection is None or not head.spec.projection.l2)


def drop_projection_bias(head: Head) -> Head | None:
    return following(head, bias=False)


def drop_projection_batch_norm(head: Head) -> Head | None:
    return following(head, batch_norm=False)


def drop_gating(head: Head) -> Head | None:
    return following(head, gating=None, final_l2=False)


def flip_final_l2(head: Head) -> Head | None:
    if head.spec.projection is None or head.spec.projection.gating is None:
        return None
    return following(head, final_l2=not head.spec.projection.final_l2)


def drop_gating_offset(head: Head) -> Head | None:
    names = ("gating.bias", "gating.batch_norm.bias")
    changed = {name: torch.zeros_like(head.tensors[name]) for name in names if name in head.tensors}
    return replace(head, tensors={**head.tensors, **changed}) if changed else None


SWAPS: tuple[Callable[[Head], Head | None], ...] = (
    flip_input, flip_flatten, flip_centroids, drop_bias, drop_batch_norm, drop_ghosts_early, change_epsilon,
    flip_projection_l2, drop_projection_bias, drop_projection_batch_norm, drop_gating, drop_gating_offset,
    flip_final_l2,
)  # fmt: skip


LENGTHS = ("flip_projection_l2", "flip_final_l2")
"""A length is no angle."""


@pytest.mark.parametrize("name", SAMPLES)
def test_any_convention_swapped_fails_the_same_comparison(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    x = local_descriptors(sample.width, tiny=sample.tiny)
    expected = expected_of(sample, x)
    head = read_head(sample.save(tmp_path), **sample.options)
    swapped = {swap.__name__: other for swap in SWAPS if (other := swap(head)) is not None}
    assert len(swapped) >= 3
    if sample.tiny > 1e-6:  # no local descriptor shows the epsilons
        del swapped["change_epsilon"]
    for convention, other in swapped.items():
        angle, largest = errors(other, expected, x)
        assert (largest if convention in LENGTHS else angle) > 1e-4, convention


def test_every_convention_is_swapped_somewhere(tmp_path: Path) -> None:
    heads = [read_head(sample.save(tmp_path), **sample.options) for sample in SAMPLES.values()]
    for swap in SWAPS:
        assert any(swap(head) is not None for head in heads), swap.__name__


def test_a_batch_norm_that_is_not_used_fails_the_comparison_if_it_is(tmp_path: Path) -> None:
    """A BatchNorm that is used fails it if it is left out; a file does not say which of the two it is."""
    sample = SAMPLES["mixture-of-embedding-experts"]
    x = local_descriptors(sample.width, tiny=sample.tiny)
    path = sample.save(tmp_path)
    assert errors(read_head(path), expected_of(sample, x), x)[0] > 1e-4
    used = replace(sample, formula=formulas.collaborative_experts)
    assert errors(read_head(path), expected_of(used, x), x)[0] < 1e-12
    assert set(read_head(path, **sample.options).ignored) == {name for name in sample.state if "batch_norm" in name}


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if not sample.chosen])
def test_a_checkpoint_is_of_one_dialect(name: str) -> None:
    sample = SAMPLES[name]
    place, head = find_head_in(unwrapped(sample.state), prefix=sample.prefix)
    assert place.dialect.name == head.dialect == sample.dialect


def test_the_dialect_that_must_be_chosen_is_not_detected() -> None:
    state = SAMPLES["mixture-of-embedding-experts"].state
    assert find_head_in(state)[1].dialect == "collaborative-experts"
    assert "mixture-of-embedding-experts" in {place.dialect.name for place in places(state)}
    assert find_head_in(state, name="mixture-of-embedding-experts")[1].spec.batch_norm is False


def test_every_dialect_has_a_sample_and_a_row_in_the_page() -> None:
    known = {dialect.name for dialect in DIALECTS}
    assert {sample.dialect for sample in SAMPLES.values()} == known
    rows = (Path(__file__).parents[3] / "docs" / "dialects.md").read_text().splitlines()
    known |= {dialect.name for dialect in HEIRS}
    assert known == {row.split("`")[1] for row in rows if row.startswith("| `")}


@pytest.mark.data
def test_the_soccernet_head_equals_its_formula(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = data / "heads" / "soccernet_netvlad_v1.pth.tar"
    with caplog.at_level("INFO"):
        head = read_head(path)
    assert (head.spec.num_clusters, head.spec.feature_size) == (64, 512)
    assert caplog.messages == ["ignored: fc.* (2 tensors)"]
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    x = local_descriptors(512, rows=40)
    expected = formulas.soccernet({name: tensor.double().numpy() for name, tensor in state.items()}, x)
    angle, largest = errors(head, expected, x)
    assert angle < 1e-12
    assert largest < 1e-10
    for swap in (flip_input, flip_flatten, flip_centroids):
        other = swap(head)
        assert other is not None
        assert errors(other, expected, x)[0] > 1e-4, swap.__name__
