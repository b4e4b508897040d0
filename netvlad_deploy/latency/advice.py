"""What makes a measurement doubtful or slow, and what to do about it, in sentences."""

from typing import Final

from netvlad_deploy.latency.machine_state import MachineState
from netvlad_deploy.latency.results import DeviceTimes, Estimate

BUSY_CORES: Final = 0.2
"""Cores that others may keep busy, unsaid: as much as a desktop does."""

STEAL_SHARE: Final = 0.02
DRIFT_SHARE: Final = 0.03
WIDE_RATIO: Final = 0.05
"""A ratio that is known no better than this, to either side, cannot tell small differences."""

ENQUEUE_SHARE: Final = 0.8
"""Share of the GPU's work in which the host is busy starting it: from here on the GPU may wait for the host."""


def machine_advice(before: MachineState, after: MachineState) -> tuple[str, ...]:
    """Return what on the machine makes all figures doubtful, from its states before and after the rounds."""
    advice: list[str] = []
    span_s = max(after.time_s - before.time_s, 1e-3)
    if before.busy_s is not None and after.busy_s is not None:
        others = (after.busy_s - before.busy_s - (after.own_s - before.own_s)) / span_s
        if others > BUSY_CORES:
            advice.append(
                f"Other processes kept {others:.1f} of {after.cores} cores busy: stop them, or leave them cores of "
                "their own and set --threads to the rest."
            )
        steal = (after.steal_s - before.steal_s) / span_s / after.cores
        if steal > STEAL_SHARE:
            advice.append(f"The hypervisor gave {steal:.0%} of the time to others: measure on a machine of your own.")
    if "powersave" in after.governors:
        advice.append(
            "The CPU governor powersave lowers the clock between runs: cpupower frequency-set -g performance."
        )
    throttles = (after.throttles or 0) - (before.throttles or 0)
    if throttles > 0:
        advice.append(f"The CPU was throttled {throttles} times because of heat: cool it, or measure after a pause.")
    for number, gpu in enumerate(after.gpus):
        if gpu.slowdowns:
            advice.append(
                f"GPU {number} is slowed by {', '.join(gpu.slowdowns)}: cool it or raise its limit, or lock its clocks "
                "lower with nvidia-smi -lgc."
            )
    return tuple(advice)


def candidate_advice(
    *, settled: bool, drift: float | None, ratio: Estimate | None, device: DeviceTimes | None
) -> tuple[str, ...]:
    """Return what makes the figures of one candidate doubtful or slow; `drift` is None where it is no trend."""
    advice: list[str] = []
    if not settled:
        advice.append("Runs still became faster when the warm-up ended: look at later rounds, or measure longer.")
    if drift is not None and abs(drift) > DRIFT_SHARE:
        way = "slower" if drift > 0 else "faster"
        advice.append(
            f"The last rounds were {abs(drift):.0%} {way} than the first, a trend: heat, clocks or another process; "
            "ratios still hold, milliseconds are of this hour."
        )
    if ratio is not None and ratio.high - ratio.low > 2 * WIDE_RATIO * ratio.value:
        advice.append(
            "The interval of its time ratio is wide: measure longer with --duration, or on a quieter machine."
        )
    return (*advice, *(_device_advice(device) if device is not None else ()))


def _device_advice(device: DeviceTimes) -> list[str]:
    """Return what keeps a GPU waiting."""
    advice: list[str] = []
    copies_ms = device.h2d_ms + device.d2h_ms
    if copies_ms > device.compute_ms:
        advice.append(
            f"Copies take {copies_ms:.3f} ms, longer than the work: give inputs that are on the GPU already, "
            "or take images (uint8) or FP16."
        )
    if device.enqueue_ms is not None and device.enqueue_ms > ENQUEUE_SHARE * device.compute_ms:
        advice.append(
            f"The host needs {device.enqueue_ms:.3f} ms to start {device.compute_ms:.3f} ms of work: use CUDA graphs "
            "or a larger batch."
        )
    return advice
