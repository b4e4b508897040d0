"""`validate --against` the checkpoint that an artifact was exported from, read as the export read it."""

from pathlib import Path

import pytest
import torch

from netvlad_deploy.models.backbones import find_backbone
from netvlad_deploy.models.netvlad import NetVLAD
from tests.command import Command, error_of
from tests.modules import make_module

pytestmark = [pytest.mark.export, pytest.mark.ort]

CLUSTERS, WIDTH = 4, 256
SAME = "is the file that"


def write_alexnet(path: Path, *, changed: float = 1.0) -> Path:
    """Write an AlexNet under a NetVLAD as pytorch-NetVlad saves them, one filter of it changed by a factor."""
    torch.manual_seed(0)
    state = {f"encoder.{name}": tensor for name, tensor in find_backbone("alexnet").build().state_dict().items()}
    state["encoder.0.weight"][3] *= changed
    centroids = torch.nn.functional.normalize(torch.randn(CLUSTERS, WIDTH), dim=1)
    state |= {"pool.conv.weight": 30 * centroids[..., None, None], "pool.centroids": 0.9 * centroids}
    torch.save({"state_dict": state}, path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_pipeline_against_its_checkpoint(command: Command, tmp_path: Path, precision: str) -> None:
    best = write_alexnet(tmp_path / "best.pth")
    prepared = ("--resize", "72x96", "--crop", "64x80", "--orient")
    export = ("export", best, *prepared, "--precision", precision, "-o", "best.onnx")
    assert command(*export).code == 0
    outcome = command("validate", "best.onnx", "--against", best)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("PASS  best.onnx")
    assert f" against best.pth, {precision}, 6 cases" in outcome.out
    assert f"{best} {SAME} best.onnx was exported from" in outcome.err
    assert "upright by EXIF, to 72x96 (bilinear), the middle 64x80, then" in outcome.err
    other = write_alexnet(tmp_path / "other.pth", changed=3.0)
    outcome = command("validate", "best.onnx", "--against", other)
    assert outcome.code == 1
    assert outcome.out.startswith("FAIL  best.onnx")
    assert "other.pth is another file than the one that best.onnx was exported from" in outcome.err


def test_a_backbone_of_the_user_s_own_is_named_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(NetVLAD(CLUSTERS, 8).eval().state_dict(), tmp_path / "head.pth")
    (tmp_path / "mine.py").write_text(
        "from tests.pipelines import tiny_backbone\ndef backbone():\n    return tiny_backbone()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = ("--backbone", "mine:backbone")
    assert command("export", "head.pth", *name, "--resize", "64x80", "-o", "m.onnx").code == 0
    outcome = command("validate", "m.onnx", "--against", "head.pth", *name)
    assert (outcome.code, SAME in outcome.err) == (0, True), outcome.err
    outcome = command("validate", "m.onnx", "--against", "head.pth")
    assert outcome.code == 2
    assert "pass --backbone" in error_of(outcome.err)


def test_a_head_behind_a_prefix_and_without_its_projection(command: Command, tmp_path: Path) -> None:
    """Which is left out again where the export left it out: the sidecar shows it."""
    module = make_module(6, 16, 2)
    layers = {"text": module, "audio": make_module(6, 16, 2, seed=1)}
    state = {
        f"model.{key}.{name}": tensor for key, each in layers.items() for name, tensor in each.state_dict().items()
    }
    torch.save({"state_dict": state}, tmp_path / "deep.pth")
    assert command("export", "deep.pth", "--prefix", "model.text", "-o", "m.onnx").code == 0
    assert command("validate", "m.onnx", "--against", "deep.pth", "--prefix", "model.text").code == 0
    assert command("validate", "m.onnx", "--against", "deep.pth").code == 65


@pytest.mark.parametrize("against", [(), ("--against", "other.onnx")])
@pytest.mark.parametrize("option", [("--prefix", "pool"), ("--dialect", "hloc"), ("--backbone", "vgg16")])
def test_how_a_checkpoint_is_read_needs_one(
    command: Command, checkpoint: Path, against: tuple[str, ...], option: tuple[str, str]
) -> None:
    for name in ("best.onnx", "other.onnx"):
        assert command("export", checkpoint, "-o", name).code == 0
    outcome = command("validate", "best.onnx", *against, *option)
    assert outcome.code == 2
    assert "name it with --against" in error_of(outcome.err)
