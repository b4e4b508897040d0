"""The inputs of a parity check: ordinary ones, and those where NetVLAD implementations go wrong.

Every case is made from one seed. The constructed ones solve for features with chosen assignment logits, using the
oracle's own affine map, so that they hit the same regime with any trained weights. The claim of a case is checked on
the features as the runner gets them: FP32, FP16 or the range of an artifact may be too narrow for it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError
from netvlad_deploy.oracle import equations
from netvlad_deploy.oracle.equations import ReferenceParameters
from netvlad_deploy.runner import Runner, check_finite
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.layer import FEATURES, MASK
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.support.arrays import Array, Arrays, Float32, unit_rows

DEFAULT_SHAPES = Profile(batch=AxisRange(min=1, opt=2, max=16), num_features=AxisRange(min=1, opt=300, max=1024))
"""Shapes to try where no optimization profile limits them."""

SCALES = (1e-4, 1.0, 100.0, 1e4)  # of L2-normalised features
GHOST_MARGINS = (30.0, 60.0, 100.0)  # of the logits of the ghosts over all others
EMPTY_MARGIN = 200.0  # of the logit of cluster 0 over all others
HALF_MAX = float(np.finfo(np.float16).max)
"""Largest feature in a case of an FP16 graph, even if the graph takes larger ones in FP32."""

NEAR = 0.5, 0.05
"""Distance of features from the centroid they are near, over its norm, and the error that rounding may add to it."""

KEPT_MARGIN = 0.5
"""Share of a constructed margin that must be left after rounding."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input: features (B,N,D) float32 and optionally a mask (B,N).

    `claim` gives the reason for which features lack the property that the name states, empty if they have it.
    """

    name: str
    features: Float32
    mask: npt.NDArray[np.bool_] | None = None
    claim: Callable[[Float32], str] | None = None

    def rounded(self, dtype: npt.DTypeLike) -> "Case":
        """Return the case with features that `dtype` can say, so that a runner of any dtype gets the same numbers."""
        return replace(self, features=narrowed(narrowed(self.features, dtype), np.float32))

    def doubt(self, limits: FeatureRange | None) -> str:
        """Return the reason for which the case cannot be itself within the range of an artifact, empty if it can."""
        try:
            check_finite(self.features, limits=limits)
        except InputError as error:
            return f"no such features within FP32 and the range of this artifact: {error}"
        return self.claim(self.features) if self.claim else ""

    def feeds(self, runner: Runner, *, masked: bool) -> Arrays:
        """Return the feeds of a runner; an unpadded case gets a mask of all valid rows if one is wanted."""
        features = self.features.astype(runner.dtype)
        if not masked:
            return {FEATURES: features}
        mask = np.ones(self.features.shape[:2], dtype=np.bool_) if self.mask is None else self.mask
        return {FEATURES: features, MASK: mask}


def profile_cases(parameters: ReferenceParameters, runner: Runner, *, masked: bool = False) -> Iterator[Case]:
    """Yield the cases of `validate` for a runner: in each of its optimization profiles, where it has several."""
    largest = min(runner.largest_feature, HALF_MAX) if runner.half and runner.largest_feature else None
    profiles = runner.feature_profiles or (DEFAULT_SHAPES,)
    for profile in profiles:
        for case in default_cases(parameters, shapes=profile, masked=masked, largest=largest):
            yield case if len(profiles) == 1 else replace(case, name=f"{case.name} in {profile.text}")


def rounded_cases(cases: Iterable[Case], *runners: Runner) -> Iterator[tuple[Case, str]]:
    """Yield each case with features that all the runners can take, and why it breaks its claim for one of them.

    Features are rounded to FP16 if one of the runners computes in it, so that all get the same numbers.
    """
    half = any(runner.half for runner in runners)
    for given in cases:
        case = given.rounded(np.float16) if half else given
        yield case, next(filter(None, (case.doubt(runner.range) for runner in runners)), "")


def default_cases(
    parameters: ReferenceParameters,
    *,
    shapes: Profile = DEFAULT_SHAPES,
    masked: bool = False,
    largest: float | None = None,
) -> Iterator[Case]:
    """Yield the cases of `validate`, one at a time, within the shapes of an optimization profile.

    With `largest`, one case holds nothing but this value and its negative: where it would overflow if anything did.
    """
    batch, length = shapes.batch, shapes.num_features
    width, ghosts = parameters.spec.feature_size, slice(parameters.spec.num_clusters, None)
    random = np.random.default_rng(0)

    def gaussian(items: int, rows: int) -> Float32:
        return random.standard_normal((items, rows, width), dtype=np.float32)

    usual = (batch.opt, length.opt)
    yield Case(name="typical", features=gaussian(*usual))
    # In an image of two rows a slightly wrong logit moves the descriptor by more than the error of FP32: this case sees
    # a wrong epsilon, which an image of 300 rows averages away.
    few = unit_rows(gaussian(batch.max, max(length.min, min(2, length.max))))
    yield Case(name="few features", features=few * np.geomspace(1, 30, len(few), dtype=np.float32)[:, None, None])
    dead_regions = unit_rows(gaussian(*usual))
    dead_regions[:, ::2] = 0
    yield Case(name="zero rows", features=dead_regions)
    yield Case(name=f"num_features {length.min}", features=gaussian(batch.opt, length.min))
    yield Case(name=f"num_features {length.max}", features=gaussian(batch.min, length.max))
    yield Case(name=f"batch {batch.min}", features=unit_rows(gaussian(batch.min, length.opt)))
    yield Case(name=f"batch {batch.max}", features=unit_rows(gaussian(batch.max, length.opt)))
    for scale in SCALES:
        name = "L2-normalised" + ("" if scale == 1 else f" x {scale:g}")
        yield Case(name=name, features=unit_rows(gaussian(*usual)) * np.float32(scale))
    yield near_centroids(parameters, *usual, random)
    if largest is not None:
        features = np.where(gaussian(*usual) > 0, np.float32(largest), -np.float32(largest))
        yield Case(name=f"largest values, {largest:g}", features=features)
    features = won_by(parameters, slice(1), EMPTY_MARGIN, *usual, random)
    yield _won_case("empty clusters", parameters, features, slice(1), EMPTY_MARGIN)
    if parameters.spec.num_ghost_clusters:
        for margin in GHOST_MARGINS:
            features = won_by(parameters, ghosts, margin, *usual, random)
            yield _won_case(f"ghosts win by {margin:g}", parameters, features, ghosts, margin)
    if masked:
        features = unit_rows(gaussian(max(batch.opt, min(2, batch.max)), length.opt))
        lengths = random.integers(length.min, length.opt + 1, size=len(features))
        lengths[-1] = 0
        yield Case(name="padded", features=features, mask=np.arange(length.opt) < lengths[:, None])


def _won_case(name: str, parameters: ReferenceParameters, features: Float32, winners: slice, margin: float) -> Case:
    """Return a case of `won_by`, named with the margin that was reached where D is too small for the wanted one."""
    if not np.isfinite(features).all():
        return Case(name=name, features=features)
    reached = _margin(parameters, features, winners)
    if not reached > 0.9 * margin:
        name = f"{name} (reached {reached:.1f})"

    def claim(rounded: Float32) -> str:
        left = _margin(parameters, rounded, winners)
        return "" if left >= min(KEPT_MARGIN * reached, reached) else f"rounding leaves a margin of {left:.2g}"

    return Case(name=name, features=features, claim=claim)


def _margin(parameters: ReferenceParameters, features: Float32, winners: slice) -> float:
    """Return the least margin of the winners' logits over all others, infinity where there are no others."""
    logits = equations.assignment_logits(parameters, features)
    won = np.zeros(logits.shape[-1], dtype=np.bool_)
    won[winners] = True
    if won.all():
        return np.inf
    return float((logits[..., won].min(axis=-1) - logits[..., ~won].max(axis=-1)).min())


def largest_norm(features: Array) -> float:
    """Return the largest norm of a local descriptor among features (B,N,D)."""
    return float(np.linalg.norm(features.astype(np.float64), axis=-1).max())


def narrowed(values: Array, dtype: npt.DTypeLike) -> Array:
    """Return values in a narrower dtype, infinite where it ends."""
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def near_centroids(parameters: ReferenceParameters, items: int, rows: int, random: np.random.Generator) -> Case:
    """Return features close to a quarter of the centroids: the residual is half of the centroid's norm."""
    centroids = parameters.centroids
    chosen = centroids[random.integers(0, max(1, len(centroids) // 4), size=(items, rows))]
    noise = unit_rows(random.standard_normal(chosen.shape))
    norms = np.linalg.norm(chosen, axis=-1, keepdims=True)
    features: Float32 = narrowed(chosen + NEAR[0] * noise * norms, np.float32)

    def claim(rounded: Float32) -> str:
        apart = np.linalg.norm(equations.local_descriptors(parameters, rounded) - chosen, axis=-1)
        share = apart / np.maximum(norms[..., 0], np.finfo(np.float64).tiny)
        if parameters.normalize_input:  # only the direction can be chosen
            return "" if share.max() < 1 - NEAR[1] else "local descriptors of length 1 are near none of the centroids"
        off = np.abs(share - NEAR[0])[norms[..., 0] > 0].max(initial=0.0)
        return "" if off < NEAR[1] else "rounding takes the features away from the centroids"

    return Case(name="near centroids", features=features, claim=claim)


def won_by(
    parameters: ReferenceParameters, winners: slice, margin: float, items: int, rows: int, random: np.random.Generator
) -> Float32:
    """Return features (items, rows, D) whose logits in the columns `winners` exceed all others by `margin`.

    This is exact, but for noise of a tenth of a logit, where D >= K+G and the columns are independent.
    """
    weight, bias = equations.assignment_projection(parameters)
    centred = weight - weight.mean(axis=1, keepdims=True)
    target = np.zeros(weight.shape[1])
    target[winners] = margin
    wanted = target - bias
    inverse = np.linalg.pinv(centred)  # (K+G, D)
    solution = (wanted - wanted.mean()) @ inverse
    noise = random.standard_normal((items, rows, len(target)))
    features: Float32 = narrowed(solution + 0.1 * noise @ inverse, np.float32)
    return features
