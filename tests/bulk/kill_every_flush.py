"""Kill `embed` at each of its flushes, and go on: `python -m tests.bulk.kill_every_flush FOLDER TARGET`.

Each run is a fork of this process, which has imported everything but has no threads yet. Prints how often it killed.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime  # noqa: F401 - once, before the forks
from PIL import Image

from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.workflow.embed import EmbedOptions, embed

MOST = 500


def run(target: Path, kill_at: int | None) -> bool:
    """Embed into a target in a fork; return False if it was killed."""
    child = os.fork()
    if child:
        return not os.WIFSIGNALED(os.waitpid(child, 0)[1])
    flushes = 0
    real_fsync: Callable[[int], None] = os.fsync

    def fsync(handle: int) -> None:
        nonlocal flushes
        flushes += 1
        if flushes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        real_fsync(handle)

    os.fsync = fsync  # type: ignore[assignment]
    code = 1
    try:
        embed(Candidate(path=Path("m.onnx")), ["photos"], target, EmbedOptions(shard_size=8, batch=2))
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    os.chdir(sys.argv[1])
    Image.init()
    target = Path(sys.argv[2])
    whole = target.with_name(f"whole{target.suffix}")
    assert run(whole, None)
    for kill_at in range(1, MOST):
        for path in Path().glob(f"{target.name}*"):
            assert path.is_file(), path
            path.unlink()
        if run(target, kill_at):
            print(f"killed {kill_at - 1} times")
            return
        if kill_at % 2:
            run(target, 2)  # every other time it is killed once more, unless little was left to do
        assert run(target, None), kill_at
        assert target.read_bytes() == whole.read_bytes(), kill_at
        left = sorted(path.name for path in Path().iterdir())
        assert left == sorted(["m.onnx", "m.onnx.json", "photos", target.name, f"{target.name}.json", whole.name,
                               f"{whole.name}.json"]), (kill_at, left)  # fmt: skip


if __name__ == "__main__":
    main()
