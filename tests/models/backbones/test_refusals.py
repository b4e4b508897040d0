"""Refused backbones: damaged, of another network, unknown, or code of the user's that fails."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.assembly import read_backbone
from netvlad_deploy.models.backbones import BACKBONES
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.images import ImageChanges, ImageInput, Resize
from netvlad_deploy.workflow.inspect import inspect_checkpoint
from tests.models.backbones import networks
from tests.models.backbones.networks import Maker, State
from tests.pipelines import read_pipeline

pytestmark = pytest.mark.export

BENCHMARK, LYAKAAP = ("backbone.", "aggregation."), ("base_model.", "net_vlad.")


def save(folder: Path, backbone: State, width: int, names: tuple[str, str] = BENCHMARK) -> Path:
    """Write a checkpoint of the benchmark, or of lyakaap's code."""
    root, layer = names
    random = Maker(0)
    state = {root + name: tensor for name, tensor in backbone.items()}
    state |= {f"{layer}conv.weight": random(3, width, 1, 1), f"{layer}centroids": random(3, width)}
    if names == LYAKAAP:
        state[f"{layer}conv.bias"] = random(3)
    torch.save(state, folder / "best.pth")
    return folder / "best.pth"


def refusal(path: Path, **options: str) -> str:
    """Return the one line that refuses a pipeline."""
    with pytest.raises(InputError) as refused:
        read_pipeline(path, **options)  # type: ignore[arg-type]
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_missing_tensor_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    state = networks.resnet_state(18, 6)
    del state["5.1.conv2.weight"]
    message = refusal(save(tmp_path, state, 256))
    assert message == "lacks backbone.5.1.conv2.weight of the backbone resnet18-conv4"
    statistics = {
        name: tensor for name, tensor in networks.resnet_state(18, 6).items() if "bn2.running_mean" not in name
    }
    assert refusal(save(tmp_path, statistics, 256)).startswith("lacks backbone.4.0.bn2.running_mean, ")


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    state = networks.resnet_state(18, 6)
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert read_pipeline(save(tmp_path, old, 256)).name == "resnet18-conv4"


def test_a_transposed_tensor_and_one_of_another_size_are_refused_with_both_shapes(tmp_path: Path) -> None:
    state = networks.alexnet_state()
    turned = {**state, "3.weight": state["3.weight"].transpose(0, 1)}
    message = refusal(save(tmp_path, turned, 256))
    assert message == "backbone.3.weight is (64, 192, 5, 5), expected (192, 64, 5, 5) of the backbone alexnet"
    short = {**state, "10.bias": torch.ones(9)}
    assert refusal(save(tmp_path, short, 256)).startswith("backbone.10.bias is (9,), expected (256,)")


def test_a_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    state = networks.alexnet_state()
    state["8.weight"][0, 0, 0, 0] = torch.nan
    assert refusal(save(tmp_path, state, 256)).startswith("backbone.8.weight is not finite")


def test_weights_that_are_whole_numbers_are_refused_by_inspect_and_export(tmp_path: Path) -> None:
    state = networks.alexnet_state()
    path = save(tmp_path, {**state, "8.weight": state["8.weight"].long()}, 256)
    message = refusal(path)
    assert message == "backbone.8.weight is of torch.int64, expected floating point: save it as float32"
    assert inspect_checkpoint(path).backbone == message


def test_a_deeper_network_is_not_taken_for_the_one_it_begins_with(tmp_path: Path) -> None:
    """Every tensor of ResNet-18's conv4 is there, and more blocks after it, as in another depth of the same kind."""
    state = networks.resnet_state(18, 6)
    more = {name.replace("6.1.", "6.2."): tensor for name, tensor in state.items() if name.startswith("6.1.")}
    message = refusal(save(tmp_path, {**state, **more}, 256))
    assert "is a ResNet of 2 + 2 + 3 blocks, from 3 input channels to 256, none of resnet18-conv4, " in message
    message = refusal(save(tmp_path, {**state, **more}, 256), backbone="resnet18-conv4")
    assert message.startswith("holds backbone.6.2.bn1.bias, ")
    assert message.endswith("which the backbone resnet18-conv4 does not have")


def test_tensors_after_the_cut_are_left_out_and_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**networks.alexnet_state(), "classifier.1.weight": torch.ones(4, 9), "classifier.1.bias": torch.ones(4)}
    with caplog.at_level("INFO"):
        assert read_pipeline(save(tmp_path, state, 256)).name == "alexnet"
    assert "ignored: backbone.* (2 tensors)" in caplog.messages


def test_a_deeper_cut_may_be_shortened_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, networks.resnet_state(18, 6), 128, LYAKAAP)
    message = refusal(path)
    assert message == (
        "the backbone resnet18-conv4 gives 256 channels, the head takes 128: name another with --backbone"
    )
    assert read_pipeline(path, backbone="resnet18-conv3").name == "resnet18-conv3"


def test_tokens_and_unknown_networks_are_refused_with_the_way_out(tmp_path: Path) -> None:
    tokens = {f"vit_model.encoder.layer.{number}.weight": torch.ones(4, 4) for number in range(20)}
    message = refusal(save(tmp_path, tokens, 8))
    assert message == (
        "the backbone backbone.vit_model.* (20 tensors) is a network without convolutions, none of resnet18-conv4, "
        "resnet18-conv5, resnet50-conv4, resnet50-conv5, resnet101-conv4, resnet101-conv5, vgg16, alexnet, cct384, "
        "vit-b16: pass --backbone with its name or with package.module:callable of your own, or --input features for "
        "the head alone"
    )
    vit = {**tokens, "vit_model.embeddings.cls_token": torch.ones(1, 1, 4)}
    assert "is a transformer (embeddings.cls_token)" in refusal(save(tmp_path, vit, 8))


def test_a_checkpoint_without_a_backbone_takes_one_that_brings_its_weights(tmp_path: Path) -> None:
    path = save(tmp_path, {}, 112)
    pipeline = read_pipeline(path, backbone="efficientnet-lite0", changes=ImageChanges(resize=Resize.parse("64x96")))
    assert pipeline.images == ImageInput(mean=(127.0,) * 3, std=(128.0,) * 3, resize=Resize(size=(64, 96)))
    with pytest.raises(UsageError, match="the backbone vgg16 brings no weights: pass a checkpoint"):
        read_pipeline(path, backbone="vgg16")
    with pytest.raises(UsageError, match="holds no image backbone: pass --backbone, or --input features"):
        read_pipeline(path)
    with pytest.raises(UsageError, match=r"backbone 'vgg' is unknown: choose vgg16, .*or package.module:callable"):
        read_pipeline(path, backbone="vgg")


class Small(nn.Module):
    """A user's own backbone, of six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.first(x)
        return result


class Own(Small):
    """A backbone with its own image input."""

    images = ImageInput(mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), resize=Resize(size=(32, 48)))


class Misled(Small):
    images = "as they come"


class Maps(Small):
    def forward(self, x: Tensor) -> Tensor:
        return [self.first(x)]  # type: ignore[return-value]


class Tokens(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2)


class Fixed(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 3, 100, 100))


def nothing() -> str:
    return "a string"


def failing() -> nn.Module:
    raise RuntimeError("no weights\nhere")


HERE = __name__


def test_a_users_own_backbone_says_its_images_or_takes_imagenets(tmp_path: Path) -> None:
    path = save(tmp_path, {}, 6)
    assert read_pipeline(path, backbone=f"{HERE}:Own").images == Own.images
    pipeline = read_pipeline(path, backbone=f"{HERE}:Small")
    assert (pipeline.images, pipeline.name) == (ImageInput(), f"{HERE}:Small")
    assert pipeline(torch.zeros(2, 21, 33, 3, dtype=torch.uint8)).shape == (2, 18)


def test_weights_in_the_checkpoint_are_loaded_into_a_users_own_backbone(tmp_path: Path) -> None:
    weights = Small().state_dict()
    path = save(tmp_path, weights, 6, LYAKAAP)
    pipeline = read_pipeline(path, backbone=f"{HERE}:Own")
    assert torch.equal(pipeline.backbone.state_dict()["first.weight"], weights["first.weight"])
    assert pipeline.images == Own.images
    assert "base_model.first.bias is (5,), expected (6,)" in refusal(
        save(tmp_path, {**weights, "first.bias": torch.ones(5)}, 6, LYAKAAP), backbone=f"{HERE}:Own"
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", UsageError, "returned a str, expected a torch.nn.Module"),
        ("failing", UsageError, "cannot be made (RuntimeError: no weights here)"),
        ("absent", UsageError, "cannot be made (AttributeError: "),
        ("Misled", UsageError, "its attribute images is a str, expected an ImageInput"),
        ("Maps", InputError, "returned a list, expected one tensor (B, D, h, w)"),
        ("Tokens", InputError, "returned (1, 6, 12321), expected a feature map (B, D, h, w): tokens must be brought"),
        ("Fixed", InputError, "does not take an image (1, 3, 224, 224) (shape '[-1, 3, 100, 100]' is invalid"),
    ],
)
def test_a_users_own_backbone_that_is_none(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as refused:
        read_pipeline(save(tmp_path, {}, 6), backbone=f"{HERE}:{name}")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_packages_in_the_working_folder_are_found_and_the_path_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_backbone_of_a_test.py").write_text("import torch\ndef make(): return torch.nn.Conv2d(3, 6, 3)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert read_backbone("my_backbone_of_a_test:make").width == 6
    assert sys.path == before
    with pytest.raises(UsageError, match="ModuleNotFoundError: No module named 'no_such_package'"):
        read_backbone("no_such_package:make")


def test_the_file_of_a_whole_network_gives_its_first_layers(tmp_path: Path) -> None:
    """The files have the names under which torchvision saves ResNet-18 and AlexNet."""
    children = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    cut = networks.resnet_state(18, 7)
    whole = {f"{children[name[0]]}{name[1:]}": tensor for name, tensor in cut.items()}
    torch.save({**whole, "fc.weight": torch.ones(4, 512), "fc.bias": torch.ones(4)}, tmp_path / "resnet18.pth")
    for name, width in (("resnet18-conv3", 128), ("resnet18-conv5", 512)):
        ready = read_backbone(name, tmp_path / "resnet18.pth")
        assert (ready.width, ready.images) == (width, BACKBONES[name].images)
        assert all(torch.equal(tensor, cut[key]) for key, tensor in ready.module.state_dict().items())
    alexnet = {f"features.{name}": tensor for name, tensor in networks.alexnet_state().items()}
    torch.save({**alexnet, "classifier.1.weight": torch.ones(4, 9)}, tmp_path / "alexnet.pth")
    assert read_backbone("alexnet", tmp_path / "alexnet.pth").name == "alexnet"
    with pytest.raises(InputError, match=r"alexnet.pth: lacks 12.bias, .* of the backbone vgg16"):
        read_backbone("vgg16", tmp_path / "alexnet.pth")
    with pytest.raises(UsageError, match="is no NetVLAD with a backbone: say with --backbone whose weights it has"):
        read_backbone(None, tmp_path / "alexnet.pth")
    with pytest.raises(UsageError, match="nothing says which backbone"):
        read_backbone(None)


def test_the_backbone_of_a_netvlad_can_be_taken_alone(tmp_path: Path) -> None:
    ready = read_backbone(None, save(tmp_path, networks.alexnet_state(), 256))
    assert (ready.name, ready.images.resize) == ("alexnet", Resize(size=(480, 640), filter="bilinear-aliased"))
    assert ready.under(NetVLAD(2, 256)).name == "alexnet"


def test_an_untrained_backbone_comes_from_its_seed() -> None:
    first, second = (read_backbone("alexnet", seed=seed).module.state_dict()["0.weight"] for seed in (1, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, read_backbone("alexnet", seed=2).module.state_dict()["0.weight"])


def blocks(*counts: int, basic: bool = False) -> State:
    """Return the names of a ResNet of so many blocks in its stages; the shapes are those of its first convolutions."""
    state = {"0.weight": torch.zeros(64, 3, 7, 7), "1.running_mean": torch.zeros(64)}
    for stage, count in enumerate(counts):
        for block in range(count):
            for number, name in enumerate(("conv1", "conv2") if basic else ("conv1", "conv2", "conv3")):
                width = 64 * 2**stage * (4 if number == 2 else 1)
                state[f"{stage + 4}.{block}.{name}.weight"] = torch.zeros(width, 1, 1, 1)
    return state


OTHERS = {
    "a ResNet of 4 + 4 + 6 blocks, from 3 input channels to 1024": blocks(4),
    "a ResNet-152 of 3 + 8 + 36 + 3 blocks, from 3 input channels to 2048": blocks(3, 8, 36, 3),
    "a ResNet-34 of 3 + 4 + 6 blocks, from 3 input channels to 256": blocks(3, 4, 6, basic=True),
    "a network of 5 convolutions, from 1 input channel to 256": {
        **networks.alexnet_state(), "0.weight": torch.zeros(64, 1, 11, 11)
    },
}  # fmt: skip


@pytest.mark.parametrize("words", OTHERS)
def test_inspect_and_export_say_the_same_of_another_network(tmp_path: Path, words: str) -> None:
    state = OTHERS[words]
    if "4 + 4 + 6" in words:  # every tensor of ResNet-50's conv4 is there
        fifty = networks.resnet_state(50, 6)
        state = {**fifty, **{name.replace("4.2.", "4.3."): each for name, each in fifty.items() if name[:4] == "4.2."}}
    path = save(tmp_path, state, 256)
    message = refusal(path)
    assert f"is {words}, none of resnet18-conv4, " in message
    assert "pass --backbone with its name or with package.module:callable of your own, or --input features" in message
    assert inspect_checkpoint(path).backbone == message


def test_inspect_and_export_say_the_same_of_a_damaged_backbone(tmp_path: Path) -> None:
    state = networks.alexnet_state()
    del state["6.weight"]
    path = save(tmp_path, state, 256)
    assert inspect_checkpoint(path).backbone == refusal(path) == "lacks backbone.6.weight of the backbone alexnet"
