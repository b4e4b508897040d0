"""Relja's NetVLAD on VGG16 as TensorFlow keeps it: checkpoints of netvlad_tf_open, and the Keras layers made from it.

Centres are negated, the residual is x + C, and norms after the layer are MatConvNet's: 1e-12 is added to their square.
Before the layer and after the PCA they are TensorFlow's, at least 1e-6. Here they are MatConvNet's everywhere: a local
descriptor of norm n comes out shorter by 5e-13 / n^2 of its length, which is below FP32's rounding from n = 0.003 on.
VGG16's are far longer.

Source: uzh-rpg/netvlad_tf_open, python/netvlad_tf/nets.py, layers.py, net_from_mat.py and image_descriptor.py, whose
`cv2.imread` turns images upright, and resizes none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import BackboneKeys, Dialect
from netvlad_deploy.models.dialects.convolution import LAST_CONVOLUTION_OF
from netvlad_deploy.models.head import BackboneState, Head
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.layer import ADD, CLUSTERS_LAST, NetVLADSpec, Projection

SCOPE = "vgg16_netvlad_pca."
VGG16_CONVOLUTIONS = {
    "1_1": 0, "1_2": 2, "2_1": 5, "2_2": 7, "3_1": 10, "3_2": 12, "3_3": 14, "4_1": 17, "4_2": 19, "4_3": 21,
    "5_1": 24, "5_2": 26, "5_3": 28,
}  # fmt: skip
"""By the numbers of block and convolution, the layer of the backbone `vgg16`."""

CONVOLUTION_NAME = re.compile(r"(?P<numbers>\d_\d)\.(?P<part>kernel|bias)")
AS_OPENCV_READS = ImageInput(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), orient=True)
"""MatConvNet's VGG16 takes RGB values from 0 to 255 less a mean, which a file brings; images as large as they are."""


class TensorFlowVgg16(BackboneKeys):
    """VGG16 under TensorFlow's names `conv1_1` to `conv5_3`, each kernel (H,W,I,O)."""

    def find(self, state: Mapping[str, Tensor]) -> BackboneState | None:
        """Return the backbone in torch's names and layout (O,I,H,W), None if there is none."""
        found = super().find(state)
        if found is None:
            return None
        tensors = {}
        for name, tensor in found.tensors.items():
            match = CONVOLUTION_NAME.fullmatch(name)
            if match is None or match["numbers"] not in VGG16_CONVOLUTIONS:
                tensors[name] = tensor
            else:
                part = "weight" if match["part"] == "kernel" else "bias"
                tensors[f"{VGG16_CONVOLUTIONS[match['numbers']]}.{part}"] = in_torchs_layout(tensor)
        return replace(found, tensors=tensors)


def in_torchs_layout(kernel: Tensor) -> Tensor:
    """Return a convolution's kernel (H,W,I,O) as (O,I,H,W), and every other tensor as it is."""
    return kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel


@dataclass(frozen=True, kw_only=True)
class AddedCentres(Dialect):
    """A layer that adds its centres, (1,1,1,D,K), to local descriptors; its logits are of a 1x1 convolution (1,1,D,K).

    Args:
        needs: the names of the centres and of the kernel, in this order.
        normalize_input: local descriptors are L2-normalised before the layer.
        flatten: index of value d of cluster k in a descriptor.
        epsilon: how a division by a norm is kept finite, see `NetVLADSpec`.
    """

    normalize_input: bool = True
    flatten: str = CLUSTERS_LAST
    epsilon: str = ADD

    def layer(self, state: Mapping[str, Tensor], centres: str, kernel: str, bias: Tensor | None = None) -> Head:
        """Return the head of the tensors of these names, without what follows it.

        Raises: InputError if their shapes do not fit.
        """
        first, second = tuple(state[centres].shape), tuple(state[kernel].shape)
        if len(first) != 5 or first[:3] != (1, 1, 1) or second != first[1:]:
            raise InputError(f"{centres} {first} and {kernel} {second} are not (1, 1, 1, D, K) and (1, 1, D, K)")
        feature_size, num_clusters = first[3:]
        tensors = {"clusters": state[kernel][0, 0], "clusters2": -state[centres][0, 0]}
        if bias is not None:
            tensors["assignment_bias"] = bias
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=bias is not None,
            normalize_input=self.normalize_input,
            flatten=self.flatten,
            epsilon=self.epsilon,
        )
        return Head(spec=spec, tensors=tensors)

    def followed(self, head: Head, state: Mapping[str, Tensor], kernel: str, bias: str) -> Head:
        """Return the head with a projection, (1,1,D*K,P) or (D*K,P) and a bias (P,), whose result is L2-normalised.

        Raises: InputError if one of both is missing or of another shape.
        """
        if kernel not in state:
            raise InputError(f"lacks {kernel} of {self.name}")
        inputs, shape = head.spec.aggregate_size, tuple(state[kernel].shape)
        if len(shape) not in (2, 4) or shape[-2] != inputs or shape[:-2] not in ((), (1, 1)):
            raise InputError(f"{kernel} has shape {shape}, expected (1, 1, {inputs}, P) for {inputs} values")
        weight = state[kernel].reshape(shape[-2:]).T
        tensors = {"projection.weight": weight, "projection.bias": self.vector(state, bias, len(weight), kernel)}
        return head.followed_by(Projection(size=len(weight)), tensors, (kernel, bias))


class NetVladTfOpen(AddedCentres):
    """The layer of a whole checkpoint, with its PCA or without."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the signs of the centres turned."""
        centres, kernel = (root + name for name in self.needs)
        others = self.others(state, f"{root}assignment.", (centres, kernel))
        head = replace(self.layer(state, centres, kernel), ignored=others)
        pca = (f"{root}WPCA.kernel", f"{root}WPCA.bias")
        return self.followed(head, state, *pca) if any(name in state for name in pca) else head


NETVLAD_TF_OPEN = NetVladTfOpen(
    name="netvlad-tf-open",
    needs=("cluster_centers", "assignment.kernel"),
    roots=(SCOPE, ""),
    unused=(f"{SCOPE}average_rgb",),  # by the head: it is subtracted from the images of the backbone
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=TensorFlowVgg16(
        roots=(f"{SCOPE}conv",), candidates=("vgg16",), images=AS_OPENCV_READS, mean=f"{SCOPE}average_rgb"
    ),
)
