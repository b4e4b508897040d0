"""Kill verbs at random moments: `python -m tools.kills [COUNT] [VERB...] [--signal NAME]`. Exit 1 if a trace is left.

After SIGKILL no process may be left a second later, and after the next run, which must succeed, the temporary folder
and the target's folder hold what they hold after a run that nobody has disturbed. After SIGINT or SIGTERM that is so at
once, and the verb says in one line what has ended it.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from tests.processes import alive, catches

ROOT: Final = Path(__file__).parents[1]
MARKER: Final = "NETVLAD_KILLS"
GONE_S: Final = 1.0
ENDS: Final = {"SIGINT": (130, "error: interrupted"), "SIGTERM": (143, "error: terminated")}
HEAD: Final = ("--clusters", "4", "--feature-size", "8")


def photos(folder: Path) -> None:
    """Write six photos."""
    from PIL import Image

    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 48, 64, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / "photos" / f"{number}.png")


def rows(folder: Path) -> None:
    """Write local descriptors of enough images to take a while."""
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((2000, 100, 8)).astype(np.float32))


def nothing(_: Path) -> None:
    """Need no further file."""


@dataclass(frozen=True)
class Verb:
    """A command line that writes into the folder `out`, and what must stand beside it."""

    words: tuple[str, ...]
    prepare: Callable[[Path], None] = nothing
    heads: tuple[str, ...] = ()
    keeps: str = ""
    """How the names start that an interrupted run leaves for the next one, which goes on with them."""


RTX: Final = ("--flavor", "tensorrt-rtx")
BACKBONE: Final = ("--backbone", "tests.pipelines:tiny_backbone", "--resize", "48x64")
VERBS: Final = {
    "export": Verb(("export", *HEAD, "-o", "out/m.onnx", "--force")),
    "build": Verb(
        ("build", "fp16.onnx", *RTX, "--compute-capability", "SM89", "-o", "out/m.engine", "--force"), heads=("fp16",)
    ),
    "embed": Verb(("embed", "fp32.onnx", "x.npy", "-o", "out/y.npy", "--force"), rows, ("fp32",), "out/y.npy.parts"),
    "fit": Verb(("fit", "photos", *BACKBONE, "--clusters", "4", "-o", "out/v.safetensors", "--force"), photos),
    "deploy": Verb(("deploy", *HEAD, *RTX, "--duration", "0.3", "--allow-not-run", "-o", "out/d", "--force")),
    "bench": Verb(("bench", "fp32.onnx", "--backend", "onnxruntime", "--backend", "oracle"), heads=("fp32",)),
    "validate": Verb(("validate", "fp32.onnx", "--junit", "out/junit.xml"), heads=("fp32",)),
    "precision": Verb(("precision", *HEAD, "-o", "out/p", "--force")),
}
USUAL: Final = ("export", "build", "embed", "fit", "deploy")


@dataclass
class Tally:
    """What became of the kills of one verb."""

    verb: str
    duration_s: float = 0.0
    killed: int = 0
    slowest_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        verdict = "FAIL" if self.faults else "PASS"
        line = (
            f"{verdict}  {self.verb}: {self.killed} kills within {self.duration_s:.1f} s, the last process gone after "
        )
        return "\n".join([f"{line}{1e3 * self.slowest_s:.0f} ms at most", *(f"  {fault}" for fault in self.faults)])


class Bench:
    """One verb in a folder of its own, with a temporary folder of its own."""

    def __init__(self, folder: Path, name: str, verb: Verb) -> None:
        self.folder, self.words, self.keeps, self.tally = folder, verb.words, verb.keeps, Tally(name)
        self.temporary = folder / "temporary"
        for each in (folder / "out", self.temporary):
            each.mkdir()
        self.marker = uuid.uuid4().hex
        self.environment = {**os.environ, MARKER: self.marker, "TMPDIR": str(self.temporary), "PYTHONPATH": str(ROOT)}
        verb.prepare(folder)
        for precision in verb.heads:
            self.run("export", *HEAD, "--precision", precision, "-o", f"{precision}.onnx")
        self.run(*self.words)
        started = time.monotonic()
        self.run(*self.words)
        self.tally.duration_s = time.monotonic() - started
        self.clean = self.files()

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "netvlad_deploy", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> None:
        """Run a command line to its end, and note it if that is not a good one."""
        process = self.start(*words)
        _, err = process.communicate()
        if process.returncode:
            self.tally.faults.append(f"{words[0]} ended with {process.returncode}: {err.strip()[-300:]}")

    def files(self) -> set[str]:
        """Return all there is, without the bytecode that Python keeps."""
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
        return {name for name in found if "__pycache__" not in name}

    def kill(self, after_s: float, number: signal.Signals) -> None:
        """Kill one run after a while, look for its processes, run again and look for its files."""
        started, process = time.monotonic(), self.start(*self.words)
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            while number != signal.SIGKILL and process.poll() is None and not catches(process.pid, signal.SIGTERM):
                time.sleep(0.01)  # before that it is Python that starts, and has no line to say
            process.send_signal(number)
        process.wait()
        ended = time.monotonic()
        while alive(MARKER, self.marker) and time.monotonic() - ended < 5 * GONE_S:
            time.sleep(0.005)
        gone_s = time.monotonic() - ended
        _, err = process.communicate()
        if process.returncode == 0:  # it was faster than before
            self.tally.duration_s = min(self.tally.duration_s, ended - started)
            return
        where = f"{number.name} after {after_s:.2f} s"
        self.tally.killed += 1
        self.tally.slowest_s = max(self.tally.slowest_s, gone_s)
        if number == signal.SIGKILL and gone_s > GONE_S:
            self.tally.faults.append(f"{where}: processes lived on for {gone_s:.1f} s")
        if number != signal.SIGKILL:
            code, line = ENDS[number.name]
            if process.returncode != code or err.splitlines()[-1:] != [line] or "Traceback" in err:
                self.tally.faults.append(f"{where}: ended with {process.returncode}: {err.strip()[-300:]}")
            left = self.files() - self.clean
            if left := {path for path in left if not (self.keeps and path.startswith(self.keeps))}:
                self.tally.faults.append(f"{where}: left {sorted(left)}")
        self.run(*self.words)
        if self.files() != self.clean:
            self.tally.faults.append(f"{where}, then run again: {sorted(self.files() ^ self.clean)} differs")


def kill(name: str, count: int, number: signal.Signals = signal.SIGKILL) -> Tally:
    """Kill a verb this many times at random moments of its run."""
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), name, VERBS[name])
        for _ in range(20 * count):
            if bench.tally.killed == count or bench.tally.faults:
                break
            bench.kill(moments.uniform(0.02, 1.0) * bench.tally.duration_s, number)
        if bench.tally.killed < count and not bench.tally.faults:
            bench.tally.faults.append(f"asked for {count} kills: the verb was too fast for the others")
    return bench.tally


def main() -> None:
    """Kill the verbs asked for, and print what became of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=20)
    parser.add_argument("verbs", nargs="*", default=USUAL)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", *ENDS])
    given = parser.parse_args()
    failed = False
    for name in given.verbs:
        tally = kill(name, given.count, signal.Signals[given.signal])
        failed |= bool(tally.faults)
        print(tally, flush=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
