"""OpenIBL, and the bare layer of this family without a bias.

Source: yxgeee/OpenIBL, ibl/models/netvlad.py, and ibl/utils/data/, which resizes images of Pillow.
"""

from netvlad_deploy.models.dialects.base import NORMALIZES, BackboneKeys
from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.spec.images import ImageInput, Resize

ROOTS = ("net_vlad.", "")
MEAN = (0.48501960784313836, 0.4579568627450961, 0.4076039215686255)
"""Of RGB values from 0 to 1, which its code divides by 1/255 afterwards. Source: README of yxgeee/OpenIBL."""

OPENIBL = Convolution(
    name="openibl",
    keys="net_vlad.conv.weight (K,D,1,1), net_vlad.centroids (K,D), also without net_vlad.; and "
    "pca_layer.weight (P,K*D,1,1), pca_layer.bias (P,) or none",
    roots=ROOTS,
    lacks=("conv.bias", "out_projection.weight"),
    projection="pca_layer.",
    preprocessing="local descriptors (batch, num_features, D): every position of the base model's feature map, of "
    f"OpenIBL's VGG16 the last convolution before its ReLU; {NORMALIZES}",
    backbone=BackboneKeys(
        roots=("base_model.base.",),
        candidates=("vgg16",),
        images=ImageInput(
            mean=(255 * MEAN[0], 255 * MEAN[1], 255 * MEAN[2]),
            std=(1.0, 1.0, 1.0),
            resize=Resize(size=(480, 640)),
            orient=False,
        ),
    ),
)
