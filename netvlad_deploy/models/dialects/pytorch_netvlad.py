"""Nanne's pytorch-NetVlad. Source: Nanne/pytorch-NetVlad, netvlad.py and main.py; `vladv2` has a bias."""

from netvlad_deploy.models.dialects.base import NORMALIZES, BackboneKeys
from netvlad_deploy.models.dialects.convolution import Convolution

ROOTS = ("pool.",)
WPCA = "WPCA.0.weight"
VGG16 = f"local descriptors (batch, num_features, D): the last convolution of VGG16, before its ReLU; {NORMALIZES}"

ENCODER = BackboneKeys(
    roots=("encoder.",),
    candidates=("vgg16", "alexnet"),
    assumed="images stay as large as they are (Patch-NetVLAD's files without whitening have the same keys, and it "
    "resizes to 480x640: --dialect patch-netvlad)",
)
"""ImageNet's normalisation, and images as large as they are and as stored. Source: pittsburgh.py."""

PYTORCH_NETVLAD = Convolution(
    name="pytorch-netvlad",
    keys="pool.conv.weight (K,D,1,1), pool.centroids (K,D), pool.conv.bias (K,) or none",
    roots=ROOTS,
    absent=(WPCA,),
    preprocessing=VGG16.replace("VGG16", "VGG16 or AlexNet"),
    backbone=ENCODER,
)
