"""What all runners of an ONNX artifact share, whichever library computes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES, LOCAL_DESCRIPTORS, AnyProfile, ImageProfile
from netvlad_deploy.support.arrays import Arrays

ANY_IMAGES = ImageProfile.parse("1x1x1,1x480x640,64x4096x4096")
"""Shapes that a graph runs on without a profile, as far as none of them is fixed."""


def fixed_shapes(artifact: OnnxArtifact) -> tuple[AnyProfile, ...]:
    """Return the shapes that a graph with fixed axes takes, none for a graph that takes any."""
    fixed = artifact.spec.fixed_lengths
    widest = artifact.usual_profile if artifact.images is None else ANY_IMAGES
    return (widest.with_fixed(fixed),) if fixed else ()


class OnnxRunner(Runner):
    """Run an ONNX artifact.

    Args:
        profiles: the shapes that are taken, none for all that the graph takes.
        precision: the precision in effect, by default the artifact's.
        widened: the library computes FP16 in FP32, so that its results are not those of FP16 elsewhere.
    """

    def __init__(
        self,
        artifact: OnnxArtifact,
        *,
        profiles: tuple[AnyProfile, ...] | None = None,
        precision: str | None = None,
        widened: bool = False,
    ) -> None:
        super().__init__(
            artifact.path.name,
            artifact.spec,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            dtype=np.dtype(artifact.dtypes[artifact.inputs[0]]),
            profiles=fixed_shapes(artifact) if profiles is None else profiles,
            precision=precision or artifact.precision,
            range=artifact.range,
            tensors=artifact.tensors,
        )
        self._artifact, self._widened = artifact, widened
        self._fetched = artifact.outputs

    @property
    def conditions(self) -> str:
        """Return in words what an FP16 graph is computed in, where it is not FP16."""
        return "FP16 computed in FP32" if self.half and self._widened else ""

    @property
    def tappable(self) -> tuple[str, ...]:
        """Return the names that the stages inside have in a graph that shows them."""
        return (LOCAL_DESCRIPTORS, *self.spec.stages)

    def _fetch(self, names: Iterable[str]) -> None:
        """Have a run give these tensors of the graph."""
        self._fetched = tuple(names)
        self.outputs = tuple(self.named(dict.fromkeys(self._fetched)))

    def check_feeds(self, feeds: Mapping[str, Any]) -> Arrays:
        """Return the feeds after checking them.

        Raises: InputError as the base class, or for images of another size than the only one that the graph takes.
        """
        checked = super().check_feeds(feeds)
        if self._artifact.images is not None and IMAGES in feeds:
            height, width = feeds[IMAGES].shape[1:3]
            self._artifact.images.check_taken((height, width))
        return checked
