"""Every TensorRT member the code takes exists in all six bindings it is written for; found by walking the source."""

import ast
import json
from pathlib import Path

import pytest

import netvlad_deploy

ROOT = Path(netvlad_deploy.__file__).parent
SOURCES = [ROOT / "runtime" / "trt_api.py", ROOT / "runtime" / "tensorrt_runner.py", *(ROOT / "export").glob("*.py")]
TABLES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parents[1] / "data" / "tensorrt_api.json").read_text()
)
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "optimization_profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
    "BuilderFlag": "BuilderFlag",
    "NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
    "ProfilingVerbosity": "ProfilingVerbosity",
}
RTX_ONLY = {("IBuilderConfig", name) for name in TABLES["rtx-1.7.1"]["IBuilderConfig"] if "compute_capabilit" in name}
"""Behind the capability `builds_without_gpu`."""


def used_members() -> set[tuple[str, str]]:
    """Return (class, member) for every attribute of a variable or enum that stands for a TensorRT object."""
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                name = (
                    owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                )
                if name in OBJECTS:
                    found.add((OBJECTS[name], node.attr))
    return found


def test_the_walk_finds_the_calls() -> None:
    found = used_members()
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3")} <= found
    assert ("BuilderFlag", "TF32") in found
    assert len(found) >= 18


@pytest.mark.parametrize("version", sorted(TABLES))
def test_every_member_is_in_the_binding(version: str) -> None:
    missing = {(kind, member) for kind, member in used_members() if member not in TABLES[version][kind]}
    assert missing <= (set() if version.startswith("rtx") else RTX_ONLY)


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
