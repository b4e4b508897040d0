"""Relja's own NetVLAD, trained in MATLAB: `vlad` and `vladv2`, with or without PCA.

The files store the centres negated, and MatConvNet divides by sqrt(|x|^2 + 1e-12).

Source: Relja/netvlad, layerVLAD.m, layerVLADv2.m and addPCA.m.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import Dialect
from netvlad_deploy.models.dialects.convolution import LAST_CONVOLUTION_OF, MATCONVNET
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.matlab import (
    AVERAGE_IMAGE,
    PCA_BIAS,
    PCA_WEIGHT,
    VLAD_ASSIGNMENT,
    VLAD_ASSIGNMENT_BIAS,
    VLAD_NEGATED_CENTRES,
)
from netvlad_deploy.spec.layer import ADD, NetVLADSpec, Projection


class Relja(Dialect):
    """A layer with descriptors d*K + k, which L2-normalises local descriptors and the result of a PCA."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the signs of the centres turned and the matrix of the PCA transposed."""
        first, second = tuple(state[VLAD_ASSIGNMENT].shape), tuple(state[VLAD_NEGATED_CENTRES].shape)
        if len(first) != 2 or first != second:
            raise InputError(f"{VLAD_ASSIGNMENT} {first} and {VLAD_NEGATED_CENTRES} {second} are not both (D, K)")
        feature_size, num_clusters = first
        tensors = {"clusters": state[VLAD_ASSIGNMENT], "clusters2": -state[VLAD_NEGATED_CENTRES][None]}
        if VLAD_ASSIGNMENT_BIAS in state:
            tensors["assignment_bias"] = self.vector(state, VLAD_ASSIGNMENT_BIAS, num_clusters, VLAD_ASSIGNMENT)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=VLAD_ASSIGNMENT_BIAS in state,
            normalize_input=True,
            epsilon=ADD,
        )
        used = (VLAD_ASSIGNMENT, VLAD_NEGATED_CENTRES, VLAD_ASSIGNMENT_BIAS, PCA_WEIGHT, PCA_BIAS)
        others = self.others(state, f"{root}vlad.", used)
        head = Head(spec=spec, tensors=tensors, ignored=others)
        if PCA_WEIGHT not in state and PCA_BIAS not in state:
            return head
        weight = self.matrix(state, PCA_WEIGHT, spec.aggregate_size, by_column=True)
        following = {
            "projection.weight": weight,
            "projection.bias": self.vector(state, PCA_BIAS, len(weight), PCA_WEIGHT),
        }
        return head.followed_by(Projection(size=len(weight)), following, (PCA_WEIGHT, PCA_BIAS))


RELJA = Relja(
    name="relja",
    keys="a .mat file: net.layers with vlad:core of (D,K) and negated centres (D,K), a bias (K,) with vladv2; and WPCA "
    "(D*K,P), (P,) or none",
    needs=(VLAD_ASSIGNMENT, VLAD_NEGATED_CENTRES),
    unused=(AVERAGE_IMAGE,),  # by the head: it is subtracted from the images of the backbone
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=replace(MATCONVNET, mean=AVERAGE_IMAGE),
)
