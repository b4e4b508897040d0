"""What the machine and NVML tell, from files of a machine that is made here and a double of pynvml."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.latency import gpu_state
from netvlad_deploy.latency.advice import candidate_advice, machine_advice
from netvlad_deploy.latency.gpu_state import read_gpus
from netvlad_deploy.latency.machine_state import MachineState, read_state
from netvlad_deploy.latency.results import DeviceTimes, Estimate
from netvlad_deploy.latency.worker import place_threads

pynvml = pytest.importorskip("pynvml")

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_state_of_a_machine_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three cores are ours; iowait, idle and guest are no work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    cpu = "sys/devices/system/cpu/cpu"
    write(
        tmp_path,
        {
            "proc/stat": "cpu  9 9\ncpu0 100 10 5 900 40 3 2 50 7 0\ncpu1 9 9 9 9 9 9 9 9\ncpu2 10 0 0 1 1 0 0 1 0 0\n",
            "proc/loadavg": "0.50 0.25 0.10 1/89 29166\n",
            f"proc/{os.getpid()}/stat": f"{os.getpid()} (a (b) c) S {' '.join(['1'] * 10)} 20 7 0 0\n",
            "proc/77/stat": f"77 (worker) R {' '.join(['1'] * 10)} 30 1 0 0\n",
            f"{cpu}0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}0/cpufreq/scaling_cur_freq": "800000\n",
            f"{cpu}2/cpufreq/scaling_cur_freq": "3200000\n",
            f"{cpu}2/thermal_throttle/core_throttle_count": "4\n",
        },
    )
    state = read_state([77, 78], tmp_path)
    assert state.busy_s == pytest.approx(130 * TICK_S)
    assert state.own_s == pytest.approx(58 * TICK_S)
    assert state.steal_s == pytest.approx(51 * TICK_S)
    facts = state.facts()
    assert {name: facts[name] for name in facts if name != "gpu"} == {
        "load": "0.50 0.25 0.10",
        "governor": "powersave",
        "clock": "800 to 3200 MHz",
        "thermal_throttles": "4",
    }


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    state = read_state([1], tmp_path)
    assert (state.busy_s, state.throttles) == (None, None)
    assert set(state.facts()) == {"gpu"}
    assert machine_advice(state, state) == ()


def test_the_real_machine_is_read() -> None:
    before = read_state()
    sum(range(3_000_000))
    after = read_state()
    assert before.busy_s is not None
    assert after.busy_s is not None
    assert after.own_s >= before.own_s > 0
    assert after.busy_s >= before.busy_s > 0


def state(**facts: Any) -> MachineState:
    return MachineState(**{"time_s": 0.0, "cores": 2, "busy_s": 0.0, **facts})


GPU = gpu_state.GpuState(name="g", facts=("70 W",), slowdowns=("heat", "the power limit"))


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (state(time_s=10.0, busy_s=24.0, own_s=21.5), ""),
        (state(time_s=10.0, busy_s=24.0, own_s=14.0), "Other processes kept 0.9 of 2 cores busy"),
        (state(time_s=10.0, steal_s=3.0), "The hypervisor gave 10% of the time to others"),
        (state(time_s=10.0, steal_s=1.2), ""),
        (state(time_s=10.0, governors=("powersave",)), "cpupower frequency-set -g performance"),
        (state(time_s=10.0, throttles=7), "throttled 7 times because of heat"),
        (state(time_s=10.0, gpus=(GPU,)), "GPU 0 is slowed by heat, the power limit"),
    ],
)
def test_the_machine_is_advised(after: MachineState, said: str) -> None:
    before = state(busy_s=6.0, own_s=5.0, steal_s=1.0)
    advice = machine_advice(before, after)
    assert len(advice) == bool(said)
    assert said in "".join(advice)


QUIET = {"settled": True, "drift": None, "ratio": None, "device": None}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"settled": False}, "still became faster when the warm-up ended"),
        ({"drift": 0.02}, ""),
        ({"drift": 0.12}, "12% slower than the first"),
        ({"drift": -0.12}, "12% faster than the first"),
        ({"ratio": Estimate(value=1, low=0.97, high=1.05)}, ""),
        ({"ratio": Estimate(value=1, low=0.9, high=1.05)}, "interval of its time ratio is wide"),
        ({"device": DeviceTimes(h2d_ms=1, compute_ms=3, d2h_ms=1, enqueue_ms=2)}, ""),
        ({"device": DeviceTimes(h2d_ms=1, compute_ms=3, d2h_ms=1)}, ""),
        ({"device": DeviceTimes(h2d_ms=2, compute_ms=3, d2h_ms=2)}, "Copies take 4.000 ms"),
        ({"device": DeviceTimes(h2d_ms=1, compute_ms=3, d2h_ms=1, enqueue_ms=2.9)}, "use CUDA graphs"),
    ],
)
def test_a_candidate_is_advised(changed: dict[str, Any], said: str) -> None:
    advice = candidate_advice(**{**QUIET, **changed})
    assert len(advice) == bool(said)
    assert said in "".join(advice)


CLOCKS = {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}


class NvmlDouble:
    """The module pynvml of a machine with two GPUs: constants and errors are the real ones, calls are those it has."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing, self.journal = failing, list[str]()
        self.reasons = [pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle, 0]

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)  # an AttributeError here is a call that pynvml does not have
        if not callable(real) or isinstance(real, type):
            return real

        def call(*arguments: Any) -> Any:
            self.journal.append(name)
            if name in self.failing:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            answers: dict[str, Any] = {
                "nvmlDeviceGetCount": lambda: 2,
                "nvmlDeviceGetHandleByIndex": lambda index: index,
                "nvmlDeviceGetName": lambda handle: f"GPU-{handle}",
                "nvmlDeviceGetClockInfo": lambda _, kind: {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}[
                    kind
                ],
                "nvmlDeviceGetPowerUsage": lambda _: 70_400,
                "nvmlDeviceGetTemperature": lambda _, sensor: {pynvml.NVML_TEMPERATURE_GPU: 41}[sensor],
                "nvmlDeviceGetCurrentClocksEventReasons": lambda handle: self.reasons[handle],
                "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: self.reasons[handle],
            }
            return answers.get(name, lambda: None)(*arguments)

        return call


def use(monkeypatch: pytest.MonkeyPatch, double: Any) -> None:
    monkeypatch.setattr(gpu_state, "require", lambda *_, **__: double)


@pytest.mark.parametrize("failing", [(), ("nvmlDeviceGetCurrentClocksEventReasons",)])
def test_gpus_tell_clocks_power_heat_and_slowdowns(monkeypatch: pytest.MonkeyPatch, failing: tuple[str, ...]) -> None:
    double = NvmlDouble(failing)
    use(monkeypatch, double)
    gpus, reason = read_gpus()
    assert [gpu.words for gpu in gpus] == [
        "GPU-0, SM clock 1410 MHz, memory clock 1593 MHz, 70 W, 41 C, slowed by the power limit",
        "GPU-1, SM clock 1410 MHz, memory clock 1593 MHz, 70 W, 41 C, not slowed",
    ]
    assert reason == ""
    assert (double.journal[0], double.journal[-1]) == ("nvmlInit", "nvmlShutdown")


def test_a_gpu_that_tells_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Jetson's NVML has neither power nor reasons."""
    silent = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetCurrentClocksEventReasons",
              "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetClockInfo")  # fmt: skip
    use(monkeypatch, NvmlDouble(silent))
    gpus, _ = read_gpus()
    assert gpus[0].words == "GPU-0, 41 C, not slowed"


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetName"])
def test_nvml_that_fails_is_a_fact(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    double = NvmlDouble((call,))
    use(monkeypatch, double)
    assert read_gpus() == ((), "unknown: NVML says Not Supported")
    assert ("nvmlShutdown" in double.journal) is (call != "nvmlInit")


def test_nvml_that_is_missing_is_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise MissingDependencyError("pynvml cannot be imported: pip install it")

    monkeypatch.setattr(gpu_state, "require", missing)
    assert read_gpus() == ((), "unknown: pynvml cannot be imported: pip install it")


def test_threads_are_moved_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads of this process, of which a library has bound one."""
    allowed = {0: {0, 1}, 11: {0, 1}, 12: {1}, 13: {0, 1}}
    calls: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_getaffinity", allowed.__getitem__)
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, cores: calls.append((task, cores)))
    tasks = SimpleNamespace(is_dir=lambda: True, iterdir=lambda: [Path("13"), Path("11"), Path("12")])
    monkeypatch.setattr("netvlad_deploy.latency.worker.TASKS", tasks)
    place_threads(1)
    assert calls == [(11, {1}), (11, {0, 1}), (13, {1}), (13, {0, 1})]
