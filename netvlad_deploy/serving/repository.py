"""A model in a repository of Triton: a new version folder, complete or not there, and its configuration.

    REPOSITORY/NAME/config.pbtxt       inputs, outputs, batches, instances
    REPOSITORY/NAME/VERSION/           the artifact, its sidecar and reference file; model.py for this package's runtime

Source: Triton's docs/user_guide/model_repository.md for the layout.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import (
    AnyArtifact,
    ArtifactType,
    FileReference,
    OnnxArtifact,
    check_file,
    load_artifact,
    sidecar_path,
    stage_artifact,
)
from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.serving.config import ANY_MODEL, MODEL_FILES, PYTHON, Serving, config_text
from netvlad_deploy.support.files import HASH_BLOCK_BYTES, Staging, open_regular, read_bounded, stage_files, write_text
from netvlad_deploy.support.formats import writing
from netvlad_deploy.support.locks import hold, left_behind

CONFIG_FILE: Final = "config.pbtxt"
UNFINISHED: Final = ".netvlad-deploy.unfinished-"
"""Start of the name of a version folder that is being written; Triton passes over it, since it is no number."""

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,127}", re.ASCII)
"""A name that stands in the path of a request as it is."""

MODEL_CODE: Final = '''\
"""Serves the artifact in this folder with netvlad-deploy, which must be installed where the server runs."""

from netvlad_deploy.serving.triton_model import ServedModel


class TritonPythonModel(ServedModel):
    """The model that Triton looks for in this file."""

    sidecar_sha256 = "{sha256}"
'''
MAX_CONFIG_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TritonModel:
    """A version of a model, as it stands in a repository: its folder, the artifact's hash, and how it is served."""

    folder: Path
    version: int
    config: Path
    sha256: str
    descriptor_size: int
    serving: Serving


def add_model(artifact: AnyArtifact, repository: Path, serving: Serving, *, force: bool = False) -> TritonModel:
    """Add an artifact to a repository as the next version of a model, the first of a new one.

    Versions that are there stay as they are; the server takes the highest. The configuration is the same for all: a
    different one is written with `force` alone, and so is a version of the file that the last one has.

    Raises: UsageError if the name is none, or the model is there with another configuration or the same file;
        ArtifactError if the artifact or a file beside it changed; OutputError if the repository cannot be written.
    """
    if not MODEL_NAME.fullmatch(serving.name):
        raise UsageError(f"name {serving.name[:40]!r} is no model's: take letters, digits, '.', '-' and '_'")
    model, text = repository / serving.name, config_text(artifact, serving)
    config = model / CONFIG_FILE
    with writing(model):
        if not force:
            _check_free(model, text, artifact)
        model.mkdir(parents=True, exist_ok=True)
        with _unfinished(model) as folder:
            _write_version(artifact, folder, serving)
            version = _numbered(folder, model)
        write_text(config, text)
    return TritonModel(
        folder=model / str(version),
        version=version,
        config=config,
        sha256=artifact.sha256,
        descriptor_size=artifact.spec.descriptor_size,
        serving=serving,
    )


def versions(model: Path) -> list[int]:
    """Return the versions of a model that are there, in order; a folder counts as Triton counts it."""
    names = [entry.name for entry in model.iterdir() if entry.is_dir()] if model.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,17}", name))


def _check_free(model: Path, text: str, artifact: AnyArtifact) -> None:
    """Raise UsageError if the model has another configuration, or its last version is this very artifact."""
    config, there = model / CONFIG_FILE, versions(model)
    if config.exists() and read_bounded(config, MAX_CONFIG_BYTES) != text.encode():
        raise UsageError(f"{config} says something else: take another --name, or pass --force to write it anew")
    if config.exists() and there:
        last = model / str(there[-1])
        for path in filter(Path.is_file, (last / name for name in ANY_MODEL)):
            with contextlib.suppress(ArtifactError):  # a damaged version is followed by a good one
                if _bare(load_artifact(path)) == _bare(artifact):
                    raise UsageError(f"{last} has this artifact already: pass --force to add it once more")


def _bare(artifact: AnyArtifact) -> AnyArtifact:
    """Return an artifact without what says where it stands: two of the same file and the same rule are then equal."""
    reference = replace(artifact.reference, name=Path(artifact.reference.name).name)
    return replace(artifact, path=Path(), reference=reference)


@contextlib.contextmanager
def _unfinished(model: Path) -> Iterator[Path]:
    """Yield a new folder in that of the model, which is removed at the end unless it got another name.

    What killed processes have left is removed first.
    """
    for entry in model.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError), left_behind(entry):
            shutil.rmtree(entry)
    folder = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=model))
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    hold(folder, handle)
    folder.chmod(model.stat().st_mode & 0o777)  # the server may be another user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _numbered(folder: Path, model: Path) -> int:
    """Give a complete folder the next version's number, and return it."""
    while True:
        version = (versions(model) or [0])[-1] + 1
        try:
            folder.rename(model / str(version))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another process was faster
                raise
        else:
            return version


def _write_version(artifact: AnyArtifact, folder: Path, serving: Serving) -> None:
    """Write the artifact, under the name that the server looks for, and all that belongs to it; then read it again."""
    engine = not isinstance(artifact, OnnxArtifact)
    name = MODEL_FILES.get(serving.backend, "model.engine" if engine else "model.onnx")
    with stage_files(force=False) as staging:
        _stage(staging, artifact, folder / name)
        if serving.backend == PYTHON:
            sha256 = staging.sha256(sidecar_path(folder / name))
            staging.write(folder / "model.py", MODEL_CODE.format(sha256=sha256).encode())
    written = load_artifact(folder / name, expect_sha256=artifact.sha256)
    check_file(folder, written.reference)


def _stage(staging: Staging, artifact: ArtifactType, target: Path) -> None:
    """Stage the artifact as `target`, with a sidecar, its reference file and external data, all in the same folder."""
    reference = replace(artifact.reference, name=Path(artifact.reference.name).name)
    stage_artifact(staging, replace(artifact, path=target, reference=reference), artifact.content())
    beside: list[FileReference] = [artifact.reference]
    if isinstance(artifact, OnnxArtifact) and artifact.external_data is not None:
        beside.append(artifact.external_data)
    for file in beside:
        with open_regular(artifact.path.parent / file.name, missing="an artifact is served with it") as stream:
            staging.write(target.parent / Path(file.name).name, iter(partial(stream.read, HASH_BLOCK_BYTES), b""))
