"""The layer of LOUPE in torch, as three projects use it: PointNetVLAD, OverlapTransformer and OverlapNetVLAD.

The second and third save the BatchNorm after the projection and never apply it. OverlapTransformer L2-normalises local
descriptors before the layer and the descriptor after it. CVTNet has three such layers and joins their descriptors.

Source: cattaneod/PointNetVlad-Pytorch, models/PointNetVlad.py; haomo-ai/OverlapTransformer, modules/netvlad.py and
modules/overlap_transformer.py; fcchit/OverlapNetVLAD, modules/netvlad.py and modules/overlapnetvlad.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import NORMALIZES, Dialect, Head, columns
from netvlad_deploy.spec.layer import BATCH_NORM, BIAS, NetVLADSpec, Projection

WEIGHTS, WEIGHTS2, BIASES, FIRST_NORM = "cluster_weights", "cluster_weights2", "cluster_biases", "bn1."
HIDDEN_WEIGHTS, SECOND_NORM, GATE = "hidden1_weights", "bn2.", "context_gating."
STATISTICS = ("weight", "bias", "running_mean", "running_var")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class PointNetVLAD(Dialect):
    """Descriptors are d*K + k, there are no ghost clusters, and a projection is not L2-normalised before its gating.

    Args:
        normalize_input: local descriptors are L2-normalised before the layer.
        projection_norm: the BatchNorm that every file has after the projection is applied.
        final_l2: a projected descriptor is L2-normalised.
    """

    normalize_input: bool = False
    projection_norm: bool = True
    final_l2: bool = False

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Rename the weights, and BatchNorm or the biases."""
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
            normalize_input=self.normalize_input,
        )
        head = Head(
            spec=spec,
            tensors={name: state[key] for name, key in used.items()},
            ignored=self.others(state, root, used.values()),
            preprocessing=self.preprocessing,
        )
        following = any(name.startswith((root + HIDDEN_WEIGHTS, root + SECOND_NORM, root + GATE)) for name in state)
        return self._followed(state, root, head) if following else head

    def _followed(self, state: Mapping[str, Tensor], root: str, head: Head) -> Head:
        """Return the head with `hidden1_weights`, the BatchNorm after it if it is applied, and context gating."""
        hidden, gate = root + HIDDEN_WEIGHTS, root + GATE + "gating_weights"
        weight = self.matrix(state, hidden, head.spec.aggregate_size, by_column=True)
        size = len(weight)
        norm = self._norm(state, hidden, size, root + SECOND_NORM) if self.projection_norm else {}
        used = {f"projection.{name}": key for name, key in norm.items()}
        gating = None
        if any(name.startswith(root + GATE) for name in state):
            square = self.matrix(state, gate, size, by_column=True)
            added = self._added(state, gate, size, root + GATE + FIRST_NORM, root + GATE + "gating_biases")
            if len(square) != size:
                raise InputError(f"{gate} has shape {tuple(state[gate].shape)}, expected ({size}, {size})")
            gating = BIAS if BIAS in added else BATCH_NORM
            used |= {f"gating.{name}": key for name, key in added.items()}
        tensors = {name: state[key] for name, key in used.items()} | {"projection.weight": weight}
        if gating is not None:
            tensors["gating.weight"] = square
        projection = Projection(
            size=size,
            bias=False,
            batch_norm=self.projection_norm,
            l2=self.final_l2 and gating is None,
            gating=gating,
            final_l2=self.final_l2 and gating is not None,
        )
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
    "(K,), also without net_vlad.; and hidden1_weights (D*K,P), bn2.* and context_gating.* or none; point_net.* beside",
    needs=(WEIGHTS, WEIGHTS2),
    roots=("net_vlad.", ""),
    beside=("point_net.",),
    preprocessing="local descriptors (batch, num_features, D): one of PointNet for each point, not normalised",
)
OVERLAPTRANSFORMER = PointNetVLAD(
    name="overlaptransformer",
    keys="those of pointnetvlad, transformer_encoder.* beside; bn2.* is not used",
    needs=(WEIGHTS, WEIGHTS2),
    roots=("net_vlad.", ""),
    beside=("transformer_encoder.",),
    unused=("linear", "bn", f"net_vlad.{SECOND_NORM}"),
    normalize_input=True,
    projection_norm=False,
    final_l2=True,
    preprocessing="local descriptors (batch, num_features, D): a column of the range image each, of convLast2 after "
    f"its ReLU; {NORMALIZES}",
)
OVERLAPNETVLAD = PointNetVLAD(
    name="overlapnetvlad",
    keys="those of pointnetvlad behind vlad. instead of net_vlad., conv.* beside; bn2.* is not used",
    needs=(WEIGHTS, WEIGHTS2),
    roots=("vlad.", ""),
    beside=("conv.0.",),
    unused=(SECOND_NORM, f"vlad.{SECOND_NORM}"),
    projection_norm=False,
    preprocessing="local descriptors (batch, num_features, D): every position of the bird's-eye feature map after "
    "conv.*, not normalised",
)
