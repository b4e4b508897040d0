"""PointNetVLAD, and other torch layers after LOUPE. Source: cattaneod/PointNetVlad-Pytorch, models/PointNetVlad.py."""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Dialect, Head, columns
from netvlad_deploy.projection import BATCH_NORM, BIAS, Projection
from netvlad_deploy.spec import NetVLADSpec

WEIGHTS, WEIGHTS2, BIASES, FIRST_NORM = "cluster_weights", "cluster_weights2", "cluster_biases", "bn1."
HIDDEN, SECOND_NORM, GATING = "hidden1_weights", "bn2.", "context_gating."
STATISTICS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"


class PointNetVLAD(Dialect):
    """Descriptors are d*K + k, local descriptors as they come, no ghost clusters; a projection is not L2-normalised."""

    def convert(self, state: Mapping[str, Tensor]) -> Head:
        """Rename the weights, and BatchNorm or the biases."""
        root = self.root(state)
        num_clusters, feature_size, ghosts = columns(root + WEIGHTS, root + WEIGHTS2, state)
        if ghosts:
            shapes = " and ".join(f"{root + name} {tuple(state[root + name].shape)}" for name in (WEIGHTS, WEIGHTS2))
            raise InputError(f"{shapes} are not (D, K) and (1, D, K)")
        used = {"clusters": root + WEIGHTS, "clusters2": root + WEIGHTS2}
        added = self._added(state, root + WEIGHTS, num_clusters, root + FIRST_NORM, root + BIASES)
        batch_norm = BIAS not in added
        used |= added if batch_norm else {"assignment_bias": added[BIAS]}
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=batch_norm,
            assignment_bias=not batch_norm,
        )
        head = Head(
            spec=spec,
            tensors={name: state[key] for name, key in used.items()},
            ignored=self.others(state, root, used.values()),
            preprocessing=self.preprocessing,
        )
        following = any(name.startswith((root + HIDDEN, root + SECOND_NORM, root + GATING)) for name in state)
        return self._followed(state, root, head) if following else head

    def _followed(self, state: Mapping[str, Tensor], root: str, head: Head) -> Head:
        """Return the head with `hidden1_weights`, the BatchNorm after it, and context gating where it is."""
        hidden, gate = root + HIDDEN, root + GATING + "gating_weights"
        weight = self.matrix(state, hidden, head.spec.aggregate_size, by_column=True)
        size = len(weight)
        used = {f"projection.{name}": key for name, key in self._norm(state, hidden, size, root + SECOND_NORM).items()}
        gating = None
        if any(name.startswith(root + GATING) for name in state):
            square = self.matrix(state, gate, size, by_column=True)
            added = self._added(state, gate, size, root + GATING + FIRST_NORM, root + GATING + "gating_biases")
            if len(square) != size:
                raise InputError(f"{gate} has shape {tuple(state[gate].shape)}, expected ({size}, {size})")
            gating = BIAS if BIAS in added else BATCH_NORM
            used |= {f"gating.{name}": key for name, key in added.items()}
        tensors = {name: state[key] for name, key in used.items()} | {"projection.weight": weight}
        if gating is not None:
            tensors["gating.weight"] = square
        projection = Projection(size=size, bias=False, batch_norm=True, l2=False, gating=gating)
        return head.followed_by(projection, tensors, [hidden, *used.values(), *([gate] if gating else [])])

    def _added(self, state: Mapping[str, Tensor], weights: str, length: int, norm: str, bias: str) -> dict[str, str]:
        """Return the names of the BatchNorm after a product, or of the bias added to it, by the reference's own."""
        normalized = any(name.startswith(norm) for name in state)
        if normalized is (bias in state):
            raise InputError(f"holds {'both' if normalized else 'neither'} {norm}* and {bias}")
        if normalized:
            return self._norm(state, weights, length, norm)
        self.vector(state, bias, length, weights)
        return {BIAS: bias}

    def _norm(self, state: Mapping[str, Tensor], weights: str, length: int, norm: str) -> dict[str, str]:
        for name in STATISTICS:
            self.vector(state, norm + name, length, weights)
        names = (*STATISTICS, *([COUNTER] if norm + COUNTER in state else []))
        return {f"batch_norm.{name}": norm + name for name in names}


POINTNETVLAD = PointNetVLAD(
    name="pointnetvlad",
    keys="net_vlad.cluster_weights (D,K), net_vlad.cluster_weights2 (1,D,K), net_vlad.bn1.* or net_vlad.cluster_biases "
    "(K,), also without net_vlad.; and hidden1_weights (D*K,P), bn2.* and context_gating.* or none",
    needs=(WEIGHTS, WEIGHTS2),
    roots=("net_vlad.", ""),
    preprocessing="local descriptors (batch, num_features, D): one of PointNet for each point, not normalised",
)
