"""Which module an export starts from: a head, or a pipeline."""

from pathlib import Path

import pytest
import torch

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.spec.images import ImageChanges, Resize
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.workflow.source import Source, load_head, load_module
from tests.command import Command, error_of
from tests.models.backbones.networks import alexnet_state
from tests.models.dialects.samples import SAMPLES
from tests.models.dialects.samples import Source as Random

pytestmark = pytest.mark.export


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Return a checkpoint of pytorch-netvlad with AlexNet."""
    state = {f"encoder.{name}": tensor for name, tensor in alexnet_state().items()}
    torch.save({"state_dict": {**state, **Random(0).convolution(3, 256, 9.0, "pool.")}}, tmp_path / "whole.pth.tar")
    return tmp_path / "whole.pth.tar"


def test_a_checkpoint_with_a_backbone_takes_images(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        module, origin, parent, _ = load_module(Source(checkpoint=whole))
    assert isinstance(module, Pipeline)
    assert (module.name, origin, parent is not None) == ("alexnet", "whole.pth.tar", True)
    normal = "(rgb - (123.675, 116.28, 103.53)) / (58.395, 57.12, 57.375)"
    assumed, backbone = caplog.messages
    assert assumed.startswith("assumed: images stay as large as they are (Patch-NetVLAD's files without whitening")
    assert backbone == f"backbone alexnet, images: pixels as stored, no resize, then {normal}"
    resized = load_module(Source(checkpoint=whole, takes="images", changes=ImageChanges(resize=Resize(longest=99))))[0]
    assert isinstance(resized, Pipeline)
    assert resized.images.resize == Resize(longest=99)
    assert sum(line.startswith("assumed") for line in caplog.messages) == 1, "nothing is assumed with --resize"


def test_features_take_the_head_alone(whole: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        module, _, _, preprocessing = load_module(Source(checkpoint=whole, takes="features"))
    assert isinstance(module, NetVLAD)
    assert caplog.messages == ["ignored: encoder.* (10 tensors)"]
    assert preprocessing.startswith("local descriptors (batch, num_features, D): the last convolution of VGG16 or")
    assert isinstance(load_head(Source(checkpoint=whole))[0], NetVLAD)


def test_a_head_without_a_backbone_takes_features(tmp_path: Path) -> None:
    path = SAMPLES["soccernet"].save(tmp_path)
    assert isinstance(load_module(Source(checkpoint=path))[0], NetVLAD)
    with pytest.raises(UsageError, match="has no image backbone: leave --resize and the other options for images out"):
        load_module(Source(checkpoint=path, changes=ImageChanges(resize=Resize())))
    with pytest.raises(UsageError, match="the checkpoint holds no image backbone: pass --backbone"):
        load_module(Source(checkpoint=path, takes="images"))
    with pytest.raises(InputError, match="the backbone efficientnet-lite0 gives 112 channels, the head takes 9"):
        load_module(Source(checkpoint=path, backbone="efficientnet-lite0"))


def test_untrained_weights_come_under_a_backbone_too() -> None:
    module = load_module(Source(backbone="resnet18-conv3", num_clusters=2, seed=4))[0]
    assert isinstance(module, Pipeline)
    spec = module.head.spec
    assert isinstance(spec, NetVLADSpec)
    assert (spec.num_clusters, spec.feature_size, spec.normalize_input) == (2, 128, True)
    with pytest.raises(InputError, match="gives 128 channels, the head takes 64"):
        load_module(Source(backbone="resnet18-conv3", feature_size=64))
    with pytest.raises(UsageError, match="no backbone to take images: pass --backbone"):
        load_module(Source(takes="images"))


@pytest.mark.parametrize("verb", ["export", "deploy", "precision"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "pictures"], "input 'pictures' is unknown: choose images or features"),
        (["--input", "features", "--backbone", "vgg16"], "orient and depth are for images: leave them out"),
    ],
)
def test_bad_options(command: Command, verb: str, arguments: list[str], message: str) -> None:
    outcome = command(verb, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in error_of(outcome.err)


@pytest.mark.parametrize("verb", ["export", "deploy", "fit"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resize", "0x3"], "resize '0x3' is not HxW"),
        (["--resize", "40000x40000"], "'40000x40000': every length must be from 16 to 16384 pixels"),
        (["--resize", "1x1"], "'1x1': every length must be from 16 to 16384 pixels"),
        (["--resize", "9" * 5000], "9...': every length must be from 16 to 16384 pixels"),
        (["--resize", "1e30"], "resize '1e30' is not HxW"),
        (["--resize", "16384x16384"], "makes 268435456 pixels, at most 89478485 are made"),
        (
            ["--resize", "480x640,hamming"],
            "resize '480x640,hamming' names another filter than bilinear",
        ),
        (["--crop", "224"], "crop '224' is not HxW"),
        (["--crop", "1x1"], "'1x1': every length must be from 16"),
    ],
)
def test_bad_options_for_images(command: Command, verb: str, arguments: list[str], message: str) -> None:
    outcome = command(verb, *(["."] if verb == "fit" else []), *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in error_of(outcome.err)


def test_precision_measures_the_head_alone(command: Command) -> None:
    outcome = command("precision", "--backbone", "alexnet")
    assert (outcome.code, "this measures the head alone, on local descriptors" in error_of(outcome.err)) == (2, True)
