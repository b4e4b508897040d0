"""VGG-Speaker-Recognition: the names of its Keras model, whose pooling is GhostVLAD with two inputs.

The number of ghost clusters shows in the width that `fc6` takes. Which network stands before it, and that `fc6` is
followed by ReLU and, in evaluation, by an L2 normalisation, is the project's own code.

Source: WeidiXie/VGG-Speaker-Recognition, src/model.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.ghost_vlad import ghost_vlad_spec
from netvlad_deploy.models.dialects.base import Dialect
from netvlad_deploy.models.head import Head


@dataclass(frozen=True, kw_only=True)
class Speaker(Dialect):
    """The dialect of centres (K+G,D), a convolution (h,1,C,K+G) of the logits, and a dense layer (K*D,P)."""

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head; its assignment features have h*C values, value c of row i at i*C + c."""
        names = tuple(root + name for name in self.needs)
        centres, kernel = state[names[0]], state[names[1]]
        if centres.ndim != 2 or kernel.ndim != 4 or kernel.shape[1] != 1 or kernel.shape[3] != len(centres):
            shapes = f"{names[0]} {tuple(centres.shape)} and {names[1]} {tuple(kernel.shape)}"
            raise InputError(f"{shapes} are not (K+G, D) and (h, 1, C, K+G)")
        columns, feature_size = centres.shape
        last = state[names[3]]
        num_clusters = last.shape[0] // feature_size if last.ndim == 2 else 0
        if not 0 < num_clusters <= columns or last.shape[0] % feature_size:
            raise InputError(f"{names[3]} has shape {tuple(last.shape)}, expected (K*{feature_size}, P)")
        spec = ghost_vlad_spec(
            num_clusters=num_clusters,
            num_ghost_clusters=columns - num_clusters,
            feature_size=feature_size,
            assignment_feature_size=kernel.shape[0] * kernel.shape[2],
            size=last.shape[1],
        )
        tensors = {
            "centres": centres[:num_clusters],
            "assignment.weight": kernel.reshape(-1, columns).T,
            "assignment.bias": self.vector(state, names[2], columns, names[1]),
            "projection.weight": last.T,
            "projection.bias": self.vector(state, names[4], last.shape[1], names[3]),
        }
        return Head(spec=spec, tensors=tensors, ignored=tuple(sorted(set(state) - set(names))))


SPEAKER = Speaker(
    name="vgg-speaker-recognition",
    needs=(
        *("gvlad_pool.centers", "gvlad_center_assignment.kernel", "gvlad_center_assignment.bias"),
        *("fc6.kernel", "fc6.bias"),
    ),
    unused=("prediction.",),
    preprocessing="features (batch, num_features, D): x_fc after its ReLU; and assignment_features (batch, "
    "num_features, h*C): the feature map that x_fc takes, for each time the h frequencies of its kernel, value c of "
    "frequency i at i*C + c",
)
