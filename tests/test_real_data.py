"""A trained head and real sequences, the whole way: checkpoint, ONNX, parity, engine, descriptors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import FEATURES
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.embed import embed
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate
from tests.heads import adapt_soccernet
from tests.modules import features

pytestmark = [pytest.mark.data, pytest.mark.export, pytest.mark.ort]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    checkpoint = adapt_soccernet(data / "heads" / "soccernet_netvlad_v1.pth.tar", folder / "head.pth")
    export(
        Source(checkpoint=checkpoint, dialect="collaborative-experts"), folder / "head.onnx", GraphOptions(probe=True)
    )
    return folder / "head.onnx"


def test_the_trained_head_passes_every_case(trained: Path) -> None:
    report = validate(Candidate(path=trained))
    assert report.verdict is Verdict.PASS
    assert report.candidate == "head.onnx"
    assert {case.name for case in report.cases} >= {"typical", "L2-normalised", "empty clusters"}


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_trained_head_is_within_the_bar_at_its_own_scale(trained: Path, tmp_path: Path, scale: float) -> None:
    x = features(4, 300, 512)
    x *= scale / np.linalg.norm(x, axis=-1, keepdims=True)
    np.save(tmp_path / "x.npy", x)
    embed(Candidate(path=trained), [tmp_path / "x.npy"], tmp_path / "y.npy")
    got = np.load(tmp_path / "y.npy").astype(np.float64)
    parameters = load_reference(trained.with_name("head.reference.npz"))
    expected = OracleRunner(parameters).run({FEATURES: x})["descriptor"]
    assert 1 - (got * expected).sum(axis=1).min() < 1e-6
    assert np.abs(got - expected).max() < 1e-5


@pytest.mark.rtx
def test_the_trained_head_builds(trained: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile(batch=AxisRange.parse("1")),))
    artifact = build(trained, trained.with_suffix(".engine"), options)
    assert artifact.origin == "head.pth"
    assert artifact.figures.weight_bytes
    assert artifact.figures.weight_bytes >= 2 * 64 * 512 * 4


def read_vowels(path: Path) -> tuple[dict[str, Array], list[str]]:
    """Return sequences (N_i, 12) by number, and the speaker of each."""
    lines = path.read_text().splitlines()
    series = lines[lines.index("@data") + 1 :]
    sequences, speakers = {}, []
    for number, line in enumerate(series):
        *dimensions, speaker = line.split(":")
        sequences[str(number)] = np.array([part.split(",") for part in dimensions], dtype=np.float32).T
        speakers.append(speaker)
    return sequences, speakers


def test_ragged_sequences_through_the_mask(data: Path, tmp_path: Path) -> None:
    train, train_speakers = read_vowels(data / "sequences" / "japanese_vowels_train.ts")
    test, test_speakers = read_vowels(data / "sequences" / "japanese_vowels_test.ts")
    assert (len(train), len(test), train["0"].shape[1]) == (270, 370, 12)
    assert len({len(sequence) for sequence in test.values()}) > 10
    torch.save(vowel_layer(np.concatenate(list(train.values()))).state_dict(), tmp_path / "vowels.pt")
    onnx = export(Source(checkpoint=tmp_path / "vowels.pt"), tmp_path / "m.onnx", GraphOptions(masked=True))
    assert validate(Candidate(path=onnx.path)).verdict is Verdict.PASS
    banks = []
    for name, sequences in (("train", train), ("test", test)):
        np.savez(tmp_path / f"{name}.npz", allow_pickle=False, **sequences)
        result = embed(Candidate(path=onnx.path), [tmp_path / f"{name}.npz"], tmp_path / f"{name}.out.npz")
        assert result.descriptors == len(sequences)
        with np.load(tmp_path / f"{name}.out.npz") as archive:
            assert archive["names"].tolist() == list(sequences)
            banks.append(archive["descriptors"])
    oracle = OracleRunner(load_reference(onnx.reference_path))
    alone = np.concatenate([oracle.run({FEATURES: sequence[None]})["descriptor"] for sequence in test.values()])
    assert np.abs(banks[1] - alone).max() < 1e-6
    nearest = (banks[1] @ banks[0].T).argmax(axis=1)
    right = [train_speakers[index] == speaker for index, speaker in zip(nearest, test_speakers, strict=True)]
    assert np.mean(right) > 0.9


def vowel_layer(rows: Array) -> NetVLAD:
    """Return a layer whose centres are fixed training rows, with the initialisation of the paper: w = 2 alpha c."""
    module = NetVLAD(8, 12, add_batch_norm=True).eval()
    centres = torch.from_numpy(rows[:: len(rows) // 8][:8].copy())
    alpha = 3.0
    module.clusters.data = (2 * alpha * centres.T).contiguous()
    module.clusters2.data = centres.T[None].contiguous()
    assert module.batch_norm is not None
    module.batch_norm.bias.data = -alpha * (centres**2).sum(dim=1)
    return module
