"""Everything that only a GPU can show, in one command and one report file: `make gpu-check`. Exit 0, 1, or 69 without.

Every flavor of TensorRT that is installed builds every precision, and each engine must pass parity, compute the same in
16 threads at once, from CUDA graphs and from arrays on the GPU, and keep no memory over 10,000 runs. ONNX Runtime's GPU
providers run the same files. The report is `gpu-check.json`; without torch, name ONNX files exported elsewhere.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact
from netvlad_deploy.errors import UNAVAILABLE, UsageError
from netvlad_deploy.latency.results import LatencyReport
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.report.deploy import Step, step_rows
from netvlad_deploy.report.doctor import Diagnosis
from netvlad_deploy.report.serialize import to_json
from netvlad_deploy.report.text import table
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.build_options import FLAVORS, RTX, BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import write_text
from netvlad_deploy.tensorrt.api import EXTRAS
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.doctor import diagnose
from netvlad_deploy.workflow.validate import validate

REPORT: Final = Path("gpu-check.json")
PROFILES: Final = (Profile.parse("1x1,1x300,4x512"), Profile.parse("1x1,8x300,32x2048"))
PRECISIONS: Final = {
    "fp32": GraphOptions(probe=True),
    "fp16": GraphOptions(precision="fp16", probe=True),
    "fp16-wide-logits": GraphOptions(precision="fp16", wide_logits=True, probe=True),
}
GPU_BACKENDS: Final = ("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-rtx")
THREADS, LEAK_RUNS = 16, 10_000
KEPT_BYTES: Final = 2**20
"""Device memory that may be gone after the runs: drivers allocate in larger pieces than this."""


@dataclass(frozen=True, kw_only=True)
class GpuCheck:
    """All that was found, as one file that can be sent."""

    machine: Diagnosis
    steps: tuple[Step, ...]
    engines: tuple[EngineArtifact, ...]
    parity: tuple[ParityReport, ...]
    latency: tuple[LatencyReport, ...]

    @property
    def verdict(self) -> Verdict:
        """Return FAIL if any step failed, NOT_RUN if any could not run."""
        return Verdict.combine(step.verdict for step in self.steps)


def same_in_threads(runner: TensorRTRunner) -> str:
    """Return the fault in the results of sixteen threads at once, compared with those of one."""
    feeds = [features(runner, seed, 1 + seed % 4, 100 + 10 * seed) for seed in range(THREADS)]
    alone = [runner.run(each)[DESCRIPTOR] for each in feeds]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(20):
            together = list(pool.map(lambda each: runner.run(each)[DESCRIPTOR], feeds))
            for number, (one, other) in enumerate(zip(alone, together, strict=True)):
                if not np.array_equal(one, other):
                    return f"thread {number} is off by {np.abs(one - other).max():.1e}"
    return ""


def same_from_graphs(runner: TensorRTRunner) -> str:
    """Return the fault in replayed results, compared with the first, of shapes that take turns in one profile."""
    feeds = [features(runner, batch, batch, length) for batch, length in ((4, 512), (1, 300), (2, 100))]
    first = [runner.run(each)[DESCRIPTOR] for each in feeds]
    before = runner.replays
    for turn in range(10):
        for one, each in zip(first, feeds, strict=True):
            if not np.array_equal(one, runner.run(each)[DESCRIPTOR]):
                return f"turn {turn} differs from the first at shape {each[FEATURES].shape}"
    return "" if runner.name == RTX or runner.replays - before >= 20 else "nothing was replayed from a graph"


def same_from_the_gpu(runner: TensorRTRunner) -> str:
    """Return the fault in the result of a torch tensor on the GPU, compared with that of the host array."""
    torch = torch_on_gpu()
    feeds = features(runner, 0, 2, 300)
    on_gpu = {name: torch.from_numpy(array).cuda() for name, array in feeds.items()}
    if not np.array_equal(runner.run(feeds)[DESCRIPTOR], runner.run(on_gpu)[DESCRIPTOR]):
        return "a tensor on the GPU gives another descriptor"
    return ""


def same_left_on_the_gpu(runner: TensorRTRunner) -> str:
    """Return the fault in an output that stays on the GPU, taken by torch while other runs go on."""
    torch = torch_on_gpu()
    feeds = features(runner, 0, 2, 300)
    output = torch.utils.dlpack.from_dlpack(runner.run(feeds, on_device=True)[DESCRIPTOR])
    expected = runner.run(feeds)[DESCRIPTOR]
    for seed in range(20):
        runner.run(features(runner, seed, 2, 300), on_device=True)
    return "" if np.array_equal(output.cpu().numpy(), expected) else "an output on the GPU is another, or changes"


def torch_on_gpu() -> Any:
    """Return torch, which sees a GPU."""
    try:
        import torch
    except ImportError as error:
        raise SkippedError(str(error)) from error
    if not torch.cuda.is_available():
        raise SkippedError("torch sees no GPU")
    return torch


def keeps_no_memory(runner: TensorRTRunner, *, runs: int = LEAK_RUNS) -> str:
    """Return the device memory that is gone after many runs of changing shape: more shapes than graphs are kept of."""
    gpu = Cuda(extra=EXTRAS[runner.name])
    feeds = [features(runner, seed, 1 + seed % 4, 1 + 37 * seed % 500) for seed in range(40) for _ in range(4)]
    for each in feeds:
        runner.run(each)
    before = gpu.free_bytes()
    for number in range(runs):
        runner.run(feeds[number % len(feeds)])
    kept = before - gpu.free_bytes()
    return f"{kept} bytes of device memory are gone after {runs} runs" if kept > KEPT_BYTES else ""


def on_runner(engine: EngineArtifact, work: Callable[[TensorRTRunner], str]) -> str:
    """Return the finding of a check on a runner of its own."""
    with TensorRTRunner(engine) as runner:
        return work(runner)


CHECKS: Final[dict[str, Callable[[TensorRTRunner], str]]] = {
    "16 threads at once": same_in_threads,
    "replay from CUDA graphs": same_from_graphs,
    "arrays on the GPU": same_from_the_gpu,
    "outputs on the GPU": same_left_on_the_gpu,
    "memory over 10,000 runs": keeps_no_memory,
}


def features(runner: TensorRTRunner, seed: int, batch: int, length: int) -> dict[str, Array]:
    """Return L2-normalised feeds of this shape."""
    x = np.random.default_rng(seed).standard_normal((batch, length, runner.spec.feature_size))
    return {FEATURES: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(runner.dtype)}


class SkippedError(Exception):
    """A check cannot be made on this machine."""


def attempt(name: str, work: Callable[[], str]) -> Step:
    """Return the outcome of a check: whatever it raises is part of the report, which must not be lost."""
    try:
        wrong = work()
    except (*UNAVAILABLE, SkippedError) as error:
        return Step(name=name, verdict=Verdict.NOT_RUN, reason=str(error))
    except Exception as error:  # noqa: BLE001 - on a machine never seen before
        return Step(name=name, verdict=Verdict.FAIL, reason=f"{type(error).__name__}: {error}")
    return Step(name=name, verdict=Verdict.FAIL if wrong else Verdict.PASS, reason=wrong)


class Findings:
    """What has been found so far."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.engines: list[EngineArtifact] = []
        self.parity: list[ParityReport] = []
        self.latency: list[LatencyReport] = []

    def check(self, name: str, work: Callable[[], str]) -> bool:
        """Run a check, print it, and return whether it passed."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        self.steps.append(attempt(name, work))
        return self.steps[-1].verdict is Verdict.PASS

    def check_parity(self, candidate: Candidate, label: str) -> bool:
        """Validate a candidate."""

        def compared() -> str:
            try:
                report = validate(candidate)
            except UsageError as error:  # refused by design, such as wide logits where TF32 cannot be turned off
                raise SkippedError(str(error)) from error
            self.parity.append(report)
            if report.verdict is Verdict.NOT_RUN:
                raise SkippedError(report.reason)
            return ", ".join(case.name for case in report.cases if case.verdict is Verdict.FAIL)

        return self.check(f"{label}: parity", compared)

    def check_latency(self, candidates: Sequence[Candidate], label: str) -> None:
        """Measure candidates against each other."""

        def measure() -> str:
            self.latency.append(bench(candidates, batch=8, num_features=300))
            return ""

        self.check(f"{label}: latency", measure)

    def check_engine(self, source: OnnxArtifact, flavor: str, folder: Path, *, tf32: bool = False) -> None:
        """Build an engine, and check all of it."""
        label = f"{flavor}, {'tf32' if tf32 else source.precision}"
        options = BuildOptions(flavor=flavor, profiles=PROFILES, tf32=tf32)
        target = folder / f"{source.path.stem}.{flavor}{'.tf32' if tf32 else ''}.engine"

        def built() -> str:
            self.engines.append(build(source.path, target, options, force=True))
            return ""

        if not self.check(f"{label}: build", built):
            return
        if not self.check_parity(Candidate(path=target), label):
            return
        for name, work in CHECKS.items():
            self.check(f"{label}: {name}", partial(on_runner, self.engines[-1], work))
        self.check_latency([Candidate(path=source.path), Candidate(path=target)], label)


def sources(given: Sequence[Path], folder: Path) -> Iterator[OnnxArtifact]:
    """Yield the ONNX files given, or a trained-looking layer exported in every precision."""
    for path in given:
        artifact = load_artifact(path)
        if not isinstance(artifact, OnnxArtifact):
            raise UsageError(f"{path} is no ONNX file")
        yield artifact
    if not given:
        from netvlad_deploy.export.onnx_model import export_onnx
        from tests.modules import make_module

        for name, options in PRECISIONS.items():
            yield export_onnx(make_module(64, 512, 8), folder / f"{name}.onnx", options)


def gpu_check(given: Sequence[Path], folder: Path) -> GpuCheck:
    """Run every check on every flavor, precision and provider that is there."""
    found = Findings()
    for source in sources(given, folder):
        for flavor in FLAVORS:
            found.check_engine(source, flavor, folder)
            if source.precision == "fp32":
                found.check_engine(source, flavor, folder, tf32=True)
        for backend in GPU_BACKENDS:
            candidate = Candidate(path=source.path, backend=backend)
            if found.check_parity(candidate, f"{backend}, {source.precision}"):
                found.check_latency([candidate], f"{backend}, {source.precision}")
    return GpuCheck(
        machine=diagnose(),
        steps=tuple(found.steps),
        engines=tuple(found.engines),
        parity=tuple(found.parity),
        latency=tuple(found.latency),
    )


def main() -> None:
    """Write the report and print the verdict of every step."""
    with tempfile.TemporaryDirectory() as folder:
        report: Any = gpu_check([Path(argument) for argument in sys.argv[1:]], Path(folder))
    write_text(REPORT, to_json("gpu-check", report))
    print(
        "\n".join([report.verdict.value, *table(("verdict", "step", "reason"), step_rows(report.steps)), str(REPORT)])
    )
    raise SystemExit({Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.NOT_RUN: 69}[report.verdict])


if __name__ == "__main__":
    main()
