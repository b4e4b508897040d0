"""The oracle: NetVLAD in float64, equation by equation, in NumPy.

It reads the unfolded parameters that `export` writes beside an ONNX file and applies BatchNorm itself. It
shares no code with the torch module, the fold or the graph, so a fault in one of those cannot validate itself.

    x / max(|x|, 1e-12), if the layer normalises its input  local_descriptors   (B,N,D)
    l = (x W - mean) / sqrt(var + eps) * gamma + beta     assignment_logits   (B,N,K+G)
    a = softmax(l) over K+G, first K columns, times mask   soft_assignment     (B,N,K)
    V_k = sum_n a_nk (x_n - c_k)                           residual_sum        (B,K,D)
    V_k / max(|V_k|, 1e-12), flattened, and again          descriptor          (B,D*K)

Without BatchNorm, l = x W, plus a bias where there is one. A descriptor is flattened d*K + k or k*D + d.

Source: Arandjelovic et al. 2016, equations 3 and 4; ghost clusters: Zhong et al. 2018, "GhostVLAD".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netvlad_deploy.arrays import Array, Arrays, Float64, read_arrays
from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.spec import CLUSTERS_FIRST, CLUSTERS_LAST, NORM_FLOOR, NetVLADSpec

BIAS, NORMALIZE_INPUT, CLUSTERS_FIRST_FLAG = "assignment_bias", "normalize_input", "clusters_first"
"""Names in a reference file beside those of the reference's own state."""

BATCH_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "eps")


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """BatchNorm over the assignment logits: four (K+G,) vectors and epsilon."""

    weight: Float64
    bias: Float64
    running_mean: Float64
    running_var: Float64
    eps: float


@dataclass(frozen=True, kw_only=True)
class ReferenceParameters:
    """Unfolded parameters of a NetVLAD layer: clusters (D,K+G), centroids (K,D), BatchNorm or a bias (K+G,) or neither.

    `normalize_input` and `flatten` are as in `NetVLADSpec`.
    """

    clusters: Float64
    centroids: Float64
    batch_norm: BatchNorm | None
    bias: Float64 | None = None
    normalize_input: bool = False
    flatten: str = CLUSTERS_LAST

    @property
    def spec(self) -> NetVLADSpec:
        """Return the sizes these parameters imply."""
        num_clusters, feature_size = self.centroids.shape
        return NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            num_ghost_clusters=self.clusters.shape[1] - num_clusters,
            batch_norm=self.batch_norm is not None,
            assignment_bias=self.bias is not None,
            normalize_input=self.normalize_input,
            flatten=self.flatten,
        )


def parameters_from_arrays(arrays: Mapping[str, Array]) -> ReferenceParameters:
    """Read the parameters from arrays under the reference's own names: `clusters`, `clusters2`, `batch_norm.*`.

    And where they are, `assignment_bias`, and the conventions `normalize_input` and `clusters_first`, 1 for yes.

    Raises: InputError if an array is missing, has another shape or is not finite.
    """
    wanted = ["clusters", "clusters2"]
    has_batch_norm = any(name.startswith("batch_norm.") for name in arrays)
    if has_batch_norm:
        wanted += [f"batch_norm.{key}" for key in BATCH_NORM_KEYS]
    wanted += [name for name in (BIAS, NORMALIZE_INPUT, CLUSTERS_FIRST_FLAG) if name in arrays]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise InputError(f"reference parameters lack {', '.join(missing)}")
    values = {name: np.asarray(arrays[name], dtype=np.float64) for name in wanted}
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise InputError(f"reference parameter {name} is not finite")
    clusters, clusters2 = values["clusters"], values["clusters2"]
    columns = clusters.shape[-1] if clusters.ndim == 2 else 0
    if (
        clusters.ndim != 2
        or clusters2.ndim != 3
        or clusters.shape[0] != clusters2.shape[1]
        or columns < clusters2.shape[2]
    ):
        raise InputError(f"clusters {clusters.shape} and clusters2 {clusters2.shape} are not (D,K+G) and (1,D,K)")
    batch_norm = None
    if has_batch_norm:
        vectors = {key: values[f"batch_norm.{key}"] for key in BATCH_NORM_KEYS}
        eps = float(vectors.pop("eps"))
        for key, vector in vectors.items():
            if vector.shape != (columns,):
                raise InputError(f"batch_norm.{key} has shape {vector.shape}, expected ({columns},)")
        batch_norm = BatchNorm(**vectors, eps=eps)
    bias = values.get(BIAS)
    if bias is not None and bias.shape != (columns,):
        raise InputError(f"{BIAS} has shape {bias.shape}, expected ({columns},)")
    return ReferenceParameters(
        clusters=clusters,
        centroids=clusters2[0].T.copy(),
        batch_norm=batch_norm,
        bias=bias,
        normalize_input=bool(values.get(NORMALIZE_INPUT, 0)),
        flatten=CLUSTERS_FIRST if values.get(CLUSTERS_FIRST_FLAG, 0) else CLUSTERS_LAST,
    )


def load_reference(path: Path | str) -> ReferenceParameters:
    """Read `NAME.reference.npz`.

    Raises: ArtifactError if the file is missing, is no reference file or holds other parameters.
    """
    try:
        arrays = read_arrays(Path(path))
        return parameters_from_arrays(arrays if isinstance(arrays, dict) else {})
    except InputError as error:
        raise ArtifactError(f"no reference file: {error}: export again") from error


def reference_arrays(arrays: Mapping[str, Array], spec: NetVLADSpec) -> Arrays:
    """Return what a reference file holds, in its order: arrays under the reference's own names, and its conventions."""
    conventions = {NORMALIZE_INPUT: spec.normalize_input, CLUSTERS_FIRST_FLAG: spec.flatten == CLUSTERS_FIRST}
    marks = {name: np.ones(()) for name, holds in conventions.items() if holds}
    return dict(sorted({**arrays, **marks}.items()))


def local_descriptors(parameters: ReferenceParameters, features: Array) -> Float64:
    """Return x (B,N,D) as everything after it sees it: L2-normalised, if the layer does that."""
    values = features.astype(np.float64)
    return l2_normalize(values) if parameters.normalize_input else values


def assignment_logits(parameters: ReferenceParameters, features: Array) -> Float64:
    """Return l (B,N,K+G) of local descriptors (B,N,D), BatchNorm applied with its running statistics."""
    logits: Float64 = local_descriptors(parameters, features) @ parameters.clusters
    if (norm := parameters.batch_norm) is not None:
        normalised = (logits - norm.running_mean) / np.sqrt(norm.running_var + norm.eps)
        logits = normalised * norm.weight + norm.bias
    return logits if parameters.bias is None else logits + parameters.bias


def assignment_projection(parameters: ReferenceParameters) -> tuple[Float64, Float64]:
    """Return the weight (D,K+G) and bias (K+G,) of the affine map that `assignment_logits` is."""
    origin = assignment_logits(parameters, np.zeros((1, parameters.spec.feature_size)))[0]
    return assignment_logits(parameters, np.eye(parameters.spec.feature_size)) - origin, origin


def soft_assignment(logits: Float64, num_clusters: int, mask: Array | None = None) -> Float64:
    """Return a (B,N,K): softmax over all K+G columns, ghosts dropped, rows outside the mask zero."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    assignment: Float64 = (exponentials / exponentials.sum(axis=-1, keepdims=True))[..., :num_clusters]
    if mask is not None:
        assignment = assignment * mask[..., None]
    return assignment


def residual_sum(assignment: Float64, features: Array, centroids: Float64) -> Float64:
    """Return V (B,K,D): the sum over n of a_nk (x_n - c_k)."""
    residuals: Float64 = assignment.swapaxes(1, 2) @ features.astype(np.float64)
    residuals -= assignment.sum(axis=1)[..., None] * centroids
    return residuals


def l2_normalize(values: Float64) -> Float64:
    """Divide by the norm over the last axis, clamped to at least 1e-12."""
    norm = np.sqrt((values * values).sum(axis=-1, keepdims=True))
    normalised: Float64 = values / np.maximum(norm, NORM_FLOOR)
    return normalised


def descriptor(residuals: Float64, flatten: str = CLUSTERS_LAST) -> Float64:
    """Return the descriptor (B, D*K) of V (B,K,D): intra-normalise, flatten, L2-normalise."""
    intra_normalized = l2_normalize(residuals)
    ordered = intra_normalized if flatten == CLUSTERS_FIRST else intra_normalized.swapaxes(1, 2)
    return l2_normalize(ordered.reshape(len(residuals), -1))
