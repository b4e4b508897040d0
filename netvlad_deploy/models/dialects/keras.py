"""NetVLAD layers of Keras: those made from netvlad_tf_open's, and LOUPE's.

A file of Keras shows the names and shapes of a layer's weights, but neither its class nor the functions beside it: so
the conventions of the project whose names and shapes these are get said as assumed.

Source: crlz182/Netvlad-Keras, netvladlayer.py, netvlad_keras.py and example.py; NHGJem/tensorflow2-NetVLAD,
netvlad_layer.py and main.py; mpkuse/cerebro, scripts/keras_helpers.py; shamangary/LOUPE_Keras, loupe_keras.py.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import BackboneKeys, Dialect, Place, in_words
from netvlad_deploy.models.dialects.convolution import LAST_CONVOLUTION_OF
from netvlad_deploy.models.dialects.netvlad_tf_open import (
    AS_OPENCV_READS,
    VGG16_CONVOLUTIONS,
    AddedCentres,
    in_torchs_layout,
)
from netvlad_deploy.models.head import BackboneState, Head
from netvlad_deploy.models.tensor_names import names
from netvlad_deploy.spec.layer import BIAS, CLUSTERS_FIRST, RSQRT, NetVLADSpec, Projection

CONVOLUTION = re.compile(r"conv2d(_\d+)?\.(kernel|bias)")
"""Name of a tensor of a convolution that Keras has named itself."""

WITHIN = re.compile(r"(conv2d(_\d+)?\.)?(kernel|bias)")
"""Name of the kernel or bias of the logits in a layer, which Keras 3 puts behind the name of the convolution."""

CENTRES = "cluster_centers"
AVERAGE_RGB = "average_rgb"


class KerasLayer(Dialect):
    """A dialect whose layer may have any name."""

    def places(self, state: Mapping[str, Tensor]) -> Iterator[Place]:
        """Yield the layers that have a weight of the first name in `needs`, and the others."""
        first, *others = self.needs
        for name in state:
            before, _, own = name.rpartition(".")
            start = f"{before}." if before else ""
            if own == first and all(start + each in state or self.stands_for(state, start, each) for each in others):
                model, _, layer = before.rpartition(".")
                yield Place(dialect=self, before=f"{model}." if model else "", root=f"{layer}." if layer else "")

    def stands_for(self, state: Mapping[str, Tensor], start: str, name: str) -> str:
        """Return the whole name of a weight of a layer that stands behind that of a convolution; empty if none does."""
        found = [each for each in state if each.startswith(start) and WITHIN.fullmatch(each.removeprefix(start))]
        return next((each for each in found if each.endswith(f".{name}")), "")

    def said(self, head: Head, layer: str) -> Head:
        """Return the head with its conventions as assumed."""
        words = f"{self.name}, by the names and shapes of {layer}* alone ({in_words(head.spec)})"
        return replace(head, assumed=words)


class KerasVgg16(BackboneKeys):
    """VGG16 as thirteen convolutions 3x3 that Keras has numbered, in the order of the file."""

    def find(self, state: Mapping[str, Tensor]) -> BackboneState | None:
        """Return the backbone in torch's names and layout; None if there are others than the thirteen and a PCA."""
        layers = [name.removesuffix("kernel") for name in state if CONVOLUTION.fullmatch(name) and "kernel" in name]
        own = [layer for layer in layers if state[f"{layer}kernel"].shape[:2] == (3, 3)]
        inputs = [math.prod(each.shape) for name, each in state.items() if name.endswith(CENTRES)]
        rest = [layer for layer in layers if layer not in own and state[f"{layer}kernel"].shape[-2] not in inputs]
        if rest or len(own) != len(VGG16_CONVOLUTIONS):
            return None
        tensors = {}
        for layer, index in zip(own, VGG16_CONVOLUTIONS.values(), strict=True):
            tensors[f"{index}.weight"] = in_torchs_layout(state[f"{layer}kernel"])
            if f"{layer}bias" in state:
                tensors[f"{index}.bias"] = state[f"{layer}bias"]
        images = self.images
        for mean in [each for name, each in state.items() if name.endswith(f".{AVERAGE_RGB}")]:
            red, green, blue = mean.tolist()
            images = replace(images, mean=(red, green, blue))
        return BackboneState(root="conv2d", tensors=tensors, candidates=self.candidates, images=images)


@dataclass(frozen=True, kw_only=True)
class KerasNetVlad(AddedCentres, KerasLayer):
    """A layer with centres that are added, (1,1,1,D,K), and a kernel (1,1,D,K).

    Args:
        bias_axes: number of axes of the bias on the logits, (K,) or (1,1,K); 0 without one.
        projects: a linear layer of the descriptor may follow, whose result is L2-normalised.
    """

    needs: tuple[str, ...] = (CENTRES, "kernel")
    bias_axes: int = 0
    projects: bool = True

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the signs of the centres turned, and the linear layer that takes its descriptor."""
        centres = root + CENTRES
        kernel, bias = (
            root + name if root + name in state else self.stands_for(state, root, name) for name in ("kernel", "bias")
        )
        shift = state.get(bias)
        if (0 if shift is None else shift.ndim) != self.bias_axes:
            found = "no bias" if shift is None else f"{bias} {tuple(shift.shape)}"
            raise InputError(f"has {found} beside {kernel}, which {self.name} does not have")
        clusters = state[kernel].shape[-1:].numel()
        if shift is not None and shift.numel() != clusters:
            raise InputError(f"{bias} has shape {tuple(shift.shape)}, expected {clusters} values")
        head = self.layer(state, centres, kernel, None if shift is None else shift.reshape(-1))
        others = self.others(state, root or kernel, (centres, kernel, bias))
        return self.said(self._followed(replace(head, ignored=others), state), root)

    def _followed(self, head: Head, state: Mapping[str, Tensor]) -> Head:
        inputs = head.spec.aggregate_size
        found = [
            name.removesuffix("kernel")
            for name in head.ignored
            if name.endswith(".kernel") and state[name].ndim in (2, 4) and state[name].shape[-2] == inputs
        ]
        if not found or not self.projects:
            return head
        if len(found) > 1:
            raise InputError(f"holds {len(found)} layers that take {inputs} values, expected one: {names(found)}")
        return self.followed(head, state, f"{found[0]}kernel", f"{found[0]}bias")


@dataclass(frozen=True, kw_only=True)
class LoupeKeras(KerasLayer):
    """LOUPE's layer in Keras: biases, a projection without a bias, and perhaps a layer of context gating."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with its projection, and with the gating of a layer that takes the descriptor."""
        weights2, weights, hidden = (root + name for name in self.needs)
        biases, shape = f"{root}kernel_B1", tuple(state[weights2].shape)
        if len(shape) != 3 or shape[0] != 1 or tuple(state[weights].shape) != shape[1:]:
            raise InputError(
                f"{weights} {tuple(state[weights].shape)} and {weights2} {shape} are not (D, K), (1, D, K)"
            )
        _, feature_size, num_clusters = shape
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=True,
            epsilon=RSQRT,
        )
        tensors = {
            "clusters": state[weights],
            "clusters2": state[weights2],
            "assignment_bias": self.vector(state, biases, num_clusters, weights),
        }
        projected = self.matrix(state, hidden, spec.aggregate_size, by_column=True)
        following, used = {"projection.weight": projected}, [hidden]
        size = len(projected)
        gates = [
            name.removesuffix("kernel_W1")
            for name in state
            if name.endswith(".kernel_W1") and name != weights and tuple(state[name].shape) == (size, size)
        ]
        if len(gates) > 1:
            raise InputError(f"holds {len(gates)} layers of gating, expected one: {names(gates)}")
        for gate in gates:
            following["gating.weight"] = state[f"{gate}kernel_W1"].T
            following["gating.bias"] = self.vector(state, f"{gate}kernel_B1", size, f"{gate}kernel_W1")
            used += [f"{gate}kernel_W1", f"{gate}kernel_B1"]
        projection = Projection(size=size, bias=False, l2=False, gating=BIAS if gates else None)
        others = self.others(state, root or weights, (weights, weights2, biases, *used))
        head = Head(spec=spec, tensors=tensors, ignored=others).followed_by(projection, following, used)
        return self.said(head, root)


NETVLAD_KERAS = KerasNetVlad(
    name="netvlad-keras",
    unused=("substract_average",),  # by the head: it is subtracted from the images of the backbone
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=KerasVgg16(roots=("conv2d",), candidates=("vgg16",), images=AS_OPENCV_READS),
)
TENSORFLOW2_NETVLAD = KerasNetVlad(
    name="tensorflow2-netvlad",
    bias_axes=1,
    normalize_input=False,
    preprocessing="local descriptors (batch, num_features, D): every position of VGG16's feature map block5_pool, "
    "after its ReLU, not normalised",
)
CEREBRO = KerasNetVlad(
    name="cerebro",
    bias_axes=3,
    projects=False,
    normalize_input=False,
    flatten=CLUSTERS_FIRST,
    epsilon=RSQRT,
    preprocessing="local descriptors (batch, num_features, D): every position of the network's feature map, not "
    "normalised",
)
LOUPE_KERAS = LoupeKeras(
    name="loupe-keras",
    needs=("kernel_W2", "kernel_W1", "kernel_H1"),
    lacks=("kernel_C1",),
    preprocessing="local descriptors (batch, num_features, D): a frame's features each, not normalised",
)
