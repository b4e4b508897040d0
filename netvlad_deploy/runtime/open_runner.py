"""Open anything that can compute a descriptor, on the backend that was asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.artifact import (
    REFERENCE_SUFFIX,
    AnyArtifact,
    Artifact,
    EngineArtifact,
    OnnxArtifact,
    check_file,
    copied,
    load_artifact,
)
from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, InputError, UsageError
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.execution_providers import CPU, PROFILED, PROVIDERS
from netvlad_deploy.runtime.onnxruntime_runner import OnnxRuntimeRunner
from netvlad_deploy.runtime.openvino_runner import OPENVINO, OpenVinoRunner
from netvlad_deploy.runtime.oracle_runner import OracleRunner
from netvlad_deploy.runtime.strict_runner import StrictRunner
from netvlad_deploy.runtime.unfolded import Unfolded, unfolded_module
from netvlad_deploy.spec.backends import BACKENDS, NO_GRAPHS, PEERS, TORCH_COMPILE, UNFOLDED
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.spec.layer import NetVLADSpec
from netvlad_deploy.support.formats import is_checkpoint
from netvlad_deploy.support.limits import check_choice
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.require import require

ENGINES: Final = "tensorrt"
"""The backend of engines, of both flavors."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A file of weights. It has no sidecar, so nothing is known of its content until it is opened."""

    path: Path


class Candidate:
    """An artifact or a checkpoint, and the backend to run it on; None for the usual backend of such a file.

    An artifact holds the bytes that were hashed until the candidate is opened: these bytes run, and `source` describes
    them, even if another file stands at the path by then.

    Args:
        path: the file of the artifact or of the checkpoint.
        expect_sha256: hash that the file of an artifact must have, from a source you trust.
        hold: False where the candidate is not opened in this process.
        unfolded: where the unfolded module of an artifact is read from, for the backends that run it.

    `label` is its name in reports, where that is not the file's and the backend's; `stands_for` the artifact that a
    file was made of to be compared with it; `reason` says why it cannot run here, where that is known before it is
    opened.

    Raises: ArtifactError if the artifact differs from its sidecar or the expected hash; UsageError if a hash is
        expected of a checkpoint.

    >>> from netvlad_deploy.models.netvlad import initialize
    >>> from netvlad_deploy import Candidate, export_onnx
    >>> from netvlad_deploy.spec.layer import NetVLADSpec
    >>> artifact = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "m.onnx")
    >>> candidate = Candidate(path=artifact.path, backend="oracle", expect_sha256=artifact.sha256)
    >>> candidate.name, candidate.source == artifact
    ('m.onnx on oracle', True)
    >>> with candidate.open() as runner:
    ...     runner.outputs
    ('descriptor', 'soft_assignment', 'residual_sum')
    """

    def __init__(
        self,
        *,
        path: Path | str,
        backend: str | None = None,
        expect_sha256: str | None = None,
        hold: bool = True,
        unfolded: Unfolded | None = None,
    ) -> None:
        self.source = _load(Path(path), expect_sha256, hold=hold)
        self.backend, self.unfolded = backend, unfolded or Unfolded()
        self.label = self.reason = ""
        self.stands_for: Path | None = None

    @classmethod
    def of(
        cls,
        source: AnyArtifact | Checkpoint,
        *,
        backend: str | None = None,
        unfolded: Unfolded | None = None,
        label: str = "",
        stands_for: Path | None = None,
        reason: str = "",
    ) -> "Candidate":
        """Return the candidate of an artifact that is loaded already, or of a checkpoint."""
        candidate = cls.__new__(cls)
        candidate.source, candidate.backend, candidate.unfolded = source, backend, unfolded or Unfolded()
        candidate.label, candidate.stands_for, candidate.reason = label, stands_for, reason
        return candidate

    @classmethod
    def asked(cls, request: Mapping[str, Any]) -> "Candidate":
        """Return the candidate of a `request`, its file read again and compared with its hash."""
        unfolded = from_record(Unfolded, request["unfolded"])
        return cls(**{name: request[name] for name in ("path", "backend", "expect_sha256")}, unfolded=unfolded)

    @property
    def request(self) -> dict[str, Any]:
        """Return all that another process needs to open it, as JSON has it."""
        return {
            "path": str(self.path),
            "backend": self.backend,
            "expect_sha256": None if self.artifact is None else self.artifact.sha256,
            "unfolded": asdict(self.unfolded),
        }

    @property
    def path(self) -> Path:
        """Return the path of the file."""
        return self.source.path

    @property
    def origin(self) -> Path:
        """Return the path of the file whose weights it has: another candidate of the same must agree with it."""
        return self.stands_for or self.path

    @property
    def artifact(self) -> AnyArtifact | None:
        """Return the artifact, None for a checkpoint."""
        return None if isinstance(self.source, Checkpoint) else self.source

    @property
    def name(self) -> str:
        """Return the file's name, with the backend if one was chosen, as reports have it."""
        return self.label or (self.path.name if self.backend is None else f"{self.path.name} on {self.backend}")

    def on(self, backend: str | None) -> "Candidate":
        """Return the same artifact or checkpoint on another backend."""
        return self.of(self.source, backend=backend, unfolded=self.unfolded)

    def open(
        self, *, threads: int | None = None, runtime_cache: Path | None = None, lineage: bool = True, spin: bool = True
    ) -> Runner:
        """Open the runner; see `open_runner`."""
        options: dict[str, Any] = {"threads": threads, "runtime_cache": runtime_cache, "lineage": lineage, "spin": spin}
        return open_runner(self.source, backend=self.backend, **options)

    def open_timed(self, *, threads: int) -> Runner:
        """Open the runner for `bench`, which also runs unfolded modules of pipelines in torch, and compiled ones.

        Raises: DeviceUnavailableError if an unfolded module cannot be had, in the words of the error that says why; and
            as `open_runner`.
        """
        if self.artifact is None or self.backend not in UNFOLDED:
            return self.open(threads=threads)
        require("torch", extra="export")
        from netvlad_deploy.runtime.torch_runner import TorchRunner

        self.artifact.release()
        try:
            module = unfolded_module(self.artifact, self.unfolded)
        except (ArtifactError, InputError, UsageError) as error:
            raise DeviceUnavailableError(str(error)) from error
        return TorchRunner(module, threads=threads, compiled=self.backend == TORCH_COMPILE)


def _load(path: Path, expect_sha256: str | None, *, hold: bool) -> AnyArtifact | Checkpoint:
    if not is_checkpoint(path):
        return load_artifact(path, expect_sha256=expect_sha256, hold=hold)
    if expect_sha256 is not None:
        raise UsageError(f"{path} is a checkpoint: an expected hash is for ONNX files and engines")
    return Checkpoint(path=path)


def open_runner(
    source: Artifact | Checkpoint | Path | str,
    *,
    backend: str | None = None,
    threads: int | None = None,
    prefix: str = "",
    profile: AnyProfile | None = None,
    expect_sha256: str | None = None,
    runtime_cache: Path | None = None,
    lineage: bool = True,
    spin: bool = True,
) -> Runner:
    """Open an artifact or a checkpoint for running.

    Args:
        source: an artifact, its file, or a checkpoint file.
        backend: `onnxruntime` (ONNX files on the CPU), `onnxruntime-cuda`, `onnxruntime-tensorrt` or `onnxruntime-rtx`
            (the same on a GPU), `openvino` (ONNX files on the CPU, in FP32), `strict` (on the CPU, every FP16 tensor
            rounded), `tensorrt` (engines), `tensorrt-no-graphs` (without CUDA graphs), `torch` (either's unfolded
            parameters, or a checkpoint) or `oracle` (those parameters); by default what fits the file. No fallback.
        threads: CPU threads of one operator, by default all cores.
        prefix: the text before the layer's names in a checkpoint.
        profile: the shapes that `onnxruntime-tensorrt` and `onnxruntime-rtx` build for, by default the usual one.
        expect_sha256: hash that the file of an artifact must have, from a source you trust.
        runtime_cache: file of the kernels that TensorRT-RTX compiles at run time, see `TensorRTRunner`.
        lineage: False where `check_lineage` was asked about this engine already.
        spin: False where others need the cores, see `OnnxRuntimeRunner`.

    Raises: UsageError if the backend cannot run this file; ArtifactError, InputError or one of UNAVAILABLE.

    >>> import numpy as np
    >>> from netvlad_deploy import export_onnx, open_runner
    >>> from netvlad_deploy.models.netvlad import initialize
    >>> from netvlad_deploy.spec.layer import NetVLADSpec
    >>> artifact = export_onnx(initialize(NetVLADSpec(num_clusters=2, feature_size=4), seed=0), "head.onnx")
    >>> with open_runner(artifact) as runner:
    ...     runner.run({"features": np.ones((1, 5, 4), np.float32)})["descriptor"].shape  # (B, D*K)
    (1, 8)
    """
    _check_backend(backend, profile)
    if isinstance(source, str | Path):
        source = _load(Path(source), expect_sha256, hold=True)
    if isinstance(source, Checkpoint):
        return _open_parameters(source.path, backend or "torch", threads, prefix)
    if backend in ("torch", "oracle"):
        return _open_unfolded(source, backend, threads)
    if isinstance(source, OnnxArtifact):
        return _open_onnx(source, backend or CPU, threads, profile, runtime_cache, spin=spin)
    return _open_engine(source, backend or ENGINES, runtime_cache, lineage=lineage)


def _check_backend(backend: str | None, profile: AnyProfile | None) -> None:
    """Raise UsageError unless this backend opens files, and takes a profile if one is given."""
    if backend in PEERS:
        raise UsageError(f"backend {backend} is for bench alone: choose one of {', '.join(BACKENDS)}")
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
    if profile is not None and backend not in PROFILED:
        raise UsageError(f"a profile is for {' and '.join(PROFILED)}, not for {backend}: leave it out")


def _open_unfolded(artifact: Artifact, backend: str, threads: int | None) -> Runner:
    """Open the unfolded parameters of an artifact; its own file is compared with its hash, and does not run."""
    if artifact.images is not None:
        raise UsageError(f"{artifact.path} has a backbone, which {backend} has not: leave the backend out")
    if not isinstance(artifact.spec, NetVLADSpec):
        raise UsageError(
            f"{artifact.path} is {artifact.spec.name}, which {backend} does not run: leave the backend out"
        )
    if isinstance(artifact, OnnxArtifact):
        artifact.check_weights()
    artifact.release()
    with copied(artifact.path.parent, artifact.reference) as reference:
        return _open_parameters(reference, backend, threads, "")


def _open_onnx(
    artifact: OnnxArtifact,
    backend: str,
    threads: int | None,
    profile: AnyProfile | None,
    runtime_cache: Path | None,
    *,
    spin: bool,
) -> Runner:
    if runtime_cache is not None:
        raise UsageError(f"{artifact.path} is no engine: leave the runtime cache out")
    if backend == "strict":
        return StrictRunner(artifact, threads=threads)
    if backend == OPENVINO:
        return OpenVinoRunner(artifact, threads=threads)
    if backend not in PROVIDERS:
        raise UsageError(f"{artifact.path} cannot run on {backend}: leave --backend out for {CPU}")
    return OnnxRuntimeRunner(artifact, backend=backend, profile=profile, threads=threads, spin=spin)


def _open_engine(artifact: Artifact, backend: str, runtime_cache: Path | None, *, lineage: bool) -> Runner:
    if not isinstance(artifact, EngineArtifact):
        raise UsageError(f"{artifact.path} is neither an ONNX artifact nor an engine")
    if backend not in (ENGINES, NO_GRAPHS):
        raise UsageError(f"{artifact.path} cannot run on {backend}: leave --backend out for {ENGINES}")
    if lineage:
        check_lineage(artifact)
    from netvlad_deploy.tensorrt.tensorrt_runner import TensorRTRunner

    return TensorRTRunner(artifact, cuda_graphs=backend != NO_GRAPHS, runtime_cache=runtime_cache)


def check_lineage(engine: EngineArtifact, known: Mapping[str, str] | None = None) -> None:
    """Raise ArtifactError if the ONNX file or the reference that stand where the engine was built are others now.

    Neither is needed to run an engine, so either may be missing. `known` has the SHA-256 of those, by the names that
    the engine has for them, that were read already.
    """
    for file in (engine.parent, engine.reference):
        if file is not None and (engine.path.parent / file.name).exists():
            check_file(engine.path.parent, file, cure=engine.cure, found=(known or {}).get(file.name))


def parity_backend(artifact: Artifact | None) -> str | None:
    """Return the backend that shows the cost of an artifact's precision, None for its own.

    ONNX Runtime computes FP16 in FP32 on a CPU, so only strict rounding shows the results of an FP16 graph elsewhere.
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
    paths: Sequence[Path],
    backends: Sequence[str],
    *,
    expect_sha256: str | None = None,
    hold: bool = True,
    unfolded: Unfolded | None = None,
) -> list[Candidate]:
    """Return every file on every backend that was asked for, or each on its own; each file is loaded once.

    Raises: UsageError if one hash is expected of several files; and as `Candidate`.
    """
    if expect_sha256 is not None and len(paths) > 1:
        raise UsageError(f"one hash is expected of {len(paths)} files: name one of them")
    sources = {path: _load(path, expect_sha256, hold=hold) for path in dict.fromkeys(paths)}
    return [
        Candidate.of(sources[path], backend=backend, unfolded=unfolded)
        for path in paths
        for backend in (backends or (None,))
    ]
