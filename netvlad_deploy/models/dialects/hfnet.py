"""The checkpoints of HF-Net and MobileNetVLAD: the global head, with or without a reduction of its dimension.

Its BatchNorm is slim's without a scale. Its epsilon is no variable: it is slim's own, 1e-3, which no configuration of
the project changes.

Source: ethz-asl/hfnet, hfnet/models/utils/layers.py, hf_net.py and mobilenetvlad.py.
"""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.hfnet import HFNET, hfnet_spec
from netvlad_deploy.models.dialects.base import Dialect
from netvlad_deploy.models.dialects.loupe import SLIM_EPSILON
from netvlad_deploy.models.head import Head

CLUSTERS, MEMBERSHIPS = "vlad.clusters", "vlad.memberships.weights"
NORM = "vlad.memberships.BatchNorm."
STATISTICS_BY_STATE = {"offset": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
REDUCTION = "dimensionality_reduction."


class HfNetFile(Dialect):
    """The dialect of variables below `global_head`, or below nothing in MobileNetVLAD."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head, with the linear layer after it if the checkpoint has one."""
        clusters, weights = root + CLUSTERS, root + MEMBERSHIPS
        first, second = tuple(state[clusters].shape), tuple(state[weights].shape)
        if len(first) != 5 or first[:3] != (1, 1, 1) or second != (1, 1, first[4], first[3]):
            raise InputError(f"{clusters} {first} and {weights} {second} are not (1, 1, 1, K, D) and (1, 1, D, K)")
        num_clusters, feature_size = first[3:]
        tensors = {"clusters": state[clusters][0, 0, 0], "memberships": state[weights][0, 0]}
        used = [clusters, weights]
        for own, name in STATISTICS_BY_STATE.items():
            tensors[own] = self.vector(state, root + NORM + name, num_clusters, weights)
            used.append(root + NORM + name)
        biases, matrix = (root + REDUCTION + name for name in ("biases", "weights"))
        size, projected = None, tuple(name for name in (biases, matrix) if name in state)
        if projected:
            tensors["projection.weight"] = self.matrix(state, matrix, num_clusters * feature_size, by_column=True)
            size = len(tensors["projection.weight"])
            tensors["projection.bias"] = self.vector(state, biases, size, matrix)
        return Head(
            spec=hfnet_spec(num_clusters, feature_size, SLIM_EPSILON, size),
            tensors=tensors,
            ignored=self.others(state, f"{root}vlad.", (*used, *projected)),
            projected=projected,
        )


HFNET_FILE = HfNetFile(
    name=HFNET,
    needs=(CLUSTERS, MEMBERSHIPS),
    roots=("global_head.", ""),
    unused=("local_head.",),
    preprocessing="local descriptors (batch, num_features, D): every position of MobileNet's feature map at the global "
    "endpoint, layer_18 by default, of grey images (x - 128) / 128; not normalised",
)
