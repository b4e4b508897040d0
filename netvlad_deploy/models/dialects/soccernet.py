"""SoccerNet's pooling baseline, with a classifier `fc` on its descriptors.

Source: SilvioGiancola/SoccerNetv2-DevKit, Task1-ActionSpotting/Pooling/src/model.py, which builds its layer with
normalize_input=True and vladv2=False, and netvlad.py, which flattens (K,D).
"""

from netvlad_deploy.models.dialects.base import NORMALIZES
from netvlad_deploy.models.dialects.convolution import Convolution

SOCCERNET = Convolution(
    name="soccernet",
    keys="pool_layer.conv.weight (K,D,1,1), pool_layer.centroids (K,D), pool_layer.conv.bias (K,) or none",
    roots=("pool_layer.",),
    classifiers=("fc.",),
    preprocessing=f"local descriptors (batch, num_features, D): a window of SoccerNet's frame features; {NORMALIZES}",
)
