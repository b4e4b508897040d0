"""Image backbones by name: how each is built, how wide its feature map is, and what it takes.

`docs/dialects.md` has the table. A backbone is an entry in BACKBONES, or code of the user's own.
"""

from netvlad_deploy.errors import UsageError
from netvlad_deploy.models.backbones.base import Backbone
from netvlad_deploy.models.backbones.custom import SEPARATOR, custom_backbone
from netvlad_deploy.models.backbones.efficientnet import efficientnet_lite0
from netvlad_deploy.models.backbones.networks import alexnet, resnet, resnet_width, vgg16
from netvlad_deploy.spec.images import ImageInput, Resize

__all__ = ["BACKBONES", "Backbone", "find_backbone", "is_custom"]

IMAGENET = ImageInput(resize=Resize(size=(480, 640)))
"""What networks trained on ImageNet take; the size is that of the place recognition benchmarks."""

RESNET_STAGES = {"conv3": 2, "conv4": 3, "conv5": 4}
"""How many stages a ResNet keeps, by the last one."""


def _resnet(depth: int, last: str) -> Backbone:
    stages = RESNET_STAGES[last]
    layers = {f"layer{number}.": f"{number + 3}." for number in range(1, 5)}
    return Backbone(
        name=f"resnet{depth}-{last}",
        build=resnet(depth, stages),
        width=resnet_width(depth, stages),
        images=IMAGENET,
        renames={"conv1.": "0.", "bn1.": "1.", **layers},
        beyond=(*(f"{number + 4}." for number in range(stages, 4)), "fc."),
    )


def _plain(name: str, width: int) -> Backbone:
    return Backbone(
        name=name,
        build={"vgg16": vgg16, "alexnet": alexnet}[name],
        width=width,
        images=IMAGENET,
        renames={"features.": ""},
        beyond=("classifier.",),
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        _plain("vgg16", 512),
        _plain("alexnet", 256),
        *(_resnet(depth, last) for depth in (18, 50) for last in RESNET_STAGES),
        Backbone(
            name="efficientnet-lite0",
            build=efficientnet_lite0,
            width=112,
            images=ImageInput(mean=(127.0,) * 3, std=(128.0,) * 3, resize=Resize(size=(240, 320))),
            trained=True,
        ),
    )
}


def is_custom(name: str) -> bool:
    """Return whether a name is that of code of the user's own."""
    return SEPARATOR in name


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name, which the user has given: code of their own is imported.

    Raises: UsageError if there is none.
    """
    if is_custom(name):
        return custom_backbone(name)
    if name not in BACKBONES:
        raise UsageError(f"backbone {name!r} is unknown: choose {', '.join(BACKBONES)}, or package.module:callable")
    return BACKBONES[name]
