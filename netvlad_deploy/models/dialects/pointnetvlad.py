"""PointNetVLAD, and other torch layers after LOUPE. Source: cattaneod/PointNetVlad-Pytorch, models/PointNetVlad.py."""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Dialect, Head, columns
from netvlad_deploy.spec import NetVLADSpec

WEIGHTS, WEIGHTS2, BIASES, BATCH_NORM = "cluster_weights", "cluster_weights2", "cluster_biases", "bn1."
STATISTICS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"


class PointNetVLAD(Dialect):
    """The head before `hidden1_weights`: descriptors are d*K + k, local descriptors as they come, no ghost clusters."""

    def convert(self, state: Mapping[str, Tensor]) -> Head:
        """Rename the weights, and BatchNorm or the biases."""
        root = self.root(state)
        num_clusters, feature_size, ghosts = columns(root + WEIGHTS, root + WEIGHTS2, state)
        if ghosts:
            shapes = " and ".join(f"{root + name} {tuple(state[root + name].shape)}" for name in (WEIGHTS, WEIGHTS2))
            raise InputError(f"{shapes} are not (D, K) and (1, D, K)")
        batch_norm = any(name.startswith(root + BATCH_NORM) for name in state)
        if batch_norm is (root + BIASES in state):
            raise InputError(f"holds {'both' if batch_norm else 'neither'} {root}{BATCH_NORM}* and {root}{BIASES}")
        used = {"clusters": root + WEIGHTS, "clusters2": root + WEIGHTS2}
        used |= self._assignment(state, root, num_clusters, batch_norm)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=batch_norm,
            assignment_bias=not batch_norm,
        )
        return Head(
            spec=spec,
            tensors={name: state[key] for name, key in used.items()},
            ignored=self.others(state, root, used.values()),
            preprocessing=self.preprocessing,
        )

    def _assignment(self, state: Mapping[str, Tensor], root: str, columns: int, batch_norm: bool) -> dict[str, str]:
        """Return the names of BatchNorm or of the biases by the reference's own."""
        if not batch_norm:
            used = {"assignment_bias": root + BIASES}
        else:
            used = {f"batch_norm.{name}": root + BATCH_NORM + name for name in STATISTICS}
        for key in used.values():
            if key not in state:
                raise InputError(f"lacks {key} of {self.name}")
            if state[key].shape != (columns,):
                weights = root + WEIGHTS
                shapes = f"{weights} {tuple(state[weights].shape)} and {key} {tuple(state[key].shape)}"
                raise InputError(f"{shapes} do not fit: expected {key} ({columns},)")
        counter = root + BATCH_NORM + COUNTER
        return used | ({f"batch_norm.{COUNTER}": counter} if counter in state else {})


POINTNETVLAD = PointNetVLAD(
    name="pointnetvlad",
    keys="net_vlad.cluster_weights (D,K), net_vlad.cluster_weights2 (1,D,K), net_vlad.bn1.* or net_vlad.cluster_biases "
    "(K,), also without net_vlad.; hidden1_weights, bn2.* and context_gating.* are refused",
    needs=(WEIGHTS, WEIGHTS2),
    roots=("net_vlad.", ""),
    preprocessing="local descriptors (batch, num_features, D): one of PointNet for each point, not normalised",
)
