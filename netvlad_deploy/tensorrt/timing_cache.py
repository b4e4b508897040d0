"""One file of kernel timings for many builds, also at once: see docs/adr/0011-one-timing-cache-for-many-builds.md.

A build takes what the file holds, and adds what it measured to what the file holds by then. The lock is held for
reading and for merging, never while the builder works. The file is replaced whole, so a killed build leaves the old.
"""

from pathlib import Path
from typing import Any

from netvlad_deploy.errors import ArtifactError, BuildError, OutputError
from netvlad_deploy.support.files import locked, open_regular, stage_files
from netvlad_deploy.tensorrt.api import TensorRT, last_error


def load_timing_cache(tensorrt: TensorRT, config: Any, path: Path, logger: Any) -> Any:
    """Give the builder what earlier builds measured; a file that is not there holds nothing yet.

    Returns: the cache, into which the builder writes: it must outlive the build.

    Raises: BuildError if TensorRT refuses the file; OutputError if it cannot be read, or its folder not be written.
    """
    with locked(path):
        content = _read(path)
    cache = _cache(tensorrt, config, path, content, logger)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise _refusal(tensorrt, path, logger)
    return cache


def save_timing_cache(tensorrt: TensorRT, config: Any, path: Path, cache: Any, logger: Any) -> None:
    """Add what a build wrote into `cache` to the file, which other builds may have added to since.

    Raises: BuildError if TensorRT refuses the file; OutputError if it cannot be written.
    """
    with locked(path):
        timing_cache = _cache(tensorrt, config, path, _read(path), logger)
        if not timing_cache.combine(cache, ignore_mismatch=False):
            raise _refusal(tensorrt, path, logger)
        content = tensorrt.accepted(timing_cache.serialize(), "to serialize its timing cache", logger)
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


def _cache(tensorrt: TensorRT, config: Any, path: Path, content: bytes, logger: Any) -> Any:
    cache = config.create_timing_cache(content)
    if cache is None:
        raise _refusal(tensorrt, path, logger)
    return cache


def _refusal(tensorrt: TensorRT, path: Path, logger: Any) -> BuildError:
    reason = last_error(logger) or "no reason given"
    return BuildError(
        f"{tensorrt.name} refused the timing cache {path} ({reason}): it is damaged, or of another version or GPU, "
        "name another file"
    )
