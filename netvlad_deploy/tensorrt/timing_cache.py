"""One file of kernel timings for many builds at once: see docs/adr/0011-one-timing-cache-for-many-builds.md.

A build reads the file, and when it is done adds its own timings to those that are in the file by then. The lock is held
while the file is read or merged, never while the builder works. The file is replaced whole, so a build that is killed
leaves the old one.
"""

import logging
from pathlib import Path
from typing import Any

from netvlad_deploy.errors import ArtifactError, BuildError, OutputError
from netvlad_deploy.support.files import locked, open_regular, stage_files
from netvlad_deploy.tensorrt.api import TensorRT

LOG = logging.getLogger(__name__)


def load_timing_cache(tensorrt: TensorRT, config: Any, path: Path) -> Any:
    """Give the builder the timings in the file; a file that does not exist counts as empty.

    Returns: the cache, into which the builder writes: it must outlive the build.

    Raises: BuildError if TensorRT refuses the file; OutputError if it cannot be read, or its folder not be written.
    """
    with locked(path):
        cache = _read(tensorrt, config, path)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        raise _refusal(tensorrt, path)
    return cache


def save_timing_cache(tensorrt: TensorRT, config: Any, path: Path, cache: Any) -> None:
    """Add the timings that a build wrote into `cache` to the file, to which other builds may have added meanwhile.

    A failure is only logged, since the engine is good without them.
    """
    try:
        with locked(path):
            timing_cache = _read(tensorrt, config, path)
            if not timing_cache.combine(cache, ignore_mismatch=False):
                raise _refusal(tensorrt, path)
            content = tensorrt.accepted(timing_cache.serialize(), "to serialize its timing cache")
            with stage_files(force=True) as staging:
                staging.write(path, bytes(content))
    except (BuildError, OutputError) as error:
        LOG.warning("the timings of this build are not kept: %s", error)


def _read(tensorrt: TensorRT, config: Any, path: Path) -> Any:
    """Return a cache of TensorRT with the timings in the file, an empty one if there is no file."""
    content = b""
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except ArtifactError as error:
        if path.exists():
            raise OutputError(f"timing cache {error}") from error
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
