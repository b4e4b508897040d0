"""Which code talks to CUDA and TensorRT, and how a call on their objects looks in it."""

import ast
import re
from typing import Final

BUILD_TESTS: Final = ("tests/tensorrt/test_engine_double.py", "tests/tensorrt/test_engine_files.py")
RUN_TESTS: Final = (
    "tests/tensorrt/test_tensorrt_runner.py",
    "tests/tensorrt/test_execution_slot.py",
    "tests/tensorrt/test_loader.py",
    "tests/tensorrt/test_cuda.py",
    "tests/tensorrt/test_device_array.py",
    "tests/tensorrt/test_device_output.py",
)
GPU_MODULES: Final = {
    "netvlad_deploy.tensorrt.builder": BUILD_TESTS,
    "netvlad_deploy.tensorrt.engine": BUILD_TESTS,
    "netvlad_deploy.tensorrt.timing_cache": BUILD_TESTS,
    "netvlad_deploy.tensorrt.cuda": RUN_TESTS,
    "netvlad_deploy.tensorrt.device_array": RUN_TESTS,
    "netvlad_deploy.tensorrt.device_output": RUN_TESTS,
    "netvlad_deploy.tensorrt.loader": RUN_TESTS,
    "netvlad_deploy.tensorrt.execution_slot": RUN_TESTS,
    "netvlad_deploy.tensorrt.tensorrt_runner": RUN_TESTS,
    "netvlad_deploy.tensorrt.api": (*BUILD_TESTS, *RUN_TESTS),
}
"""Every module that talks to a GPU or its builder, and its tests, which need no GPU, torch or onnx."""

TENSORRT_OBJECTS: Final = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "optimization_profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "network": "INetworkDefinition",
    "timing_cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
"""The class of the object that a variable or attribute of this name holds, with or without a leading underscore."""

CUDA_OBJECTS: Final = frozenset(("cuda", "_cuda"))


def owner(node: ast.AST) -> str:
    """Return the name of what an attribute is taken from: `context` in `self._context.execute_async_v3`."""
    value = node.value if isinstance(node, ast.Attribute) else None
    name = value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else ""
    return name.lstrip("_")


def is_gpu_attribute(node: ast.AST) -> bool:
    """Return True if a node is a member of a CUDA or TensorRT object."""
    return isinstance(node, ast.Attribute) and owner(node) in {*TENSORRT_OBJECTS, "cuda"}


def is_gpu_call(node: ast.Call) -> bool:
    """Return True if a call is one on a CUDA or TensorRT object, or on the binding, or hands such a member on."""
    if isinstance(node.func, ast.Attribute) and re.match("cuda[A-Z]", node.func.attr):
        return True
    return is_gpu_attribute(node.func) or any(is_gpu_attribute(argument) for argument in node.args)


def is_gpu_statement(node: ast.Expr | ast.Assign) -> bool:
    """Return True if a statement is a GPU call, or sets a member of a GPU object."""
    if isinstance(node, ast.Assign):
        return any(is_gpu_attribute(target) for target in node.targets)
    return isinstance(node.value, ast.Call) and is_gpu_call(node.value)
