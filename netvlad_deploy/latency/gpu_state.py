"""Clocks, power, temperature and throttling of the NVIDIA GPUs at one moment, from NVML."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.support.require import require

MOST_GPUS: Final = 16

SLOWDOWNS: Final = {
    "SwPowerCap": "the power limit",
    "HwSlowdown": "a slowdown of the hardware",
    "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat, by the hardware",
    "HwPowerBrakeSlowdown": "an external power brake",
}
"""NVML's reasons for lower clocks that nobody chose, in words; idleness and clocks that a user set are others.

Source: nvml.h, nvmlClocksEventReason...
"""


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """One GPU: its name, facts in words, and the reasons in words why its clocks are lower than nobody asked for."""

    name: str
    facts: tuple[str, ...]
    slowdowns: tuple[str, ...]

    @property
    def words(self) -> str:
        """Return all of it in one line."""
        slowed = f"slowed by {', '.join(self.slowdowns)}" if self.slowdowns else "not slowed"
        return ", ".join((self.name, *self.facts, slowed))


def read_gpus() -> tuple[tuple[GpuState, ...], str]:
    """Return the GPUs, all that the driver sees, in its order, and if there are none the reason in words.

    NVML that is missing or fails, as on a Jetson, is such a reason.
    """
    try:
        nvml = require("pynvml", extra="nvml")
    except MissingDependencyError as error:
        return (), f"unknown: {error}"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return (), f"unknown: NVML says {error}"
    try:
        count = min(nvml.nvmlDeviceGetCount(), MOST_GPUS)
        return tuple(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(number)) for number in range(count)), ""
    except nvml.NVMLError as error:
        return (), f"unknown: NVML says {error}"
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: ModuleType, handle: Any) -> GpuState:
    """Return the state of a GPU; a fact that it does not tell is left out."""
    facts = (
        ("SM clock {} MHz", 1, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        ("memory clock {} MHz", 1, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        ("{} W", 1e3, lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
        ("{} C", 1, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    )
    words = [form.format(round(value / unit)) for form, unit, ask in facts if (value := _told(nvml, ask)) is not None]
    # drivers before 535 know the older name alone; the bits are the same
    reasons = _told(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:
        reasons = _told(nvml, lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
    return GpuState(
        name=nvml.nvmlDeviceGetName(handle),
        facts=tuple(words),
        slowdowns=tuple(
            text for name, text in SLOWDOWNS.items() if reasons & getattr(nvml, f"nvmlClocksThrottleReason{name}")
        ),
    )


def _told(nvml: ModuleType, ask: Any) -> int | None:
    """Return an answer of NVML, None where this GPU or driver has none."""
    try:
        return int(ask())
    except nvml.NVMLError:
        return None
