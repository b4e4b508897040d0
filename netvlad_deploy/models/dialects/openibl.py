"""OpenIBL, and the bare layer of this family without a bias. Source: yxgeee/OpenIBL, ibl/models/netvlad.py."""

from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.pytorch_netvlad import VGG16

ROOTS = ("net_vlad.", "")

OPENIBL = Convolution(
    name="openibl",
    keys="net_vlad.conv.weight (K,D,1,1), net_vlad.centroids (K,D), also without net_vlad.",
    roots=ROOTS,
    absent=tuple(f"{root}conv.bias" for root in ROOTS),
    preprocessing=VGG16,
)
