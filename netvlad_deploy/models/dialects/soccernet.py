"""SoccerNet's temporally aware pooling: MoEE's layer, in which `add_batch_norm` L2-normalises the local descriptors.

NetVLAD++ has two of it, for the frames before an action and for those after it, and joins their descriptors. A
classifier `fc` stands on them.

Source: SilvioGiancola/SoccerNetv2-DevKit, Task1-ActionSpotting, TemporallyAwarePooling/inference/model.py and
netvlad.py, which flattens (D,K).
"""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import NORMALIZES, Dialect, columns
from netvlad_deploy.models.dialects.convolution import SOCCERNET_FRAMES
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.layer import NetVLADSpec


class TemporallyAware(Dialect):
    """Descriptors are d*K + k, local descriptors are L2-normalised first, no ghost clusters and no bias."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Take the two tensors of one layer."""
        clusters, clusters2 = (root + name for name in self.needs)
        num_clusters, feature_size, ghosts = columns(clusters, clusters2, state)
        if ghosts:
            shapes = f"{clusters} {tuple(state[clusters].shape)} and {clusters2} {tuple(state[clusters2].shape)}"
            raise InputError(f"{shapes} are not (D, K) and (1, D, K)")
        spec = NetVLADSpec(num_clusters=num_clusters, feature_size=feature_size, batch_norm=False, normalize_input=True)
        return Head(
            spec=spec,
            tensors={"clusters": state[clusters], "clusters2": state[clusters2]},
            ignored=self.others(state, root, (clusters, clusters2)),
            preprocessing=self.preprocessing,
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
