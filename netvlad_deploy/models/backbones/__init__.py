"""Image backbones by name, and those of the user's own code; `docs/dialects.md` has the table.

A backbone of the user's own, `package.module:callable`, is imported because the command line names it. No file can have
code imported: a checkpoint holds weights, and at most the name that the user must give again.
"""

import contextlib
import importlib
import sys
from functools import partial
from pathlib import Path

from torch import nn

from netvlad_deploy.errors import UsageError
from netvlad_deploy.models.backbones import networks
from netvlad_deploy.models.backbones.compact_transformer import CCT384
from netvlad_deploy.models.backbones.model_folder import folder_backbone
from netvlad_deploy.models.backbones.networks import Backbone
from netvlad_deploy.models.backbones.timm_networks import timm_backbone
from netvlad_deploy.models.backbones.transformers_networks import TRANSFORMERS_BACKBONES
from netvlad_deploy.spec.images import ImageInput, Resize

IMAGENET = ImageInput(resize=Resize(size=(480, 640)))
"""Image input of networks trained on ImageNet; the size is that of the place recognition benchmarks."""

RESNET_STAGES = {"conv3": 2, "conv4": 3, "conv5": 4}
"""By the name of the last stage, the number of stages that a ResNet keeps."""

USER_CODE_ERRORS = (Exception, SystemExit)
"""Errors of the user's code, which are reported as its own, also if it ends the process; Ctrl-C is not among them."""


def _resnet(depth: int, last: str) -> Backbone:
    stages = RESNET_STAGES[last]
    layers = {f"layer{number}.": f"{number + 3}." for number in range(1, 5)}
    return Backbone(
        name=f"resnet{depth}-{last}",
        build=partial(networks.resnet, depth, stages),
        width=networks.RESNET_WIDTHS[stages - 1] * networks.RESNETS[depth][0].expansion,
        images=IMAGENET,
        renames={"conv1.": "0.", "bn1.": "1.", **layers},
        beyond=(*(f"{number + 4}." for number in range(stages, 4)), "fc."),
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        *(
            Backbone(
                name=build.__name__,
                build=build,
                width=width,
                images=IMAGENET,
                renames={"features.": ""},
                beyond=("classifier.",),
            )
            for build, width in ((networks.vgg16, 512), (networks.alexnet, 256))
        ),
        *(_resnet(depth, last) for depth in (18, 50, 101, 152) for last in RESNET_STAGES),
        Backbone(
            name="efficientnet-lite0",
            build=networks.efficientnet_lite0,
            width=112,
            images=ImageInput(mean=(127.0,) * 3, std=(128.0,) * 3, resize=Resize(size=(240, 320))),
            trained=True,
        ),
        CCT384,
        *TRANSFORMERS_BACKBONES,
    )
}

LIBRARIES = {"hf": folder_backbone, "timm": timm_backbone}
"""By the word before the colon, the function that finds a network: in a folder of transformers, or by timm's name."""


def is_custom(name: str) -> bool:
    """Return True if a name leads outside this package: the user's own code, a folder, or a name of a library."""
    return ":" in name


def find_backbone(name: str) -> Backbone:
    """Return the backbone of this name, which the user has given: their own code is imported.

    Raises: UsageError if there is no such backbone, or the user's code fails; InputError if a folder is unusable;
        MissingDependencyError if a library is not installed.

    >>> find_backbone("resnet18-conv4").width
    256
    """
    library, colon, rest = name.partition(":")
    if colon:
        return LIBRARIES[library](rest) if library in LIBRARIES else _custom_backbone(name)
    if name not in BACKBONES:
        others = "hf:FOLDER, timm:NAME or package.module:callable"
        raise UsageError(f"backbone {name!r} is unknown: choose {', '.join(BACKBONES)}, {others}")
    return BACKBONES[name]


def _custom_backbone(name: str) -> Backbone:
    """Return the backbone that a callable of the user makes; packages in the working folder are found too.

    The callable is called once, without arguments, and returns a module with its weights. The module may have its image
    input as an attribute `images`, an `ImageInput`.
    """
    package, _, attribute = name.partition(":")
    before = list(sys.path)
    sys.path.append(str(Path.cwd()))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            module = getattr(importlib.import_module(package), attribute)()
    except USER_CODE_ERRORS as error:
        said = " ".join(str(error).split())
        raise UsageError(f"--backbone {name} cannot be made ({type(error).__name__}: {said})") from error
    finally:
        sys.path[:] = before
    if not isinstance(module, nn.Module):
        raise UsageError(f"--backbone {name} returned a {type(module).__name__}, expected a torch.nn.Module")
    images = getattr(module, "images", None)
    if images is not None and not isinstance(images, ImageInput):
        raise UsageError(
            f"--backbone {name}: its attribute images is a {type(images).__name__}, expected an ImageInput"
        )
    return Backbone(name=name, build=lambda: module, images=images, trained=True)
