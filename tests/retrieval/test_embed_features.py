from dataclasses import replace

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import InputError, RunError
from netvlad_deploy.retrieval.batches import pad
from netvlad_deploy.retrieval.embed_features import embed_array, embed_sequences
from netvlad_deploy.runtime.open_runner import open_runner
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.spec.profiles import AxisRange, Profile
from tests.modules import RANGE, features

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.mark.parametrize("batch", [1, 3, 32])
def test_an_array_is_embedded_in_batches(exported: OnnxArtifact, batch: int) -> None:
    x = features(7, 5, 16)
    with open_runner(exported) as runner:
        got = embed_array(runner, x, batch=batch)
        assert np.abs(got - runner.run({FEATURES: x})[DESCRIPTOR]).max() < 1e-6


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_sequences_are_padded_masked_and_returned_in_order(masked: OnnxArtifact, batch: int) -> None:
    sequences = {str(length): features(1, length, 16, seed=length)[0] for length in (9, 1, 4, 30, 2, 4 + 7)}
    with open_runner(masked) as runner, open_runner(masked, backend="oracle") as oracle:
        got = embed_sequences(runner, sequences, batch=batch)
        assert list(got) == list(sequences)
        for name, sequence in sequences.items():
            assert np.abs(got[name] - oracle.run({FEATURES: sequence[None]})[DESCRIPTOR][0]).max() < 1e-6


def test_the_mask_makes_padding_harmless(exported: OnnxArtifact) -> None:
    sequence = features(1, 4, 16)[0]
    padded, _ = pad([sequence], shortest=12)
    with open_runner(exported) as runner:
        alone = runner.run({FEATURES: sequence[None]})[DESCRIPTOR]
        assert np.abs(runner.run({FEATURES: padded})[DESCRIPTOR] - alone).max() > 1e-3


def test_padding() -> None:
    padded, mask = pad([features(1, 2, 3)[0], features(1, 4, 3)[0]], shortest=6)
    assert padded.shape == (2, 6, 3)
    assert mask.sum(axis=1).tolist() == [2, 4]
    assert not padded[~mask].any()


def test_sequences_need_a_mask(exported: OnnxArtifact) -> None:
    with open_runner(exported) as runner, pytest.raises(InputError, match="--masked"):
        embed_sequences(runner, {"a": features(1, 4, 16)[0]}, batch=1)


def test_features_that_are_not_finite_are_named(exported: OnnxArtifact, masked: OnnxArtifact) -> None:
    x = features(5, 4, 16)
    x[3, 2, 1] = np.nan
    with (
        open_runner(exported) as runner,
        pytest.raises(InputError, match="batch item 3: features are not finite: first at row 2"),
    ):
        embed_array(runner, x, batch=2)
    with open_runner(masked) as runner, pytest.raises(InputError, match="sequence c: features are not finite"):
        embed_sequences(runner, {"a": x[0], "c": x[3]}, batch=2)


@pytest.mark.parametrize("shape", [(4,), (4, 15), (0, 16), (1, 4, 16)])
def test_a_sequence_of_another_shape_is_named(masked: OnnxArtifact, shape: tuple[int, ...]) -> None:
    with open_runner(masked) as runner, pytest.raises(InputError, match="sequence bad: features have shape"):
        embed_sequences(runner, {"bad": np.ones(shape, np.float32)}, batch=2)


def test_no_sequence_is_an_error(masked: OnnxArtifact) -> None:
    with open_runner(masked) as runner, pytest.raises(InputError, match="no sequence"):
        embed_sequences(runner, {}, batch=2)


def test_a_descriptor_that_overflows_is_named(exported: OnnxArtifact) -> None:
    x = features(3, 5, 16)
    x[1] *= np.float32(1e25)
    with open_runner(exported) as runner:
        with pytest.raises(
            InputError, match=r"batch item 1: features are too large for this artifact: first at row 0, .* is over"
        ):
            embed_array(runner, x, batch=2)
        runner.range = None  # as a sidecar of an earlier export says
        with pytest.raises(RunError, match="not finite for batch item 1: scale"):
            embed_array(runner, x, batch=2)


def test_a_row_shorter_than_the_artifact_can_hold_is_named(exported: OnnxArtifact, masked: OnnxArtifact) -> None:
    x = features(3, 5, 16)
    x[0] = 0
    x[2, 3] *= np.float32(1e-9)
    short = replace(RANGE, smallest=1e-6)
    with open_runner(exported) as runner:
        embed_array(runner, x, batch=2)
        runner.range = short
        assert embed_array(runner, x[:2], batch=2).shape == (2, 96), "rows of zeros are inside any range"
        named = (
            r"batch item 2: features are too small for this artifact: first at row 3, its norm \S+e-09 is under 1e-06"
        )
        with pytest.raises(InputError, match=named):
            embed_array(runner, x, batch=2)
    with open_runner(masked) as runner:
        runner.range = short
        with pytest.raises(InputError, match="sequence b: features are too small for this artifact"):
            embed_sequences(runner, {"a": x[0], "b": x[2]}, batch=2)


def test_a_batch_stays_within_the_profile(exported: OnnxArtifact) -> None:
    with open_runner(exported) as runner:
        runner.profiles = (Profile(batch=AxisRange.parse("1:2:2")),)
        assert embed_array(runner, features(5, 3, 16), batch=32).shape == (5, 96)


def test_batches_and_lengths_grow_to_fit_a_profile(masked: OnnxArtifact) -> None:
    sequences = {f"{length}": features(length, 16, seed=length) for length in (1, 2, 7, 8, 9, 30)}
    with open_runner(masked) as runner:
        expected = embed_sequences(runner, sequences, batch=32)
        runner.profiles = tuple(Profile.parse(text) for text in ("3x4,3x8,4x8", "1x20,1x30,1x40"))
        got = embed_sequences(runner, sequences, batch=32)
        assert all(np.abs(got[name] - expected[name]).max() < 1e-6 for name in sequences)
        assert list(got) == list(sequences)
        assert embed_array(runner, features(2, 5, 16), batch=32).shape == (2, 96)
        with pytest.raises(
            InputError, match="batch item 0: num_features is 41, where the engine takes batch 3:3:4, num_features 4"
        ):
            embed_array(runner, features(1, 41, 16), batch=32)
