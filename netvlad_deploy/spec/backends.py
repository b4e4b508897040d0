"""The names of everything that can run a file. `open_runner` in `runtime/open_runner.py` opens them."""

from typing import Final

STRICT: Final = "strict"
"""The backend that rounds every FP16 tensor on a CPU. Its time says nothing."""

NO_GRAPHS: Final = "tensorrt-no-graphs"
"""The backend of engines whose work is started anew in each run, and not replayed from a CUDA graph."""

BACKENDS: Final = (
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "onnxruntime-rtx",
    "openvino",
    STRICT,
    "tensorrt",
    NO_GRAPHS,
    "torch",
    "oracle",
)

TIMED: Final = tuple(name for name in BACKENDS if name != STRICT)
"""Backends that `bench` takes."""
