"""One file of kernel timings for many builds at once: see docs/adr/0011-one-timing-cache-for-many-builds.md.

A build reads the file, and when it is done adds its own timings to those that are in the file by then. The lock is held
while the file is read or merged, never while the builder works. The file is replaced whole, so a build that is killed
leaves the old one.
"""

from pathlib import Path
from typing import Any

from netvlad_deploy.errors import ArtifactError, BuildError, OutputError
from netvlad_deploy.support.files import locked, open_regular, stage_files
from netvlad_deploy.tensorrt.api import TensorRT


def load_timing_cache(tensorrt: TensorRT, config: Any, path: Path) -> Any:
    """Give the builder the timings in the file; a file that does not exist counts as empty.

    Returns: the cache, into which the builder writes: it must outlive the build.

    Raises: BuildError if TensorRT refuses the file; OutputError if it cannot be read, or its folder not be written.
    """
    with locked(path):
        content = _read(path)
    cache = _cache(tensorrt, config, path, content)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise _refusal(tensorrt, path)
    return cache


def save_timing_cache(tensorrt: TensorRT, config: Any, path: Path, cache: Any) -> None:
    """Add the timings that a build wrote into `cache` to the file, to which other builds may have added meanwhile.

    Raises: BuildError if TensorRT refuses the file; OutputError if it cannot be written.
    """
    with locked(path):
        timing_cache = _cache(tensorrt, config, path, _read(path))
        if not timing_cache.combine(cache, ignore_mismatch=False):
            raise _refusal(tensorrt, path)
        content = tensorrt.accepted(timing_cache.serialize(), "to serialize its timing cache")
        with stage_files(force=True) as staging:
            staging.write(path, bytes(content))


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read()
    except ArtifactError as error:
        if not path.exists():
            return b""
        raise OutputError(f"timing cache {error}") from error


def _cache(tensorrt: TensorRT, config: Any, path: Path, content: bytes) -> Any:
    cache = config.create_timing_cache(content)
    if cache is None:
        raise _refusal(tensorrt, path)
    return cache


def _refusal(tensorrt: TensorRT, path: Path) -> BuildError:
    reason = tensorrt.last_error() or "no reason given"
    return BuildError(
        f"{tensorrt.name} refused the timing cache {path} ({reason}): it is damaged, or of another version or GPU, "
        "name another file"
    )
