"""Open anything that can compute a descriptor, on the backend that was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from netvlad_deploy.artifact import (
    REFERENCE_SUFFIX,
    Artifact,
    EngineArtifact,
    OnnxArtifact,
    check_file,
    copied,
    load_artifact,
)
from netvlad_deploy.errors import UsageError
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import CPU, PROFILED, PROVIDERS
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.support.formats import is_checkpoint
from netvlad_deploy.support.require import require

ENGINES: Final = "tensorrt"
"""The backend of engines, of both flavors."""

BACKENDS: Final = (*PROVIDERS, "strict", ENGINES, "torch", "oracle")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file and the backend to run it on, None for the file's own.

    `expect_sha256` is as for `load_artifact`; `artifact` is what that found at `path`, None if it was not asked yet, or
    the file is a checkpoint.
    """

    path: Path
    backend: str | None = None
    expect_sha256: str | None = None
    artifact: OnnxArtifact | EngineArtifact | None = None

    @property
    def name(self) -> str:
        """Return how reports call it."""
        return self.path.name if self.backend is None else f"{self.path.name} on {self.backend}"

    def pinned(self) -> "Candidate":
        """Return the candidate with its artifact, loaded once: what is asked of it later is asked of that.

        Were the path read again, another sidecar could stand there by then, and its images be given to this network.

        Raises: ArtifactError if the artifact is not what its sidecar or the expected hash says.
        """
        if self.artifact is not None or is_checkpoint(self.path):
            return self
        artifact = load_artifact(self.path, expect_sha256=self.expect_sha256)
        return replace(self, artifact=artifact, expect_sha256=artifact.sha256)

    def open(self, *, threads: int | None = None, runtime_cache: Path | None = None) -> Runner:
        """Open the runner; see `open_runner`."""
        return open_runner(
            self.artifact or self.path,
            backend=self.backend,
            threads=threads,
            expect_sha256=self.expect_sha256,
            runtime_cache=runtime_cache,
        )


def open_runner(
    source: Artifact | Path | str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    prefix: str = "",
    profile: AnyProfile | None = None,
    expect_sha256: str | None = None,
    runtime_cache: Path | None = None,
) -> Runner:
    """Open an artifact or a checkpoint for running.

    Args:
        source: an artifact, its file, or a checkpoint file.
        backend: `onnxruntime` (ONNX files on the CPU), `onnxruntime-cuda`, `onnxruntime-tensorrt` or `onnxruntime-rtx`
            (the same on a GPU), `strict` (on the CPU, every FP16 tensor rounded), `tensorrt` (engines), `torch`
            (either's unfolded parameters, or a checkpoint) or `oracle` (either's unfolded parameters); by default the
            first that fits the file. There is no fallback.
        threads: CPU threads of one operator, by default all cores.
        prefix: what stands before the layer's names in a checkpoint.
        profile: the shapes that `onnxruntime-tensorrt` and `onnxruntime-rtx` build for, by default the
            artifact's usual one.
        expect_sha256: hash that the file of an artifact must have, from a source you trust.
        runtime_cache: file of the kernels that TensorRT-RTX compiles at run time, see `TensorRTRunner`.

    Raises: UsageError if the backend cannot run this file; ArtifactError, InputError, MissingDependencyError,
        DeviceUnavailableError.
    """
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if profile is not None and backend not in PROFILED:
        raise UsageError(f"a profile is for {' and '.join(PROFILED)}, not for {backend}: leave it out")
    if isinstance(source, str | Path):
        path = Path(source)
        if is_checkpoint(path):
            if expect_sha256 is not None:
                raise UsageError(f"{path} is a checkpoint: an expected hash is for ONNX files and engines")
            return _open_parameters(path, backend or "torch", threads, prefix)
        source = load_artifact(path, expect_sha256=expect_sha256)
    if backend in ("torch", "oracle"):
        if source.images is not None:
            raise UsageError(f"{source.path} has a backbone, which {backend} has not: leave the backend out")
        with copied(source.path.parent, source.reference) as reference:
            return _open_parameters(reference, backend, threads, "")
    if isinstance(source, OnnxArtifact):
        if runtime_cache is not None:
            raise UsageError(f"{source.path} is no engine: leave the runtime cache out")
        return _open_onnx(source, backend or CPU, threads, profile)
    return _open_engine(source, backend or ENGINES, runtime_cache)


def _open_onnx(artifact: OnnxArtifact, backend: str, threads: int | None, profile: AnyProfile | None) -> Runner:
    if backend == "strict":
        from netvlad_deploy.runtime.strict_runner import StrictRunner

        return StrictRunner(artifact, threads=threads)
    if backend not in PROVIDERS:
        raise UsageError(f"{artifact.path} cannot run on {backend}: leave --backend out for {CPU}")
    from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner

    return OnnxRuntimeRunner(artifact, backend=backend, profile=profile, threads=threads)


def _open_engine(artifact: Artifact, backend: str, runtime_cache: Path | None) -> Runner:
    if not isinstance(artifact, EngineArtifact):
        raise UsageError(f"{artifact.path} is neither an ONNX artifact nor an engine")
    if backend != ENGINES:
        raise UsageError(f"{artifact.path} cannot run on {backend}: leave --backend out for {ENGINES}")
    check_lineage(artifact)
    from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner

    return TensorRTRunner(artifact, runtime_cache=runtime_cache)


def check_lineage(engine: EngineArtifact) -> None:
    """Raise ArtifactError if the ONNX file or the reference that stand where the engine was built are others now.

    Neither is needed to run an engine, so either may be missing.
    """
    for file in (engine.parent, engine.reference):
        if file is not None and (engine.path.parent / file.name).exists():
            check_file(engine.path.parent, file, cure=engine.rebuild_command)


def parity_backend(artifact: Artifact | None) -> str | None:
    """Return the backend that shows what an artifact's precision costs, None for its own.

    ONNX Runtime computes FP16 in FP32 on a CPU, so only strict rounding shows what an FP16 graph gives elsewhere.
    """
    return "strict" if isinstance(artifact, OnnxArtifact) and artifact.precision.startswith("fp16") else None


def _open_parameters(path: Path, backend: str, threads: int | None, prefix: str) -> Runner:
    if backend == "oracle":
        if not path.name.endswith(REFERENCE_SUFFIX):
            raise UsageError(f"the oracle reads NAME{REFERENCE_SUFFIX}, not {path.name}: export the checkpoint first")
        return OracleRunner(load_reference(path))
    if backend != "torch":
        raise UsageError(f"{path} cannot run on {backend}: choose torch or oracle")
    require("torch", extra="export")
    from netvlad_deploy.models.checkpoints import load_checkpoint
    from netvlad_deploy.runtime.torch_runner import TorchRunner

    return TorchRunner(load_checkpoint(path, prefix=prefix), threads=threads)


def candidates_of(
    paths: Sequence[Path], backends: Sequence[str], *, expect_sha256: str | None = None
) -> list[Candidate]:
    """Return every artifact on every backend that was asked for, or each on its own."""
    if expect_sha256 is not None and len(paths) > 1:
        raise UsageError(f"one hash is expected of {len(paths)} files: name one of them")
    return [
        Candidate(path=path, backend=backend, expect_sha256=expect_sha256)
        for path in paths
        for backend in (backends or (None,))
    ]
