"""What a measurement was taken on."""

import os
import platform
from pathlib import Path

from netvlad_deploy.require import installed_version

PACKAGES = ("netvlad-deploy", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


def describe_machine() -> dict[str, str]:
    """Return the processor, its usable cores, the system and the versions that matter."""
    packages = {name: version for name in PACKAGES if (version := installed_version(name)) is not None}
    return {
        "processor": _processor(),
        "cores": str(available_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **packages,
    }


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
