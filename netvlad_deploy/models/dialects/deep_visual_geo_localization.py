"""The deep visual geo-localization benchmark, for feature maps and for tokens.

Source: gmberton/deep-visual-geo-localization-benchmark, model/aggregation.py, network.py and datasets_ws.py, which
resizes tensors: with the torchvision of its time, before 0.17, that takes four pixels however much an image shrinks.
"""

from netvlad_deploy.models.dialects.base import NORMALIZES, BackboneKeys
from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.spec.images import ALIASED, ImageInput, Resize

DEEP_VISUAL_GEO_LOCALIZATION = Convolution(
    name="deep-visual-geo-localization",
    keys="aggregation.conv.weight (K,D,1,1) or (K,D,1), aggregation.centroids (K,D); with an fc "
    "aggregation.0.* and aggregation.1.weight (P,K*D), aggregation.1.bias (P,)",
    roots=("aggregation.", "aggregation.0."),
    kernel_axes=(2, 1),
    projection="aggregation.1.",
    preprocessing="local descriptors (batch, num_features, D): every position of the backbone's feature map, or every "
    f"token but the class token; {NORMALIZES}",
    backbone=BackboneKeys(
        roots=("backbone.",),
        candidates=("resnet18-conv4", "resnet18-conv5", "resnet50-conv4", "resnet50-conv5", "vgg16", "alexnet"),
        images=ImageInput(resize=Resize(size=(480, 640), filter=ALIASED), orient=False),
    ),
)
