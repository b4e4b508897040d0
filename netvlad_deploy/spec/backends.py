"""The names of everything that can run a file. `open_runner` in `runtime/open_runner.py` opens them."""

from typing import Final

STRICT: Final = "strict"
"""The backend that rounds every FP16 tensor on a CPU. Its time says nothing."""

BACKENDS: Final = (
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "onnxruntime-rtx",
    "openvino",
    STRICT,
    "tensorrt",
    "torch",
    "oracle",
)

TIMED: Final = tuple(name for name in BACKENDS if name != STRICT)
"""Backends that `bench` takes."""
