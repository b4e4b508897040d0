"""The state of the machine at one moment: what else is busy, clocks and throttling, from Linux's files and NVML.

What a machine does not tell is left out: a container has no governor, a Jetson no NVML.
"""

import os
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netvlad_deploy.latency.gpu_state import GpuState, read_gpus
from netvlad_deploy.support.machine import available_cores

BUSY_FIELDS: Final = (0, 1, 2, 5, 6)
"""User, nice, system, and both kinds of interrupts in a line of /proc/stat. Source: proc_stat(5)."""

STEAL_FIELD: Final = 7


@dataclass(frozen=True, kw_only=True)
class MachineState:
    """One moment; the times are seconds, counted up since some moment before, over the cores of this process.

    Args:
        busy_s: time in which the cores worked, None where the system does not say.
        own_s: time in which this process and its workers worked.
        steal_s: time that a hypervisor gave to others.
        governors: how the clock of each core is chosen, each once.
        megahertz: the clock of each core.
        throttles: how often the cores were throttled because of heat, None where the system does not say.
        gpus: the GPUs by number; `no_gpus` says in words why there are none.
    """

    time_s: float
    cores: int
    load: str = ""
    busy_s: float | None = None
    own_s: float = 0.0
    steal_s: float = 0.0
    governors: tuple[str, ...] = ()
    megahertz: tuple[float, ...] = ()
    throttles: int | None = None
    gpus: tuple[GpuState, ...] = ()
    no_gpus: str = ""

    def facts(self) -> dict[str, str]:
        """Return the state in words, by name; what is not known is left out."""
        clocks = [f"{value:.0f}" for value in (min(self.megahertz, default=0), max(self.megahertz, default=0))]
        named = {
            "load": self.load,
            "governor": ", ".join(self.governors),
            "clock": f"{clocks[0]} to {clocks[1]} MHz" if self.megahertz else "",
            "thermal_throttles": "" if self.throttles is None else str(self.throttles),
            **{f"gpu_{number}": gpu.words for number, gpu in enumerate(self.gpus)},
            "gpu": self.no_gpus,
        }
        return {name: words for name, words in named.items() if words}


def read_state(pids: Sequence[int] = (), root: Path = Path("/")) -> MachineState:
    """Return the state of the machine now.

    Args:
        pids: the workers, whose time is not that of others.
        root: the folder that holds the system's `proc` and `sys`.
    """
    ticks = os.sysconf("SC_CLK_TCK")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(available_cores())
    counts = _counts(root, {f"cpu{core}" for core in cores})
    folders = [root / "sys/devices/system/cpu" / f"cpu{core}" for core in cores]
    governors = {_text(folder / "cpufreq/scaling_governor") for folder in folders} - {""}
    kilohertz = _numbers(folders, "cpufreq/scaling_cur_freq")
    throttles = _numbers(folders, "thermal_throttle/core_throttle_count")
    gpus, no_gpus = read_gpus()
    return MachineState(
        time_s=time.monotonic(),
        cores=len(cores),
        load=" ".join(_text(root / "proc/loadavg").split()[:3]),
        busy_s=sum(sum(each[index] for index in BUSY_FIELDS) for each in counts) / ticks if counts else None,
        own_s=sum(_ticks_of(root, pid) for pid in (os.getpid(), *pids)) / ticks,
        steal_s=sum(each[STEAL_FIELD] for each in counts) / ticks,
        governors=tuple(sorted(governors)),
        megahertz=tuple(each / 1e3 for each in kilohertz),
        throttles=sum(throttles) if throttles else None,
        gpus=gpus,
        no_gpus=no_gpus,
    )


def _counts(root: Path, cores: Set[str]) -> list[list[int]]:
    """Return the counters of each of these cores in /proc/stat, in ticks."""
    lines = map(str.split, _text(root / "proc/stat").splitlines())
    return [list(map(int, values)) for name, *values in lines if name in cores and len(values) > STEAL_FIELD]


def _numbers(folders: Sequence[Path], name: str) -> list[int]:
    """Return the whole numbers that the files of this name hold."""
    return [int(text) for folder in folders if (text := _text(folder / name)).isdigit()]


def _ticks_of(root: Path, pid: int) -> int:
    """Return the ticks that a process worked, all threads together; 0 if it has ended.

    Source: proc_pid_stat(5), utime and stime, counted behind the name, which may hold spaces.
    """
    values = _text(root / "proc" / str(pid) / "stat").rpartition(")")[2].split()
    return sum(int(value) for value in values[11:13])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
