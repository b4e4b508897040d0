"""The torch module of hloc, whose centres are already those of the residual x - c.

Source: cvg/Hierarchical-Localization, hloc/extractors/netvlad.py.
"""

from netvlad_deploy.models.dialects.base import BackboneKeys
from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.pytorch_netvlad import VGG16
from netvlad_deploy.spec.images import AREA, ImageInput, Resize
from netvlad_deploy.spec.layer import CLUSTERS_LAST

MATCONVNET = BackboneKeys(
    roots=("backbone.",),
    candidates=("vgg16",),
    images=ImageInput(
        mean=(123.68, 116.779, 103.939),
        std=(1.0, 1.0, 1.0),
        resize=Resize(longest=1024, filter=AREA),
        orient=False,
    ),
)
"""VGG16 of matconvnet, on RGB values from 0 to 255 less the mean image's. Source: `averageImage` of vgg-verydeep-16.

Images are those of hloc's `extract_features.py`, which reads them as stored, and shrinks with OpenCV's area filter.
"""

HLOC = Convolution(
    name="hloc",
    keys="netvlad.score_proj.weight (K,D,1), netvlad.centers (D,K); and whiten.weight (P,D*K), whiten.bias "
    "(P,) or none",
    needs=("score_proj.weight", "centers"),
    roots=("netvlad.",),
    kernel_axes=(1,),
    centroids_by_column=True,
    flatten=CLUSTERS_LAST,
    projection="whiten.",
    preprocessing=VGG16,
    backbone=MATCONVNET,
)
