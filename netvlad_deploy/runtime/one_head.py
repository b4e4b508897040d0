"""One head of a runner of several, as a runner of its own: so that a head is proved and used like any other."""

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.build_options import fitting_profile
from netvlad_deploy.spec.graph_options import HeadsRange
from netvlad_deploy.spec.layer import FEATURES, HeadsSpec, of_head
from netvlad_deploy.support.arrays import Array, Arrays


class OneHead(Runner):
    """Run one head; the others get as few local descriptors as they take, all of one value and of norm 1.

    A head that read what belongs to another would then give a wrong descriptor.

    Args:
        runner: the runner of all heads, which stays open when this one is closed.
        head: the name of the head.
        owns: close the runner too.

    Raises: UsageError if there is no such head.
    """

    def __init__(self, runner: Runner, head: str, *, owns: bool = False) -> None:
        spec = runner.spec
        if not isinstance(spec, HeadsSpec) or head not in spec.heads:
            known = ", ".join(spec.heads) if isinstance(spec, HeadsSpec) else "one without a name"
            raise UsageError(f"{runner.name} has no head {head!r}: it has {known}")
        own, limits = spec.heads[head], runner.range
        self._tensors = {stage: of_head(stage, head) for stage in own.stages if of_head(stage, head) in runner.outputs}
        super().__init__(
            f"head {head} of {runner.name}",
            own,
            inputs=(FEATURES,),
            outputs=tuple(self._tensors),
            dtype=runner.dtype,
            profiles=runner.profiles,
            precision=runner.precision,
            range=limits.heads[head] if isinstance(limits, HeadsRange) else limits,
        )
        self._runner, self._head, self._owns = runner, head, owns
        self.concurrent, self.lanes = runner.concurrent, runner.lanes
        self._others = {name: each.feature_size for name, each in spec.heads.items() if name != head}

    @property
    def hidden(self) -> str:
        """Return in words why `tapped` does not show the stages inside, where it does not."""
        return self._runner.hidden

    def tapped(self, *, instead: bool = False) -> Runner:
        """Return a runner of the same head that also gives the stages inside; itself where they do not show."""
        runner = self._runner.tapped(instead=instead)
        return self if runner is self._runner else OneHead(runner, self._head, owns=True)

    def close(self) -> None:
        """Close the view, and what was opened for it alone."""
        super().close()
        if self._owns:
            self._runner.close()

    def _run(self, feeds: Arrays) -> Arrays:
        features = feeds[FEATURES]
        given = {of_head(FEATURES, name): self._harmless(features, size) for name, size in self._others.items()}
        got = self._runner.run({**given, of_head(FEATURES, self._head): features})
        return {stage: got[tensor] for stage, tensor in self._tensors.items()}

    def _harmless(self, features: Array, feature_size: int) -> Array:
        """Return the features (B,N,D) of another head, in the profile of this one's."""
        batch, num_features, _ = features.shape
        profiles = self.feature_profiles
        least = profiles[fitting_profile(profiles, batch, num_features)].num_features.min if profiles else 1
        return np.full((batch, least, feature_size), feature_size**-0.5, dtype=self.dtype)
