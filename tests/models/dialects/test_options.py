"""`--dialect` and `--head-only` on the command line, and the words of the sidecar then."""

from pathlib import Path

import pytest

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.spec.layer import NetVLADSpec, Projection
from tests.command import Command, error_of
from tests.models.dialects.samples import SAMPLES

pytestmark = pytest.mark.export


def test_the_sidecar_describes_the_required_local_descriptors(command: Command, tmp_path: Path) -> None:
    SAMPLES["soccernet"].save(tmp_path)
    outcome = command("export", "best.pth.tar")
    assert outcome.code == 0, outcome.err
    assert "ignored: fc.* (2 tensors)" in outcome.err
    artifact = load_artifact(tmp_path / "best.onnx")
    assert artifact.preprocessing.startswith("local descriptors (batch, num_features, D): a window of SoccerNet's")
    assert artifact.preprocessing.endswith("the layer L2-normalises them itself")
    assert isinstance(artifact.spec, NetVLADSpec)
    assert (artifact.spec.normalize_input, artifact.spec.flatten) == (True, "k*D+d")


def test_a_projection_is_exported_unless_the_head_alone_is_asked_for(command: Command, tmp_path: Path) -> None:
    SAMPLES["patch-netvlad"].save(tmp_path)
    outcome = command("export", "best.pth.tar")
    assert outcome.code == 0, outcome.err
    assert "K=4 D=6 G=0, descriptor 8, projected from 24 (k*D+d), weights" in outcome.out
    assert load_artifact(tmp_path / "best.onnx").spec.projection == Projection(size=8)
    outcome = command("export", "best.pth.tar", "--head-only", "--force")
    assert outcome.code == 0, outcome.err
    assert load_artifact(tmp_path / "best.onnx").spec.projection is None
    assert "left out: WPCA.0.bias, WPCA.0.weight: the descriptor is the one before the projection" in outcome.err


def test_the_dialect_may_be_chosen(command: Command, tmp_path: Path) -> None:
    SAMPLES["mixture-of-embedding-experts"].save(tmp_path)
    assert command("export", "best.pth.tar", "-o", "used.onnx").code == 0
    assert command("export", "best.pth.tar", "--dialect", "mixture-of-embedding-experts").code == 0
    used, unused = load_artifact(tmp_path / "used.onnx"), load_artifact(tmp_path / "best.onnx")
    assert isinstance(used.spec, NetVLADSpec)
    assert isinstance(unused.spec, NetVLADSpec)
    assert (used.spec.batch_norm, unused.spec.batch_norm) == (True, False)


@pytest.mark.parametrize("verb", ["export", "deploy", "precision"])
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--dialect", "hloc"], 2, "--dialect needs a checkpoint"),
        (["--head-only"], 2, "--head-only needs a checkpoint"),
        (["best.pth.tar", "--dialect", "vlad"], 2, "dialect 'vlad' is unknown: choose collaborative-experts"),
        (["best.pth.tar", "--dialect", "hloc"], 65, "lacks netvlad.score_proj.weight, netvlad.centers of hloc"),
    ],
)
def test_bad_options(
    command: Command, tmp_path: Path, verb: str, arguments: list[str], code: int, message: str
) -> None:
    SAMPLES["soccernet"].save(tmp_path)
    outcome = command(verb, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert message in error_of(outcome.err)
