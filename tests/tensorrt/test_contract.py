"""Every TensorRT member the code takes exists in all six bindings it is written for, or stands behind a capability.

Found by walking the source, so that a new call is checked by itself; `test_cuda.py` does the same for CUDA. The doubles
of the other tests check again, as the code runs, with the table of each version.
"""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from netvlad_deploy.tensorrt.api import TensorRT
from tests.double.core import TABLES
from tests.double.sources import GPU_MODULES, TENSORRT_OBJECTS, owner

ENUMS: Final = frozenset(kind for kind, names in TABLES["rtx-1.7.1"].items() if "__init__" not in names)
CAPABILITIES: Final = {
    "builds_without_gpu": {"num_compute_capabilities", "get_compute_capability", "set_compute_capability"},
    "has_runtime_cache": {
        "create_runtime_config", "set_execution_context_allocation_strategy", "create_runtime_cache",
        "set_runtime_cache", "cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy", "deserialize",
        "serialize", "EAGER", "WHOLE_GRAPH_CAPTURE", "DISABLED",
    },
    "checks_validity": {"get_engine_validity", "INVALID", "SUBOPTIMAL"},
}  # fmt: skip
"""What only some versions have, and the property of `TensorRT` that is asked first."""


def trees() -> Iterator[ast.Module]:
    """Yield the parsed source of every module that talks to TensorRT."""
    for module in GPU_MODULES:
        spec = importlib.util.find_spec(module)
        assert spec is not None
        yield ast.parse(Path(str(spec.origin)).read_text())


def used_members() -> set[tuple[str, str]]:
    """Return (class, member) for every attribute of a variable or enum that stands for a TensorRT object."""
    kinds = TENSORRT_OBJECTS | {enum: enum for enum in ENUMS}
    attributes = [node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {(kinds[owner(node)], node.attr) for node in attributes if owner(node) in kinds and node.attr[:4] != "cuda"}


def test_the_walk_finds_the_calls() -> None:
    found = used_members()
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3")} <= found
    assert {
        ("BuilderFlag", "TF32"),
        ("ICudaEngine", "get_tensor_dtype"),
        ("IRuntimeConfig", "set_runtime_cache"),
    } <= found
    assert len(found) >= 40


@pytest.mark.parametrize("version", sorted(TABLES))
def test_every_member_is_in_the_binding_or_behind_a_capability(version: str) -> None:
    missing = {member for kind, member in used_members() if member not in TABLES[version].get(kind, ())}
    assert missing <= set().union(*CAPABILITIES.values())
    assert not missing or not version.startswith("rtx")


def test_every_capability_is_asked() -> None:
    asked = {node.attr for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for capability in CAPABILITIES:
        assert isinstance(getattr(TensorRT, capability), property)
        assert capability in asked


def test_the_tables_are_the_six_versions() -> None:
    assert sorted(TABLES) == ["10.13", "10.16", "10.3", "11.0", "11.4", "rtx-1.7.1"]


@pytest.mark.rtx
def test_the_rtx_table_is_the_installed_binding() -> None:
    import tensorrt_rtx  # noqa: TID251 - the test compares with the real binding

    if not tensorrt_rtx.__version__.startswith("1.7.1"):
        pytest.skip(f"the table is of 1.7.1, installed is {tensorrt_rtx.__version__}")
    for kind, members in TABLES["rtx-1.7.1"].items():
        absent = [member for member in members if not hasattr(getattr(tensorrt_rtx, kind), member)]
        assert not absent, kind
