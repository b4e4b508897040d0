"""One build on the double, in a process of its own: `python -m tests.double.build FOLDER NAME [--meet] [--die POINT]`.

It builds m.onnx to NAME.engine with the timing cache `timings`, to which it adds a timing called NAME. With `--meet`
it waits inside the builder until both processes are there. It kills itself when it comes to POINT: a call of the
double, `write` (a file half written) or `rename N` (N renames done).
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.support.files import Staging
from netvlad_deploy.tensorrt import builder, engine
from netvlad_deploy.tensorrt.engine import build_engine
from tests.double.builder import BuilderWorld

ORIN = Gpu(name="Orin", compute_capability="8.7", driver="12.6")


def die() -> NoReturn:
    """End at once, with nothing cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class MortalWorld(BuilderWorld):
    """A binding in which a process dies, and in which merging takes a while."""

    end = ""

    def fails(self, call: str) -> bool:
        """Write a call down, unless it is the last."""
        if call == self.end:
            die()
        if call == "ITimingCache.combine":
            time.sleep(0.2)  # long enough for another process to read what this one is about to replace
        return super().fails(call)


def die_in_files(end: str) -> None:
    """Make writing or renaming files fatal."""
    replace = Path.replace
    renamed: list[Path] = []

    def write(self: Staging, target: Path, content: bytes, **_: bool) -> None:
        with self.open(target) as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            die()

    def rename(self: Path, target: Path) -> Any:
        if len(renamed) == int(end.partition(" ")[2]):
            die()
        renamed.append(target)
        return replace(self, target)

    if end == "write":
        Staging.write = write  # type: ignore[method-assign, assignment]
    elif end.startswith("rename"):
        Path.replace = rename  # type: ignore[method-assign, assignment]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--meet", action="store_true")
    parser.add_argument("--die", default="")
    given = parser.parse_args()
    world = MortalWorld("10.3")
    world.measures, world.end = [given.name], given.die
    die_in_files(given.die)

    def meet() -> None:
        (given.folder / f"{given.name}.here").touch()
        while len(list(given.folder.glob("*.here"))) < 2:
            time.sleep(0.01)

    if given.meet:
        world.on_step = meet
    sys.modules["tensorrt"] = world.binding
    builder.Cuda = lambda extra: SimpleNamespace(gpu=lambda: ORIN)  # type: ignore[attr-defined, assignment, misc]
    engine.build_apart = builder.build_here  # type: ignore[attr-defined]
    target = given.folder / f"{given.name}.engine"
    build_engine(given.folder / "m.onnx", target, timing_cache=given.folder / "timings", force=True)


if __name__ == "__main__":
    main()
