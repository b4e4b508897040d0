"""SoccerNet's temporally aware pooling: MoEE's layer, in which `add_batch_norm` L2-normalises the local descriptors.

NetVLAD++ has two such layers, for the frames before an action and for those after it, joins their descriptors, and
feeds them to a classifier `fc`.

Source: SilvioGiancola/SoccerNetv2-DevKit, Task1-ActionSpotting, TemporallyAwarePooling/inference/model.py and
netvlad.py, which flattens (D,K).
"""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.models.dialects.base import NORMALIZES, Dialect, cluster_sizes
from netvlad_deploy.models.dialects.convolution import SOCCERNET_FRAMES
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.layer import NetVLADSpec


class TemporallyAware(Dialect):
    """A layer with descriptors d*K + k, which L2-normalises local descriptors, without ghost clusters and bias."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head of the two tensors of a layer."""
        clusters, clusters2 = (root + name for name in self.needs)
        num_clusters, feature_size, _ = cluster_sizes(clusters, clusters2, state, ghosts=False)
        spec = NetVLADSpec(num_clusters=num_clusters, feature_size=feature_size, batch_norm=False, normalize_input=True)
        return Head(
            spec=spec,
            tensors={"clusters": state[clusters], "clusters2": state[clusters2]},
            ignored=self.others(state, root, (clusters, clusters2)),
        )


SOCCERNET_TEMPORALLY_AWARE = TemporallyAware(
    name="soccernet-temporally-aware",
    keys="pool_layer.clusters (D,K), pool_layer.clusters2 (1,D,K); of NetVLAD++ pool_layer_before.* and "
    "pool_layer_after.*, one of which --prefix chooses; also without",
    needs=("clusters", "clusters2"),
    roots=("pool_layer.", "pool_layer_before.", "pool_layer_after.", ""),
    unused=("fc.",),
    preprocessing=f"{SOCCERNET_FRAMES}; {NORMALIZES}",
)
