"""OpenPlaceRecognition's image models: pytorch-netvlad's layer with a linear one in it, whose result is as it comes.

Source: OPR-Project/OpenPlaceRecognition, src/opr/modules/netvlad.py.
"""

from netvlad_deploy.models.dialects.base import NORMALIZES
from netvlad_deploy.models.dialects.convolution import Convolution

OPENPLACERECOGNITION = Convolution(
    name="openplacerecognition",
    keys="head.conv.weight (K,D,1,1), head.centroids (K,D), head.out_projection.weight (D,K*D), "
    "head.out_projection.bias (D,), head.conv.bias (K,) or none, also without head.",
    needs=("conv.weight", "centroids", "out_projection.weight"),
    roots=("head.", ""),
    projection="{root}out_projection.",
    projection_l2=False,
    preprocessing="local descriptors (batch, num_features, D): every position of the backbone's feature map; "
    f"{NORMALIZES}",
)
