"""The torch module of hloc, whose centres are already those of the residual x - c.

Source: cvg/Hierarchical-Localization, hloc/extractors/netvlad.py.
"""

from netvlad_deploy.models.dialects.convolution import Convolution
from netvlad_deploy.models.dialects.pytorch_netvlad import VGG16
from netvlad_deploy.spec import CLUSTERS_LAST

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
)
