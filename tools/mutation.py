"""Prove the tests of the code that no machine here can run for real: `make mutation`. Exit 1 if they fall short.

First every line of the GPU modules must run under the doubles. Then every call on a CUDA or TensorRT object is deleted,
one at a time, and a test must fail.

A call that no test misses is one that nobody would miss: on a GPU it could be wrong, or gone, and all tests here would
still pass. A call that stands alone is removed; one whose value is used becomes None, or True where False means a
failure. Each mutant runs in a process of its own, forked after the imports that it shares with the others. The tests
that run its line are collected and run first, since one of them fails; only if none does, all tests of its module run.
"""

import ast
import copy
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import coverage
import numpy as np  # noqa: F401 - imported before the fork, once for all mutants
import pytest
from cuda.bindings import runtime  # noqa: F401 - the same

from netvlad_deploy import artifact  # noqa: F401 - the same
from tests import schemas  # noqa: F401 - the same
from tests.double.sources import BUILD_TESTS, GPU_MODULES, RUN_TESTS, is_gpu_call, is_gpu_statement

ROOT = Path(__file__).parents[1]
PROCESSES = os.cpu_count() or 1
TIMEOUT_S = 120.0
DESELECTED = "not every_failure_code and not every_changed_byte"
"""Slow and thorough tests, of which others are the short form."""

OPTIONS = ("-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-k", DESELECTED)


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """Yield line, text and tree of each mutant: one GPU call or assignment deleted."""
    nodes = list(ast.walk(tree))
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    for index, node in enumerate(nodes):
        if isinstance(node, ast.Expr | ast.Assign) and is_gpu_statement(node):
            yield node.lineno, ast.unparse(node), _replaced(tree, index, ast.Pass())
        elif isinstance(node, ast.Call) and is_gpu_call(node) and not isinstance(parents[node], ast.Expr):
            refused = isinstance(parents[node], ast.UnaryOp)
            yield node.lineno, ast.unparse(node), _replaced(tree, index, ast.Constant(value=True if refused else None))


def _replaced(tree: ast.Module, index: int, new: ast.stmt | ast.expr) -> ast.Module:
    """Return a copy of the tree in which the node of this number, in the order of `ast.walk`, is another one."""
    mutant = copy.deepcopy(tree)
    old = list(ast.walk(mutant))[index]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return ast.copy_location(new, node) if node is old else self.generic_visit(node)

    Replace().visit(mutant)
    return ast.fix_missing_locations(mutant)


class Planted(MetaPathFinder):
    """Give one module another code; all others come from where they are."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Return a spec for the one module."""
        return importlib.util.spec_from_loader(name, self) if name == self.name else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Let Python make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the mutant's code."""
        module.__file__ = str(self.path)
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


def start(name: str, path: Path, tree: ast.Module, tests: Sequence[str], first: Sequence[str]) -> int:
    """Run tests on a mutant in a forked process, all of them only if none of the first fails; return its number."""
    process = os.fork()
    if process:
        return process
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    sys.meta_path.insert(0, Planted(name, path, tree))
    code = 70
    try:
        for chosen in (first, tests):
            if chosen and code != pytest.ExitCode.TESTS_FAILED:
                code = pytest.main([*OPTIONS, *chosen])
    finally:
        os._exit(int(code))


def finish(running: dict[int, tuple[str, float]]) -> tuple[str, bool]:
    """Wait for the first of the running mutants to end, or to hang; return its text and whether a test failed."""
    while True:
        for process, (text, started) in running.items():
            ended, status = os.waitpid(process, os.WNOHANG)
            hangs = time.monotonic() - started > TIMEOUT_S
            if hangs:
                os.kill(process, 9)
                os.waitpid(process, 0)
            if ended or hangs:
                del running[process]
                return text, hangs or os.waitstatus_to_exitcode(status) == pytest.ExitCode.TESTS_FAILED
        time.sleep(0.01)


Reached = dict[str, dict[int, list[str]]]
"""By file and line, the tests that run it, as pytest takes them."""

COVERAGE = f"""
[run]
source = {",".join(GPU_MODULES)}
dynamic_context = test_function
"""


def node(context: str) -> str:
    """Return a test as pytest takes it, of the name that coverage gives it.

    >>> node("tests.tensorrt.test_cuda.test_every_call_is_in_the_installed_binding")
    'tests/tensorrt/test_cuda.py::test_every_call_is_in_the_installed_binding'
    """
    module, _, test = context.rpartition(".")
    return f"{module.replace('.', '/')}.py::{test}"


def cover() -> Reached | None:
    """Print the lines of the GPU modules that no test runs; return the tests of each line, None if a line has none."""
    with tempfile.TemporaryDirectory() as folder:
        data, options = Path(folder) / "coverage", Path(folder) / "coveragerc"
        options.write_text(COVERAGE)
        environment = {**os.environ, "COVERAGE_FILE": str(data), "COVERAGE_RCFILE": str(options)}
        tests = ["-m", "pytest", "-q", "-k", DESELECTED, *BUILD_TESTS, *RUN_TESTS]
        for words in (["run", *tests], ["report", "--show-missing", "--fail-under=100"]):
            line = [sys.executable, "-m", "coverage", *words]
            if subprocess.run(line, cwd=ROOT, env=environment, check=False).returncode:
                return None
        found = coverage.CoverageData(str(data))
        found.read()
        return {
            file: {
                line: sorted({node(context) for context in contexts if context})
                for line, contexts in found.contexts_by_lineno(file).items()
            }
            for file in found.measured_files()
        }


def run_all(reached: Reached) -> Iterator[tuple[str, bool]]:
    """Yield the text of each mutant, and whether a test failed on it."""
    running: dict[int, tuple[str, float]] = {}
    for module, tests in GPU_MODULES.items():
        path = ROOT / f"{module.replace('.', '/')}.py"
        for line, text, tree in mutants(ast.parse(path.read_text())):
            if len(running) == PROCESSES:
                yield finish(running)
            label = f"{path.relative_to(ROOT)}:{line}: {text}"
            first = reached.get(str(path), {}).get(line, [])
            running[start(module, path, tree, tests, first)] = (label, time.monotonic())
    while running:
        yield finish(running)


def main() -> None:
    """Print the coverage, every mutant that survives, and how many did not."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # no test here uses a plugin, and each takes time to import
    reached = cover()
    outcomes = list(run_all(reached or {}))
    alive = [text for text, killed in outcomes if not killed]
    for text in alive:
        print(f"SURVIVED  {text}")
    print(f"{'FAIL' if alive else 'PASS'}  {len(outcomes) - len(alive)} of {len(outcomes)} deletions are noticed")
    raise SystemExit(0 if reached and outcomes and not alive else 1)


if __name__ == "__main__":
    main()
