"""Every dialect's file as training scripts write it: wrapped, in other dtypes, of a GPU, in either format, with NumPy.

Each loads without running anything of the file, and gives the descriptors of the dialect's formula for its weights.

Source: Nanne/pytorch-NetVlad, main.py (`recalls`, `best_score`); yxgeee/OpenIBL, examples/netvlad_img.py
(`best_recall5`); gmberton/deep-visual-geo-localization-benchmark, train.py (`best_r5`, `recalls`, `not_improved_num`).
"""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netvlad_deploy.models.checkpoints import load_checkpoint, read_head
from netvlad_deploy.models.dialects import DIALECTS
from netvlad_deploy.models.tensor_names import unwrapped
from tests.models.dialects.samples import SAMPLES, Sample, State
from tests.models.dialects.test_dialects import descriptors, expected_of, local_descriptors

pytestmark = pytest.mark.export


def changed(sample: Sample, change: Callable[[str], str]) -> State:
    return OrderedDict((change(name), tensor) for name, tensor in sample.state.items())


def within(name: str, wrapper: str) -> str:
    """Return a name with a wrapper after its first part, as if only that module had been wrapped."""
    first, _, rest = name.partition(".")
    return f"{first}.{wrapper}{rest}" if rest else name


WRAPPED: dict[str, Callable[[str], str]] = {
    "as it is": lambda name: name,
    "DataParallel": lambda name: name if name.startswith("module.") else f"module.{name}",
    "DataParallel of its parts": lambda name: within(name, "module."),
    "compile": lambda name: f"_orig_mod.{name}",
    "compile of its parts": lambda name: within(name, "_orig_mod."),
    "compile of DataParallel": lambda name: f"_orig_mod.module.{name}",
    "Lightning": lambda name: f"model.{name}",
}
FULLEST = {
    dialect.name: max(
        (name for name, sample in SAMPLES.items() if sample.dialect == dialect.name),
        key=lambda name: len(SAMPLES[name].state),
    )
    for dialect in DIALECTS
    if dialect.name != "relja"
}
"""Of each dialect that torch code saves, the sample with most tensors."""

OTHERS = list(FULLEST.values())


def options(sample: Sample, wrapped: str) -> dict[str, Any]:
    prefix = f"model.{sample.prefix}" if wrapped == "Lightning" and sample.prefix else sample.prefix
    return {**sample.options, "prefix": prefix}


def check(path: Path, sample: Sample, state: State | None = None, **given: Any) -> None:
    """Compare the file's descriptors with the formula, in FP32 and in float64."""
    head = read_head(path, **(given or sample.options))
    assert head.dialect == sample.dialect
    x = local_descriptors(sample.width, tiny=sample.tiny)
    tensors = state or sample.state
    expected = expected_of(Sample(**{**vars(sample), "state": tensors}), x)
    assert np.abs(descriptors(head, x) - expected).max() < 1e-10
    rows = x[:, 4:]  # FP32 has no 1e-12 beside a norm of 1e-6
    expected = expected_of(Sample(**{**vars(sample), "state": tensors}), rows)
    with torch.inference_mode():
        got = load_checkpoint(path, **(given or sample.options))(torch.from_numpy(rows).float()).double().numpy()
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    assert (1 - (got * expected).sum(axis=1) / lengths).max() < 1e-8


@pytest.mark.parametrize("name", OTHERS)
def test_every_wrapping_gives_the_descriptors_of_the_formula(tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    for wrapped, change in WRAPPED.items():
        state = changed(sample, change)
        check(sample.save(tmp_path, state), sample, **options(sample, wrapped))
        assert len(unwrapped(state)) == len(sample.state)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_gives_the_descriptors_of_the_formula_with_the_same_weights(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    sample = SAMPLES[name]
    state = {key: each.to(dtype) if each.is_floating_point() else each for key, each in sample.state.items()}
    rounded = {key: each.float() if each.is_floating_point() else each for key, each in state.items()}
    check(sample.save(tmp_path, state), sample, rounded)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_file_written_on_a_gpu_loads_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, legacy: bool
) -> None:
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:1")
    sample = SAMPLES[name]
    path = tmp_path / "best.pth.tar"
    torch.save({"state_dict": sample.state}, path, _use_new_zipfile_serialization=not legacy)
    assert b"cuda:1" in path.read_bytes()
    monkeypatch.undo()
    check(path, sample)


HABITS: dict[str, Callable[[State], dict[str, Any]]] = {
    "pytorch-netvlad": lambda state: {
        "epoch": 30, "state_dict": state, "recalls": {1: np.float64(0.84), 5: np.float64(0.93)},
        "best_score": np.float64(0.93), "optimizer": {"state": {}, "param_groups": []}, "parallel": False,
    },
    "openibl": lambda state: {"state_dict": state, "epoch": 4, "best_recall5": np.float64(0.9)},
    "deep-visual-geo-localization": lambda state: {
        "epoch_num": 5, "model_state_dict": state, "optimizer_state_dict": {"state": {}},
        "recalls": np.array([70.5, 85.25, 90.0]), "best_r5": np.float64(85.25), "not_improved_num": 0,
    },
    "patch-netvlad": lambda state: {"num_pcs": 4096, "state_dict": state},
    "pointnetvlad": lambda state: {"epoch": 3, "iter": np.int64(400), "state_dict": state, "optimizer": {}},
}  # fmt: skip
RENAMED = {"numpy 2": b"numpy._core", "numpy 1": b"numpy.core"}


def rewritten(content: bytes, names: bytes) -> bytes:
    """Return a file of torch in which NumPy's modules have the names of one version."""
    own, other = (b"numpy._core", b"numpy.core") if names == b"numpy.core" else (b"numpy.core", b"numpy._core")
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content.replace(own, other)
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(result, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, data.replace(own, other) if entry.filename.endswith("data.pkl") else data)
    return result.getvalue()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_numbers_of_numpy_beside_the_weights(tmp_path: Path, name: str, legacy: bool) -> None:
    sample = SAMPLES[name]
    habit = HABITS.get(sample.dialect, HABITS["pytorch-netvlad"])
    buffer = io.BytesIO()
    torch.save(habit(sample.state), buffer, _use_new_zipfile_serialization=not legacy)
    for version, names in RENAMED.items():
        path = tmp_path / f"{version}.pth.tar"
        path.write_bytes(rewritten(buffer.getvalue(), names))
        assert sum(each in path.read_bytes() for each in RENAMED.values()) <= 1
        check(path, sample)
