"""The names of everything that can run a file. `open_runner` in `runtime/open_runner.py` opens them."""

from typing import Final

STRICT: Final = "strict"
"""The backend that rounds every FP16 tensor on a CPU. Its time says nothing."""

NO_GRAPHS: Final = "tensorrt-no-graphs"
"""The backend of engines whose work is started anew in each run, and not replayed from a CUDA graph."""

TORCH: Final = "torch"
TORCH_COMPILE: Final = "torch-compile"
STRAIGHT: Final = "straight"
LIMIT: Final = "limit"
UNFOLDED: Final = (TORCH, TORCH_COMPILE)
"""Backends that run the unfolded module of an artifact."""

PEERS: Final = (TORCH_COMPILE, STRAIGHT, LIMIT)
"""What `bench` alone takes as a backend: the unfolded module compiled by torch, or exported by torch as it is, and what
no export can leave out.
"""

BACKENDS: Final = (
    "onnxruntime",
    "onnxruntime-cuda",
    "onnxruntime-tensorrt",
    "onnxruntime-rtx",
    "openvino",
    STRICT,
    "tensorrt",
    NO_GRAPHS,
    TORCH,
    "oracle",
)

SERVER_BACKENDS: Final = ("onnxruntime", "tensorrt", "python")
"""Backends of Triton: its own two, which take what the graph takes, and the one that runs this package's runtime."""

DEVICES: Final = ("cpu", "gpu")

TIMED: Final = (*(name for name in BACKENDS if name != STRICT), *PEERS)
"""Backends that `bench` takes."""
