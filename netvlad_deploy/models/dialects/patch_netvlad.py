"""Patch-NetVLAD with its whitening; without, its keys and its layer are pytorch-netvlad's.

Source: QVPR/Patch-NetVLAD, models_generic.py, netvlad.py and datasets.py, which resizes images of Pillow.
"""

from dataclasses import replace

from netvlad_deploy.models.dialects.base import AS_STORED
from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.pytorch_netvlad import ENCODER, ROOTS, VGG16, WPCA
from netvlad_deploy.spec.images import Resize

PATCH_NETVLAD = Convolution(
    name="patch-netvlad",
    keys="pool.conv.weight (K,D,1,1), pool.centroids (K,D), and WPCA.0.weight (P,K*D,1,1), WPCA.0.bias (P,)",
    roots=ROOTS,
    projection="WPCA.0.",
    present=(WPCA,),
    preprocessing=VGG16,
    backbone=replace(ENCODER, images=replace(AS_STORED, resize=Resize(size=(480, 640))), assumed=""),
)
