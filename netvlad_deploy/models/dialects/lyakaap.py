"""lyakaap's NetVLAD-pytorch, which always has a bias. Source: lyakaap/NetVLAD-pytorch, netvlad.py."""

from netvlad_deploy.models.dialects.base import NORMALIZES, BackboneKeys
from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.openibl import ROOTS

LYAKAAP = Convolution(
    name="lyakaap",
    keys="net_vlad.conv.weight (K,D,1,1), net_vlad.conv.bias (K,), net_vlad.centroids (K,D), also without net_vlad.",
    roots=ROOTS,
    needs=("conv.weight", "centroids", "conv.bias"),
    lacks=("out_projection.weight",),
    preprocessing="local descriptors (batch, num_features, D): every position of the base model's feature map; "
    f"{NORMALIZES}",
    backbone=BackboneKeys(
        roots=("base_model.",),
        candidates=(
            *(f"resnet{depth}-{last}" for depth in (18, 50) for last in ("conv3", "conv4", "conv5")),
            "vgg16",
            "alexnet",
        ),
    ),
)
