"""OpenIBL, and the bare layer of this family without a bias. Source: yxgeee/OpenIBL, ibl/models/netvlad.py."""

from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.pytorch_netvlad import VGG16

ROOTS = ("net_vlad.", "")

OPENIBL = Convolution(
    name="openibl",
    keys="net_vlad.conv.weight (K,D,1,1), net_vlad.centroids (K,D), also without net_vlad.; and "
    "pca_layer.weight (P,K*D,1,1), pca_layer.bias (P,) or none",
    roots=ROOTS,
    absent=tuple(root + name for root in ROOTS for name in ("conv.bias", "out_projection.weight")),
    projection="pca_layer.",
    preprocessing=VGG16,
)
