"""What `make mutation` deletes: every call on a GPU object, whether its value is used or not, and nothing else."""

import ast

from tools.mutation import mutants

SOURCE = """
def run(self, feeds):
    config.progress_monitor = monitor
    self._cuda.cudaFree(address)
    undo.callback(self._cuda.cudaEventDestroy, event)
    if not self._context.set_input_shape(name, shape):
        self._fail("shape")
    missing = self._context.infer_shapes()
    address = self.cudaMalloc(size)
    other = feeds.copy()
"""

DELETED = {
    "config.progress_monitor = monitor": "pass",
    "self._cuda.cudaFree(address)": "pass",
    "undo.callback(self._cuda.cudaEventDestroy, event)": "pass",
    "self._context.set_input_shape(name, shape)": "if not True:",
    "self._context.infer_shapes()": "missing = None",
    "self.cudaMalloc(size)": "address = None",
}


def test_each_call_is_deleted_once_and_alone() -> None:
    before = ast.unparse(ast.parse(SOURCE)).splitlines()
    found = {text: ast.unparse(tree).splitlines() for _, text, tree in mutants(ast.parse(SOURCE))}
    assert set(found) == set(DELETED)
    for text, after in found.items():
        changed = [(old.strip(), new.strip()) for old, new in zip(before, after, strict=True) if old != new]
        assert len(changed) == 1
        assert text in changed[0][0]
        assert changed[0][1] == DELETED[text]
