"""The C++ runner: what it is built from, and its probe as a function."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netvlad_deploy.spec.images import ImageInput, Size
from netvlad_deploy.support.arrays import Array

ROOT = Path(__file__).parents[2]
PLACES = (ROOT / "build" / "onnxruntime" / "usr" / "include" / "onnxruntime", Path("/usr/include/onnxruntime"))
HEADER = "onnxruntime_cxx_api.h"
AS_IT_IS = ImageInput()


def headers() -> Path | None:
    """Return the folder of ONNX Runtime's headers: that of the environment, or where `make headers` or apt put them."""
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    return next((place for place in ((Path(named),) if named else PLACES) if (place / HEADER).is_file()), None)


def library() -> Path | None:
    """Return the library in the wheel of ONNX Runtime."""
    found = importlib.util.find_spec("onnxruntime")
    folders = (found.submodule_search_locations if found else None) or []
    return next((path for folder in folders for path in Path(folder).glob("capi/libonnxruntime.so.*")), None)


def can_build() -> bool:
    """Return True if this machine has all that the C++ runner is built with."""
    return bool(shutil.which("cmake") and shutil.which("c++") and shutil.which("make") and headers() and library())


def build(folder: Path) -> None:
    """Build the runner, its probe and the example of the page, with sanitizers and warnings as errors."""
    (example,) = re.findall(r"```cpp\n(.*?)```", (ROOT / "docs" / "robot.md").read_text(), re.DOTALL)
    (folder / "page.cpp").write_text(f"{example}\nint main(int, char** names) {{ PlaceRecogniser{{names[1]}}; }}\n")
    paths = f"-DONNXRUNTIME_INCLUDE={headers()}", f"-DONNXRUNTIME_LIBRARY={library()}"
    for command in (
        ["cmake", "-S", str(ROOT / "tests" / "cpp"), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Debug", *paths],
        ["cmake", "--build", str(folder), "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class View:
    """An image as C++ gets it, with `gap` bytes after each row but the last, and the rule it is prepared by."""

    pixels: Array
    prepared: ImageInput = AS_IT_IS
    colour: str = "rgb"
    gap: int = 0

    def case(self) -> bytes:
        """Return the case that the probe reads."""
        resize = self.prepared.resize
        rows = self.pixels.reshape(len(self.pixels), -1)
        padded = np.pad(rows, ((0, 0), (0, self.gap)), constant_values=99).tobytes()[: -self.gap or None]
        sizes: list[Size | None] = [resize.size, resize.cover, (resize.longest or 0, resize.shortest or 0)]
        numbers = [length for size in (*sizes, self.prepared.crop) for length in (size or (0, 0))]
        head = [*self.pixels.shape[:2], rows.shape[1] + self.gap, len(padded), self.colour, resize.kernel, *numbers]
        return " ".join(map(str, head)).encode() + b"\n" + padded


@dataclass(frozen=True)
class Native:
    """The built programs."""

    folder: Path

    def run(self, *arguments: str | Path, given: bytes = b"", **environment: str) -> bytes:
        """Return what the probe answers; a report of a sanitizer fails the test."""
        command = [str(self.folder / "probe"), *map(str, arguments)]
        done = subprocess.run(command, input=given, capture_output=True, check=False, env=os.environ | environment)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return done.stdout

    def pixels(self, views: Sequence[View]) -> list[Array | str]:
        """Return the prepared pixels of each view (H,W,3), or the error."""
        return answers_of(self.run("pixels", given=b"".join(view.case() for view in views)), np.dtype(np.uint8))

    def descriptors(self, artifact: Path, views: Sequence[View]) -> list[Array | str]:
        """Return the descriptor of each view (P,), or the error; of an artifact that is refused that one error."""
        given = b"".join(view.case() for view in views)
        return answers_of(self.run("describe", artifact, given=given), np.dtype(np.float32))

    def load(self, paths: Sequence[Path]) -> list[str]:
        """Return `ok` or the error of each artifact."""
        return self.run("load", given="".join(f"{path}\n" for path in paths).encode()).decode().splitlines()


def answers_of(content: bytes, dtype: np.dtype[np.uint8] | np.dtype[np.float32]) -> list[Array | str]:
    """Return the arrays and errors in what the probe wrote."""
    answers: list[Array | str] = []
    while content:
        line, _, content = content.partition(b"\n")
        word, _, rest = line.decode().partition(" ")
        if word == "error":
            answers.append(rest)
            continue
        lengths = [int(length) for length in rest.split()]
        shape = (*lengths, 3) if len(lengths) == 2 else tuple(lengths)
        size = int(np.prod(shape)) * dtype.itemsize
        answers.append(np.frombuffer(content[:size], dtype).reshape(shape))
        content = content[size:]
    return answers
