"""The file of a layer's unfolded parameters that `export` writes beside an ONNX file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.oracle.equations import BatchNorm, LinearMap, ReferenceParameters
from netvlad_deploy.spec.layer import (
    CLAMP,
    CLUSTERS_FIRST,
    CLUSTERS_LAST,
    NORM_FLOORS,
    AnySpec,
    HeadsSpec,
    NetVLADSpec,
    of_head,
)
from netvlad_deploy.support.arrays import Array, Arrays, Float64, read_arrays

ASSIGNMENT_BIAS, PROJECTION, GATING = "assignment_bias", "projection", "gating"
NORMALIZE_INPUT, CLUSTERS_FIRST_MARK = "normalize_input", "clusters_first"
PROJECTION_L2, FINAL_L2 = "projection_l2", "final_l2"
EPSILON_MARKS = {f"epsilon_{mode}": mode for mode in NORM_FLOORS if mode != CLAMP}
REFERENCE_FILE = "reference_file"
"""Mark of every reference file: `clusters` and `clusters2` alone are also the tensors of other dialects."""

MARKS = (REFERENCE_FILE, NORMALIZE_INPUT, CLUSTERS_FIRST_MARK, PROJECTION_L2, FINAL_L2, *EPSILON_MARKS)
"""Names in a reference file beside those of the module's state: conventions of the layer, 1 for yes."""


def parameters_from_arrays(arrays: Mapping[str, Array]) -> ReferenceParameters:
    """Return the parameters in arrays with the state names of the torch module.

    The arrays `clusters` (D,K+G) and `clusters2` (1,D,K) are required; `batch_norm.*`, `assignment_bias` (K+G,),
    `projection.*`, `gating.*` and the names of MARKS are optional.

    Raises: InputError if an array is missing, has another shape or is not finite.

    >>> parameters = parameters_from_arrays({"clusters": np.ones((4, 3)), "clusters2": np.ones((1, 4, 2))})
    >>> parameters.spec.num_clusters, parameters.spec.num_ghost_clusters, parameters.spec.feature_size
    (2, 1, 4)
    """
    clusters, clusters2 = (_read(arrays, name) for name in ("clusters", "clusters2"))
    layout = (clusters.ndim, clusters2.ndim) == (2, 3) and clusters2.shape[:2] == (1, len(clusters))
    if not layout or clusters.shape[1] < clusters2.shape[2]:
        raise InputError(f"clusters {clusters.shape} and clusters2 {clusters2.shape} are not (D,K+G) and (1,D,K)")
    columns = clusters.shape[1]
    marks = {name: bool(_number(arrays, name)) for name in MARKS if name in arrays}
    projection = _linear_map(arrays, PROJECTION, clusters2.size)
    return ReferenceParameters(
        clusters=clusters,
        centroids=clusters2[0].T.copy(),
        batch_norm=_batch_norm(arrays, "batch_norm", columns),
        bias=_vector(arrays, ASSIGNMENT_BIAS, columns) if ASSIGNMENT_BIAS in arrays else None,
        normalize_input=marks.get(NORMALIZE_INPUT, False),
        flatten=CLUSTERS_FIRST if marks.get(CLUSTERS_FIRST_MARK) else CLUSTERS_LAST,
        epsilon=next((mode for name, mode in EPSILON_MARKS.items() if marks.get(name)), CLAMP),
        projection=projection,
        projection_l2=marks.get(PROJECTION_L2, False),
        gating=None if projection is None else _linear_map(arrays, GATING, len(projection.weight)),
        final_l2=marks.get(FINAL_L2, False),
    )


def _finite(arrays: Mapping[str, Array], name: str) -> Array:
    """Return the array of this name, in its own dtype.

    Raises: InputError if it is missing or empty, or its values are not real numbers, or not all finite.
    """
    if name not in arrays:
        raise InputError(f"reference parameters lack {name}")
    values = arrays[name]
    if values.dtype.kind not in "biuf":
        raise InputError(f"reference parameter {name} is {values.dtype}, expected real numbers")
    if not values.size:
        raise InputError(f"reference parameter {name} is empty, of shape {values.shape}")
    # NaN is the minimum and maximum of any array that holds one: no mask as large as a projection is needed.
    if not np.isfinite([values.min(), values.max()]).all():
        raise InputError(f"reference parameter {name} is not finite")
    return values


def _read(arrays: Mapping[str, Array], name: str) -> Float64:
    return np.asarray(_finite(arrays, name), dtype=np.float64)


def _number(arrays: Mapping[str, Array], name: str) -> float:
    values = _read(arrays, name)
    if values.size != 1:
        raise InputError(f"{name} has shape {values.shape}, expected one number")
    return float(values.item())


def _vector(arrays: Mapping[str, Array], name: str, length: int) -> Float64:
    vector = _read(arrays, name)
    if vector.shape != (length,):
        raise InputError(f"{name} has shape {vector.shape}, expected ({length},)")
    return vector


def _batch_norm(arrays: Mapping[str, Array], layer: str, columns: int) -> BatchNorm | None:
    if not any(name.startswith(f"{layer}.") for name in arrays):
        return None
    names = ("weight", "bias", "running_mean", "running_var")
    vectors = {name: _vector(arrays, f"{layer}.{name}", columns) for name in names}
    return BatchNorm(**vectors, eps=_number(arrays, f"{layer}.eps"))


def _linear_map(arrays: Mapping[str, Array], layer: str, inputs: int) -> LinearMap | None:
    name = f"{layer}.weight"
    if not any(found.startswith(f"{layer}.") for found in arrays):
        return None
    weight, bias = _finite(arrays, name), f"{layer}.bias"
    if weight.ndim != 2 or weight.shape[1] != inputs:
        raise InputError(f"{name} has shape {weight.shape}, expected (P, {inputs})")
    return LinearMap(
        weight=weight,
        bias=_vector(arrays, bias, len(weight)) if bias in arrays else None,
        batch_norm=_batch_norm(arrays, f"{layer}.batch_norm", len(weight)),
    )


def load_reference(path: Path | str) -> ReferenceParameters:
    """Return the unfolded parameters in `NAME.reference.npz`, which `export` writes beside `NAME.onnx`.

    Raises: ArtifactError if the file is missing, is no reference file or holds other parameters.

    >>> np.savez("m.reference.npz", clusters=np.eye(8, 3), clusters2=np.ones((1, 8, 2)))
    >>> parameters = load_reference("m.reference.npz")
    >>> parameters.clusters.shape, parameters.centroids.shape
    ((8, 3), (2, 8))
    """
    return _load(Path(path), "", "no reference file")


def load_references(path: Path | str, spec: HeadsSpec) -> dict[str, ReferenceParameters]:
    """Return the unfolded parameters of each of several heads by name, from a file that `heads_arrays` filled.

    Raises: ArtifactError if the file is missing, is no reference file or holds other parameters.
    """
    return {name: _load(Path(path), of_head(name, ""), f"no reference file of the head {name}") for name in spec.heads}


def _load(path: Path, start: str, refusal: str) -> ReferenceParameters:
    """Return the parameters in the arrays whose names have this start."""
    try:
        arrays = read_arrays(path, start)
        held = arrays if isinstance(arrays, dict) else {}
        return parameters_from_arrays({name.removeprefix(start): array for name, array in held.items()})
    except InputError as error:
        raise ArtifactError(f"{refusal}: {error}: export again") from error


def heads_arrays(heads: Mapping[str, tuple[Mapping[str, Array], NetVLADSpec]]) -> Arrays:
    """Return the arrays of a reference file of several heads: those of each behind its name and a dot."""
    return {
        of_head(name, key): array
        for name, (arrays, spec) in heads.items()
        for key, array in reference_arrays(arrays, spec).items()
    }


def reference_arrays(arrays: Mapping[str, Array], spec: AnySpec) -> Arrays:
    """Return the arrays of a reference file, sorted by name: the module's state, and a mark for each convention."""
    if not isinstance(spec, NetVLADSpec):
        return dict(sorted(arrays.items()))
    conventions = {
        REFERENCE_FILE: True,
        NORMALIZE_INPUT: spec.normalize_input,
        CLUSTERS_FIRST_MARK: spec.flatten == CLUSTERS_FIRST,
        PROJECTION_L2: spec.projection is not None and spec.projection.l2,
        FINAL_L2: spec.projection is not None and spec.projection.final_l2,
        **{name: spec.epsilon == mode for name, mode in EPSILON_MARKS.items()},
    }
    marks = {name: np.ones(()) for name, holds in conventions.items() if holds}
    return dict(sorted({**arrays, **marks}.items()))
