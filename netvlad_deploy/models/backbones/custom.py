"""A backbone of the user's own: `package.module:callable`, imported because the command line names it.

No file can have code imported: a checkpoint holds weights, and at most the name that the user must give again.
"""

import contextlib
import importlib
import sys
from pathlib import Path

from torch import nn

from netvlad_deploy.errors import UsageError
from netvlad_deploy.models.backbones.base import Backbone
from netvlad_deploy.spec.images import ImageInput

MODULE_SEPARATOR = ":"
IMAGES_ATTRIBUTE = "images"

USER_CODE_ERRORS = (Exception, SystemExit)
"""Errors of the user's code, which are reported as its own, also if it ends the process; Ctrl-C is not among them."""


def custom_backbone(name: str) -> Backbone:
    """Return the backbone that a callable of the user makes; packages in the working folder are found too.

    The callable is called once, without arguments, and returns a module with its weights. The module may have its image
    input as an attribute `images`, an `ImageInput`.

    Raises: UsageError if there is no such callable, it fails, or returns something else.
    """
    package, _, attribute = name.partition(MODULE_SEPARATOR)
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
    images = getattr(module, IMAGES_ATTRIBUTE, None)
    if images is not None and not isinstance(images, ImageInput):
        raise UsageError(
            f"--backbone {name}: its attribute images is a {type(images).__name__}, expected an ImageInput"
        )
    return Backbone(name=name, build=lambda: module, images=images, trained=True)
