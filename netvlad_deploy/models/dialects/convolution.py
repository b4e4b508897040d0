"""The family of lyakaap's layer: a 1x1 convolution gives the logits, local descriptors are L2-normalised first."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Dialect, Head
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, NetVLADSpec
from netvlad_deploy.spec.projection import Projection


@dataclass(frozen=True, kw_only=True)
class Convolution(Dialect):
    """A head of a convolution (K,D,1,1) with or without a bias (K,), and centroids.

    Args:
        needs: the convolution's weight and the centroids, in this order, and what else must be there.
        kernel_axes: how many axes of length 1 the convolution's weight may have.
        centroids_by_column: centroids are (D,K), not (K,D).
        flatten: index of value d of cluster k in a descriptor.
        projection: start of the names of a linear layer (P,D*K) with a bias (P,) after the head; `{root}` in it is the
            head's root.
        projection_l2: what comes out of it is L2-normalised.
    """

    needs: tuple[str, ...] = ("conv.weight", "centroids")
    kernel_axes: tuple[int, ...] = (2,)
    centroids_by_column: bool = False
    flatten: str = CLUSTERS_FIRST
    projection: str | None = None
    projection_l2: bool = True

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Bring convolution and centroids to (D,K) and (1,D,K)."""
        weight, centroids = (root + name for name in self.needs[:2])
        bias = weight.removesuffix("weight") + "bias"
        num_clusters, feature_size = self._sizes(state, weight, centroids)
        by_column = state[centroids] if self.centroids_by_column else state[centroids].T
        tensors = {"clusters": state[weight].reshape(num_clusters, feature_size).T, "clusters2": by_column[None]}
        if with_bias := bias in state and "conv.bias" not in self.lacks:
            tensors["assignment_bias"] = self.vector(state, bias, num_clusters, weight)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=with_bias,
            normalize_input=True,
            flatten=self.flatten,
        )
        others = self.others(state, root, (weight, centroids, *([bias] if with_bias else [])))
        head = Head(spec=spec, tensors=tensors, ignored=others, preprocessing=self.preprocessing)
        return self._followed(state, root, head)

    def _followed(self, state: Mapping[str, Tensor], root: str, head: Head) -> Head:
        """Return the head with its projection, if the checkpoint has one."""
        start = None if self.projection is None else self.projection.format(root=root)
        if start is None or not any(name.startswith(start) for name in state):
            return head
        used = {"projection.weight": f"{start}weight", "projection.bias": f"{start}bias"}
        weight = self.matrix(state, used["projection.weight"], head.spec.aggregate_size)
        bias = self.vector(state, used["projection.bias"], len(weight), used["projection.weight"])
        projection = Projection(size=len(weight), l2=self.projection_l2)
        return head.followed_by(projection, {"projection.weight": weight, "projection.bias": bias}, used.values())

    def _sizes(self, state: Mapping[str, Tensor], weight: str, centroids: str) -> tuple[int, int]:
        """Return K and D."""
        first, second = tuple(state[weight].shape), tuple(state[centroids].shape)
        wanted = first[:2][::-1] if self.centroids_by_column else first[:2]
        if len(first) - 2 not in self.kernel_axes or any(side != 1 for side in first[2:]) or second != wanted:
            kernels = " or ".join(f"(K, D{', 1' * axes})" for axes in self.kernel_axes)
            layout = "(D, K)" if self.centroids_by_column else "(K, D)"
            raise InputError(f"{weight} {first} and {centroids} {second} are not {kernels} and {layout}")
        return first[0], first[1]
