"""The layer of LOUPE, in TensorFlow and in torch, as PointNetVLAD, OverlapTransformer and their kin use it.

OverlapTransformer and OverlapNetVLAD save the BatchNorm after the projection and never apply it. OverlapTransformer
L2-normalises local descriptors before the layer and the descriptor after it. CVTNet has three such layers, of which
that of both views alone L2-normalises its local descriptors, and joins their descriptors. So does NetVLAD++ with two,
for the frames before an action and for those after it; in SoccerNet's layer `add_batch_norm` L2-normalises the local
descriptors.

LOUPE itself is TensorFlow: BatchNorm is slim's, with an epsilon of 1e-3, and no norm is below 1e-6.

Source: antoine77340/LOUPE, loupe.py; cattaneod/PointNetVlad-Pytorch, models/PointNetVlad.py;
haomo-ai/OverlapTransformer, modules/netvlad.py and modules/overlap_transformer.py; fcchit/OverlapNetVLAD,
modules/netvlad.py and modules/overlapnetvlad.py; BIT-MJY/CVTNet, modules/netvlad.py and cvtnet.py;
SilvioGiancola/SoccerNetv2-DevKit, Task1-ActionSpotting, TemporallyAwarePooling/inference/model.py and netvlad.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import NORMALIZES, Dialect, cluster_sizes
from netvlad_deploy.models.dialects.convolution import SOCCERNET_FRAMES
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.tensor_names import BATCH_NORM_COUNTER
from netvlad_deploy.spec.layer import BATCH_NORM, BIAS, CLAMP, RSQRT, NetVLADSpec, Projection

HIDDEN_WEIGHTS, SECOND_NORM, CONTEXT_GATING = "hidden1_weights", "bn2.", "context_gating."
STATISTICS = ("weight", "bias", "running_mean", "running_var")
SLIM_STATISTICS, SLIM_EPSILON = ("gamma", "beta", "moving_mean", "moving_variance"), 1e-3
"""Names and the usual epsilon of `slim.batch_norm`. Source: tensorflow/tensorflow (1.x), contrib/layers."""


@dataclass(frozen=True, kw_only=True)
class Loupe(Dialect):
    """A layer with descriptors d*K + k, without ghost clusters, whose projection is gated before any L2 normalisation.

    Args:
        needs: the names of the two matrices, (D,K) and (1,D,K).
        offset: the logits have BatchNorm or a bias.
        normalize_input: local descriptors are L2-normalised before the layer.
        projection_norm: the BatchNorm that every file has after the projection is applied.
        final_l2: a projected descriptor is L2-normalised.
        biases: name of the bias on the logits.
        first_norm: prefix of the BatchNorm on the logits.
        gating: name of the matrix of the gating, of the bias on its logits, and prefix of the BatchNorm on them.
        statistics: the names of a BatchNorm's weight, bias, mean and variance.
        norm_epsilon: the epsilon of BatchNorm, None for torch's own.
        epsilon: how a division by a norm is kept finite, see `NetVLADSpec`.
    """

    needs: tuple[str, ...] = ("cluster_weights", "cluster_weights2")
    offset: bool = True
    normalize_input: bool = False
    projection_norm: bool = True
    final_l2: bool = False
    biases: str = "cluster_biases"
    first_norm: str = "bn1."
    gating: tuple[str, ...] = tuple(CONTEXT_GATING + name for name in ("gating_weights", "gating_biases", "bn1."))
    statistics: tuple[str, ...] = STATISTICS
    norm_epsilon: float | None = None
    epsilon: str = CLAMP

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head of the weights, with BatchNorm, the biases or neither."""
        weights, weights2 = (root + name for name in self.needs)
        num_clusters, feature_size, _ = cluster_sizes(weights, weights2, state, ghosts=False)
        used = {"clusters": weights, "clusters2": weights2}
        if self.offset:
            added = self._added(state, weights, num_clusters, root + self.first_norm, root + self.biases)
            used |= {"assignment_bias": added[BIAS]} if BIAS in added else added
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=self.offset and "assignment_bias" not in used,
            assignment_bias="assignment_bias" in used,
            normalize_input=self.normalize_input,
            epsilon=self.epsilon,
        )
        head = Head(
            spec=spec,
            tensors={name: state[key] for name, key in used.items()} | self._epsilons("", used),
            ignored=self.others(state, root, used.values()),
        )
        prefixes = (root + HIDDEN_WEIGHTS, root + SECOND_NORM, *(root + name for name in self.gating))
        following = any(name.startswith(prefixes) for name in state)
        return self._followed(state, root, head) if following else head

    def _followed(self, state: Mapping[str, Tensor], root: str, head: Head) -> Head:
        """Return the head with its projection: `hidden1_weights`, the BatchNorm after it, and context gating."""
        hidden = root + HIDDEN_WEIGHTS
        gate, gate_bias, gate_norm = (root + name for name in self.gating)
        weight = self.matrix(state, hidden, head.spec.aggregate_size, by_column=True)
        size, gating = len(weight), None
        used, transposed = {"projection.weight": hidden}, {"projection.weight": weight}
        if self.projection_norm:
            norm = self._norm(state, hidden, size, root + SECOND_NORM)
            used |= {f"projection.{name}": key for name, key in norm.items()}
        if any(name.startswith((gate, gate_bias, gate_norm)) for name in state):
            transposed["gating.weight"] = self.matrix(state, gate, size, by_column=True)
            added = self._added(state, gate, size, gate_norm, gate_bias)
            if len(transposed["gating.weight"]) != size:
                raise InputError(f"{gate} has shape {tuple(state[gate].shape)}, expected ({size}, {size})")
            gating = BIAS if BIAS in added else BATCH_NORM
            used |= {"gating.weight": gate} | {f"gating.{name}": key for name, key in added.items()}
        projection = Projection(
            size=size,
            bias=False,
            batch_norm=self.projection_norm,
            l2=self.final_l2 and gating is None,
            gating=gating,
            final_l2=self.final_l2 and gating is not None,
        )
        tensors = {name: state[key] for name, key in used.items()} | transposed | self._epsilons("gating.", used)
        return head.followed_by(projection, tensors, used.values())

    def _added(self, state: Mapping[str, Tensor], weights: str, length: int, norm: str, bias: str) -> dict[str, str]:
        """Return the names of the BatchNorm after a product, or of the bias added to it, by the reference's names.

        Raises: InputError if there are both or neither.
        """
        normalized = any(name.startswith(norm) for name in state)
        if normalized is (bias in state):
            raise InputError(f"holds {'both' if normalized else 'neither'} {norm}* and {bias}")
        if normalized:
            return self._norm(state, weights, length, norm)
        self.vector(state, bias, length, weights)
        return {BIAS: bias}

    def _norm(self, state: Mapping[str, Tensor], weights: str, length: int, norm: str) -> dict[str, str]:
        for name in self.statistics:
            self.vector(state, norm + name, length, weights)
        names = dict(zip(STATISTICS, self.statistics, strict=True))
        if norm + BATCH_NORM_COUNTER in state:
            names[BATCH_NORM_COUNTER] = BATCH_NORM_COUNTER
        return {f"batch_norm.{name}": norm + own for name, own in names.items()}

    def _epsilons(self, layer: str, used: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the epsilon of a layer's BatchNorm by the reference's name, nothing if it is torch's."""
        if self.norm_epsilon is None or f"{layer}batch_norm.weight" not in used:
            return {}
        return {f"{layer}batch_norm.eps": torch.tensor(self.norm_epsilon, dtype=torch.float64)}


LOUPE = Loupe(
    name="loupe",
    lacks=("bn2.weight", "context_gating.gating_weights"),
    beside=("cluster_bn.", "gating_weights"),
    projection_norm=False,
    first_norm="cluster_bn.",
    gating=("gating_weights", "gating_biases", "gating_bn."),
    statistics=SLIM_STATISTICS,
    norm_epsilon=SLIM_EPSILON,
    epsilon=RSQRT,
    preprocessing="local descriptors (batch, num_features, D): a frame's features each, not normalised",
)
POINTNETVLAD = Loupe(
    name="pointnetvlad",
    roots=("net_vlad.", ""),
    beside=("point_net.",),
    preprocessing="local descriptors (batch, num_features, D): one of PointNet for each point, not normalised",
)
OVERLAPTRANSFORMER = Loupe(
    name="overlaptransformer",
    roots=("net_vlad.", ""),
    beside=("transformer_encoder.",),
    unused=("linear", "bn", f"net_vlad.{SECOND_NORM}"),
    upstream=("transformer_encoder.", "conv"),
    normalize_input=True,
    projection_norm=False,
    final_l2=True,
    preprocessing="local descriptors (batch, num_features, D): a column of the range image each, of convLast2 after "
    f"its ReLU; {NORMALIZES}",
)
CVTNET = replace(
    OVERLAPTRANSFORMER,
    name="cvtnet",
    roots=("net_vlad.",),
    present=("featureExtracter_RI.conv1.weight",),
    beside=("featureExtracter_RI.",),
    unused=(f"net_vlad.{SECOND_NORM}", f"net_vlad_ri.{SECOND_NORM}", f"net_vlad_bev.{SECOND_NORM}"),
    upstream=("featureExtracter_", "attn", "ff", "norm_", "conv"),
    preprocessing="local descriptors (batch, num_features, D): both views after cross attention, each beside what it "
    f"was before; {NORMALIZES}",
)
CVTNET_VIEW = replace(
    CVTNET,
    name="cvtnet-view",
    roots=("net_vlad_ri.", "net_vlad_bev."),
    normalize_input=False,
    preprocessing="local descriptors (batch, num_features, D): one view after norm_1, not normalised again; CVTNet's "
    "own code gives both views to net_vlad_ri",
)
OVERLAPNETVLAD = Loupe(
    name="overlapnetvlad",
    roots=("vlad.", ""),
    beside=("conv.0.",),
    unused=(SECOND_NORM, f"vlad.{SECOND_NORM}"),
    projection_norm=False,
    preprocessing="local descriptors (batch, num_features, D): every position of the bird's-eye feature map after "
    "conv.*, not normalised",
)
SOCCERNET_TEMPORALLY_AWARE = Loupe(
    name="soccernet-temporally-aware",
    needs=("clusters", "clusters2"),
    offset=False,
    roots=("pool_layer.", "pool_layer_before.", "pool_layer_after.", ""),
    unused=("fc.",),
    normalize_input=True,
    preprocessing=f"{SOCCERNET_FRAMES}; {NORMALIZES}",
)
