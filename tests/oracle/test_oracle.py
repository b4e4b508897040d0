"""The oracle equals the equations computed by hand, and its reference file keeps every convention."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.errors import ArtifactError, InputError
from netvlad_deploy.oracle import equations as oracle
from netvlad_deploy.oracle.equations import BatchNorm, LinearMap, ReferenceParameters
from netvlad_deploy.oracle.reference_file import load_reference, parameters_from_arrays, reference_arrays
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.layer import (
    DESCRIPTOR,
    FEATURES,
    FLATTENINGS,
    MASK,
    RESIDUAL_SUM,
    SOFT_ASSIGNMENT,
    NetVLADSpec,
)
from netvlad_deploy.support.arrays import Float64, npz_content

K, D, G = 3, 4, 2


def parameters(*, batch_norm: bool = True) -> ReferenceParameters:
    random = np.random.default_rng(0)
    norm = BatchNorm(
        weight=random.uniform(0.5, 2, K + G),
        bias=random.standard_normal(K + G),
        running_mean=random.standard_normal(K + G),
        running_var=random.uniform(0.01, 3, K + G),
        eps=1e-3,
    )
    return ReferenceParameters(
        clusters=random.standard_normal((D, K + G)),
        centroids=random.standard_normal((K, D)),
        batch_norm=norm if batch_norm else None,
    )


def by_hand(p: ReferenceParameters, x: Float64) -> Float64:
    """Return one descriptor, number by number."""
    v = np.zeros((K, D))
    for row in x:
        logits = []
        for j in range(K + G):
            value = sum(row[d] * p.clusters[d, j] for d in range(D))
            if (n := p.batch_norm) is not None:
                value = n.weight[j] * (value - n.running_mean[j]) / (n.running_var[j] + n.eps) ** 0.5 + n.bias[j]
            logits.append(value)
        total = sum(np.exp(value) for value in logits)
        for k in range(K):
            v[k] += np.exp(logits[k]) / total * (row - p.centroids[k])
    result = np.zeros(D * K)
    for k in range(K):
        for d in range(D):
            result[d * K + k] = v[k, d] / np.sqrt(sum(v[k] ** 2))
    normalised: Float64 = result / np.sqrt(sum(result**2))
    return normalised


@pytest.mark.parametrize("batch_norm", [True, False])
def test_descriptor_equals_the_equations_by_hand(batch_norm: bool) -> None:
    p = parameters(batch_norm=batch_norm)
    x = np.random.default_rng(1).standard_normal((2, 5, D))
    got = OracleRunner(p).run({FEATURES: x.astype(np.float32)})[DESCRIPTOR]
    for item in range(2):
        assert np.abs(got[item] - by_hand(p, x[item].astype(np.float32).astype(np.float64))).max() < 1e-12


def run(p: ReferenceParameters, x: Float64, mask: np.ndarray | None = None) -> Float64:
    feeds = {FEATURES: x.astype(np.float32)} | ({} if mask is None else {MASK: mask})
    result: Float64 = OracleRunner(p).run(feeds)[DESCRIPTOR]
    return result


def test_order_and_repetition_of_local_descriptors_change_nothing() -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((2, 5, D))
    assert np.abs(run(p, x) - run(p, x[:, ::-1])).max() < 1e-12
    assert np.abs(run(p, x) - run(p, np.concatenate([x, x], axis=1))).max() < 1e-12


def test_a_batch_is_its_items() -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((2, 5, D))
    assert np.abs(run(p, x) - np.concatenate([run(p, x[:1]), run(p, x[1:])])).max() < 1e-14


def test_mask_equals_leaving_rows_out_and_an_empty_item_is_zero() -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((2, 5, D))
    mask = np.array([[True, True, False, False, False], [False] * 5])
    got = run(p, x, mask)
    assert np.abs(got[0] - run(p, x[:1, :2])[0]).max() < 1e-12
    assert not got[1].any()


def test_assignments_sum_to_one_with_the_ghosts_and_less_without() -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((2, 5, D))
    logits = oracle.assignment_logits(p, x)
    assert np.abs(oracle.soft_assignment(logits, K + G).sum(axis=-1) - 1).max() < 1e-14
    assert oracle.soft_assignment(logits, K).sum(axis=-1).max() < 1


def test_huge_logits_do_not_overflow() -> None:
    assert np.isfinite(oracle.soft_assignment(np.array([[[1e5, -1e5, 0.0]]]), 2)).all()


def test_probe_outputs_have_the_documented_shapes() -> None:
    outputs = OracleRunner(parameters()).run({FEATURES: np.ones((2, 5, D), np.float32)})
    shapes = {DESCRIPTOR: (2, D * K), SOFT_ASSIGNMENT: (2, 5, K), RESIDUAL_SUM: (2, K, D)}
    assert {name: array.shape for name, array in outputs.items()} == shapes


def test_projection_is_the_affine_map_of_the_logits() -> None:
    p, x = parameters(), np.random.default_rng(1).standard_normal((2, 5, D))
    weight, bias = oracle.assignment_projection(p)
    assert np.abs(x @ weight + bias - oracle.assignment_logits(p, x)).max() < 1e-12


def arrays() -> dict[str, np.ndarray]:
    vector = np.ones(K + G)
    names = ("weight", "bias", "running_mean", "running_var")
    norm = {f"batch_norm.{name}": vector for name in names} | {"batch_norm.eps": np.array(1e-5)}
    return {"clusters": np.ones((D, K + G)), "clusters2": np.ones((1, D, K))} | norm


SPEC = NetVLADSpec(num_clusters=K, feature_size=D, num_ghost_clusters=G)


@pytest.mark.parametrize("normalize_input", [False, True])
@pytest.mark.parametrize("flatten", FLATTENINGS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_reference_file_keeps_the_conventions(
    tmp_path: Path, normalize_input: bool, flatten: str, bias: bool
) -> None:
    values = {name: value for name, value in arrays().items() if not name.startswith("batch_norm.")}
    values |= {"assignment_bias": np.arange(K + G)} if bias else {}
    spec = replace(SPEC, batch_norm=False, assignment_bias=bias, normalize_input=normalize_input, flatten=flatten)
    (tmp_path / "m.reference.npz").write_bytes(npz_content(reference_arrays(values, spec)))
    assert load_reference(tmp_path / "m.reference.npz").spec == spec


def test_a_bias_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"assignment_bias has shape \(3,\), expected"):
        parameters_from_arrays({**arrays(), "assignment_bias": np.ones(3)})


def test_reference_file_round_trip_is_exact_and_deterministic(tmp_path: Path) -> None:
    content = npz_content(reference_arrays(arrays(), SPEC))
    assert content == npz_content(reference_arrays(arrays(), SPEC))
    (tmp_path / "m.reference.npz").write_bytes(content)
    assert load_reference(tmp_path / "m.reference.npz").spec.num_ghost_clusters == G


def test_an_unreadable_reference_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "m.reference.npz").write_bytes(b"not a zip")
    with pytest.raises(ArtifactError, match="export again"):
        load_reference(tmp_path / "m.reference.npz")


def linear(outputs: int, inputs: int, *, offset: str, seed: int) -> LinearMap:
    random = np.random.default_rng(seed)
    norm = BatchNorm(
        weight=random.uniform(0.5, 2, outputs),
        bias=random.standard_normal(outputs),
        running_mean=random.standard_normal(outputs),
        running_var=random.uniform(0.01, 3, outputs),
        eps=1e-3,
    )
    weight = random.standard_normal((outputs, inputs)).astype(np.float32)
    bias = random.standard_normal(outputs)
    return LinearMap(
        weight=weight, bias=bias if offset == "bias" else None, batch_norm=norm if offset == "batch_norm" else None
    )


def mapped_by_hand(m: LinearMap, v: Float64) -> Float64:
    result = np.zeros(len(m.weight))
    for j, row in enumerate(m.weight):
        result[j] = sum(float(row[i]) * v[i] for i in range(len(v)))
        if m.bias is not None:
            result[j] += m.bias[j]
        if (n := m.batch_norm) is not None:
            result[j] = n.weight[j] * (result[j] - n.running_mean[j]) / (n.running_var[j] + n.eps) ** 0.5 + n.bias[j]
    return result


@pytest.mark.parametrize("offset", ["bias", "batch_norm"])
@pytest.mark.parametrize("l2", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("size", [3, 130])
def test_a_projection_equals_the_equations_by_hand(offset: str, l2: bool, gated: bool, size: int) -> None:
    p = replace(
        parameters(),
        projection=linear(size, D * K, offset=offset, seed=2),
        projection_l2=l2,
        gating=linear(size, size, offset=offset, seed=3) if gated else None,
    )
    x = np.random.default_rng(1).standard_normal((1, 5, D)).astype(np.float32)
    assert p.projection is not None
    y = mapped_by_hand(p.projection, by_hand(p, x[0].astype(np.float64)))
    if l2:
        y = y / np.sqrt(sum(y**2))
    if p.gating is not None:
        y = y / (1 + np.exp(-mapped_by_hand(p.gating, y)))
    assert np.abs(OracleRunner(p).run({FEATURES: x})[DESCRIPTOR][0] - y).max() < 1e-12


@pytest.mark.parametrize(("epsilon", "length"), [("clamp", 1.0), ("rsqrt", 0.5), ("add", 0.2**0.5)])
def test_the_epsilon_modes_differ_on_a_norm_of_half_a_millionth(epsilon: str, length: float) -> None:
    small = np.array([[0.3e-6, -0.4e-6], [0, 0]])
    normalised = oracle.l2_normalize(small, epsilon)
    assert np.linalg.norm(normalised[0]) == pytest.approx(length, rel=1e-12)
    assert not normalised[1].any()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clusters", None, "lack clusters"),
        ("batch_norm.eps", None, "lack batch_norm.eps"),
        ("batch_norm.bias", np.ones(2), "batch_norm.bias has shape"),
        ("clusters", np.full((D, K + G), np.nan), "clusters is not finite"),
        ("clusters2", np.ones((1, D + 1, K)), "are not"),
        ("clusters2", np.ones((2, D, K)), "are not"),
        ("clusters2", np.ones((0, D, K)), r"clusters2 is empty, of shape \(0, 4, 3\)"),
        ("clusters", np.empty((0, 2**62), np.uint8), "clusters is empty"),
        ("batch_norm.eps", np.ones(2), r"batch_norm.eps has shape \(2,\), expected one number"),
        ("normalize_input", np.ones(2), r"normalize_input has shape \(2,\), expected one number"),
        ("projection.weight", None, "lack projection.weight"),
        ("projection.weight", np.ones((5, D)), r"projection.weight has shape \(5, 4\), expected \(P, 12\)"),
        ("projection.bias", np.ones(3), r"projection.bias has shape \(3,\), expected \(5,\)"),
        ("gating.weight", np.ones((5, 4)), r"gating.weight has shape \(5, 4\), expected \(P, 5\)"),
        ("projection.weight", np.full((5, D * K), np.nan), "projection.weight is not finite"),
        ("gating.batch_norm.bias", None, "lack gating.batch_norm.bias"),
    ],
)
def test_a_bad_array_is_refused_by_name(name: str, value: np.ndarray | None, message: str) -> None:
    content = arrays() | {"projection.weight": np.ones((5, D * K), np.float32), "projection.bias": np.ones(5)}
    norm = {f"gating.batch_norm.{key}": np.ones(5) for key in ("weight", "bias", "running_mean", "running_var")}
    content |= {"gating.weight": np.ones((5, 5)), "gating.batch_norm.eps": np.array(1e-5)} | norm
    assert parameters_from_arrays(content).spec.projection is not None
    if value is None:
        del content[name]
    else:
        content[name] = value
    with pytest.raises(InputError, match=message):
        parameters_from_arrays(content)
