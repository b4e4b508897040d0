"""The machine and the packages of a measurement or an engine, from the system's files, without importing packages."""

import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Final

from netvlad_deploy.support.require import installed_version

PACKAGES: Final = (
    *("netvlad-deploy", "numpy", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx"),
)
POWER_TIMEOUT_S: Final = 10


def describe_machine(root: Path = Path("/")) -> dict[str, str]:
    """Return the processor, its usable cores, system, memory, and the board, release and power mode of a Jetson.

    `root` is the folder that holds the system's `proc` and `etc`.
    """
    facts = {
        "processor": _field(root / "proc" / "cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": str(available_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "board": _text(root / "proc" / "device-tree" / "model").strip("\0 \n"),
        "jetson_linux": _text(root / "etc" / "nv_tegra_release").partition("\n")[0].strip("# "),
        "power_mode": _power_mode(),
    }
    if memory := _field(root / "proc" / "meminfo", "MemTotal"):
        facts["memory"] = f"{int(memory.split()[0]) / 2**20:.1f} GiB"
    return {name: value for name, value in facts.items() if value}


def installed_versions() -> dict[str, str]:
    """Return the versions of those PACKAGES that are installed."""
    return {name: version for name in PACKAGES if (version := installed_version(name)) is not None}


def memory_bytes() -> int:
    """Return the memory of this machine, in bytes. Source: sysconf(3)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes() -> int:
    """Return the largest host memory of this process so far, in bytes.

    `ru_maxrss` begins at the memory of the process that started this one, so it counts where Linux says no other.

    Source: getrusage(2) and proc_pid_status(5), VmHWM.
    """
    kib, _, _ = _field(Path("/proc/self/status"), "VmHWM").partition(" ")
    return int(kib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _field(path: Path, name: str) -> str:
    """Return the value of the first line `name: value` in a file of the system, or an empty string."""
    lines = (line.partition(":") for line in _text(path).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _power_mode() -> str:
    """Return the power mode of a Jetson, on which every latency depends, or an empty string elsewhere."""
    program = shutil.which("nvpmodel")
    if program is None:
        return ""
    try:
        answer = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=POWER_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown: {' '.join(str(error).split())}"
    modes = [line.partition(":")[2].strip() for line in answer.stdout.splitlines() if "Power Mode:" in line]
    return modes[0] if modes else "unknown: nvpmodel -q does not say"
