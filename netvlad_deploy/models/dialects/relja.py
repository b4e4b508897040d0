"""Relja's own NetVLAD, trained in MATLAB: `vlad` and `vladv2`, with or without PCA.

Source: Relja/netvlad, layerVLAD.m, layerVLADv2.m and addPCA.m, of which the first two store the centres negated.
MatConvNet divides by sqrt(|x|^2 + 1e-12).
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import BackboneKeys, BackboneState, Dialect, Head
from netvlad_deploy.models.dialects.convolution import MATCONVNET, VGG16_FEATURES
from netvlad_deploy.models.matlab import (
    ASSIGNMENT,
    AVERAGE_IMAGE,
    NEGATED_CENTRES,
    PCA_BIAS,
    PCA_WEIGHT,
    VLAD_BIAS,
    average_image,
)
from netvlad_deploy.spec.layer import ADD, NetVLADSpec, Projection


class MatlabBackbone(BackboneKeys):
    """VGG16, less the mean image that the file itself has."""

    def find(self, state: Mapping[str, Tensor]) -> BackboneState | None:
        """Return the backbone, with the file's own mean where it says one."""
        found, mean = super().find(state), average_image(state)
        if found is None or mean is None:
            return found
        return replace(found, images=replace(found.images, mean=mean))


class Relja(Dialect):
    """Descriptors are d*K + k, local descriptors are L2-normalised first, and PCA's result once more."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Turn the signs of the centres, and the matrix of PCA round."""
        first, second = tuple(state[ASSIGNMENT].shape), tuple(state[NEGATED_CENTRES].shape)
        if len(first) != 2 or first != second:
            raise InputError(f"{ASSIGNMENT} {first} and {NEGATED_CENTRES} {second} are not both (D, K)")
        feature_size, num_clusters = first
        tensors = {"clusters": state[ASSIGNMENT], "clusters2": -state[NEGATED_CENTRES][None]}
        if VLAD_BIAS in state:
            tensors["assignment_bias"] = self.vector(state, VLAD_BIAS, num_clusters, ASSIGNMENT)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=VLAD_BIAS in state,
            normalize_input=True,
            epsilon=ADD,
        )
        used = (ASSIGNMENT, NEGATED_CENTRES, VLAD_BIAS, PCA_WEIGHT, PCA_BIAS)
        others = self.others(state, f"{root}vlad.", used)
        head = Head(spec=spec, tensors=tensors, ignored=others, preprocessing=self.preprocessing)
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
    needs=(ASSIGNMENT, NEGATED_CENTRES),
    unused=(AVERAGE_IMAGE,),  # by the head: it is taken from what the backbone is given
    preprocessing=VGG16_FEATURES.format("VGG16"),
    backbone=MatlabBackbone(**vars(MATCONVNET)),
)
