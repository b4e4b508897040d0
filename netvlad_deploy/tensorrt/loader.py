"""Load an engine, after proving that it is the one its sidecar describes and that it fits this machine.

A serialized engine is executable code, and TensorRT's own checks find no tampering. So its bytes are hashed again as
they are read, and TensorRT's version and the GPU are compared with the sidecar, before anything is deserialised. What
TensorRT then shows of its tensors must be what the sidecar says.
"""

import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import ArtifactError, RunError
from netvlad_deploy.spec.build_options import Gpu
from netvlad_deploy.tensorrt.api import EXTRAS, TensorRT, last_error, open_tensorrt
from netvlad_deploy.tensorrt.cuda import Cuda

LOG = logging.getLogger(__name__)

TENSOR_DTYPES: Final = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool", "UINT8": "uint8"}
"""The names of TensorRT's data types that an input or output can have."""

AMPERE: Final = (8, 0)
"""Compute capability from which on a hardware-compatible engine runs."""


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    """An input or output as TensorRT shows it; `profiles` holds the shapes of an input in each profile."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    profiles: tuple[tuple[tuple[int, ...], ...], ...]


class LoadedEngine:
    """A deserialised engine with the objects that must outlive it.

    It belongs to the GPU that was this thread's, `device`. `quiet` is held by whoever captures a CUDA graph, and by
    whatever may wait for the whole GPU, which a capture does not stand.

    Raises: DeviceUnavailableError without a GPU; ArtifactError if the file, TensorRT or the GPU is another than the
        sidecar says; RunError with TensorRT's own words if it cannot be loaded.
    """

    def __init__(self, artifact: EngineArtifact) -> None:
        self.artifact = artifact
        self.cuda = Cuda(extra=EXTRAS[artifact.flavor])
        self.device = self.cuda.device()
        self.quiet = threading.RLock()
        self.tensorrt = open_tensorrt(artifact.flavor)
        content = artifact.content()
        _check_machine(artifact, self.tensorrt, self.cuda.gpu())
        self.logger = self.tensorrt.logger(errors_only=True)
        self.runtime = self.tensorrt.runtime(self.logger)
        if artifact.options.version_compatible:  # it carries a runtime of its own, as native code
            self.runtime.engine_host_code_allowed = True
        if self.tensorrt.checks_validity:
            self._check_validity(content)
        self.engine = self.runtime.deserialize_cuda_engine(content)
        if self.engine is None:
            raise RunError(f"{artifact.path} cannot be loaded: {self.last_error}")
        self._check_tensors()

    @property
    def last_error(self) -> str:
        """Return TensorRT's last error in this thread, in its own words."""
        return last_error(self.logger, threading.get_ident()) or "no reason given"

    def tensors(self) -> Iterator[EngineTensor]:
        """Yield every input and output as TensorRT shows it."""
        engine, trt = self.engine, self.tensorrt.module
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            profiles = range(engine.num_optimization_profiles if given else 0)
            yield EngineTensor(
                name=name,
                mode="input" if given else "output",
                dtype=_dtype(engine.get_tensor_dtype(name)),
                shape=tuple(engine.get_tensor_shape(name)),
                format=engine.get_tensor_format(name).name,
                profiles=tuple(
                    tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, profile))
                    for profile in profiles
                ),
            )

    def memory_bytes(self) -> tuple[int, ...]:
        """Return the activation memory that an execution context takes in each profile."""
        profiles = range(self.engine.num_optimization_profiles)
        return tuple(self.engine.get_device_memory_size_for_profile_v2(profile) for profile in profiles)

    def _check_validity(self, content: bytes) -> None:
        validity, diagnostics = self.runtime.get_engine_validity(content)
        states, path = self.tensorrt.module.EngineValidity, self.artifact.path
        if validity == states.INVALID:
            raise ArtifactError(f"{path} is not valid here ({diagnostics}): {self.artifact.rebuild_command}")
        if validity == states.SUBOPTIMAL:
            LOG.warning("%s runs here, but not at its best (%s): %s", path, diagnostics, self.artifact.rebuild_command)

    def _check_tensors(self) -> None:
        """Raise ArtifactError unless the engine has the inputs, outputs, dtypes and profiles of its sidecar."""
        artifact = self.artifact
        shapes = [artifact.input_shapes(profile) for profile in artifact.profiles]
        found = {tensor.name: (tensor.mode, tensor.dtype, tensor.profiles) for tensor in self.tensors()}
        said: dict[str, tuple[str, str, tuple[Any, ...]]] = {
            name: ("input", artifact.dtypes[name], tuple(each[name] for each in shapes)) for name in artifact.inputs
        }
        said |= {name: ("output", artifact.dtypes[name], ()) for name in artifact.outputs}
        if found != said:
            raise ArtifactError(f"{artifact.path} has {found}, its sidecar says {said}: {artifact.rebuild_command}")


def _dtype(dtype: Any) -> str:
    return TENSOR_DTYPES.get(dtype.name, str(dtype.name))


def _check_machine(artifact: EngineArtifact, tensorrt: TensorRT, gpu: Gpu) -> None:
    """Raise ArtifactError, with all that differs, unless this TensorRT on this GPU can run the engine."""
    built = artifact.versions[artifact.flavor]
    differences = []
    if not _same_version(built, tensorrt.version, later=artifact.options.version_compatible):
        differences.append(f"it was built by {artifact.flavor} {built}, this is {tensorrt.version}")
    if not _fits_gpu(artifact, gpu):
        wanted = ", ".join(artifact.targets) or f"{artifact.gpu and artifact.gpu.name}"
        differences.append(f"it was built for {wanted}, this is {gpu.name} ({gpu.compute_capability})")
    if differences:
        found = "; ".join(differences)
        raise ArtifactError(f"{artifact.path} does not fit this machine: {found}: {artifact.rebuild_command}")


def _same_version(built: str, running: str, *, later: bool) -> bool:
    """Return whether the versions are equal; with `later`, whether the running one may be a later one of its major."""
    if built == running or not later:
        return built == running
    numbers = [[int(part) for part in re.findall(r"\d+", version)] for version in (built, running)]
    return all(numbers) and numbers[0][0] == numbers[1][0] and numbers[0] < numbers[1]


def _fits_gpu(artifact: EngineArtifact, gpu: Gpu) -> bool:
    """Return whether the engine was built for this GPU: its architectures on RTX, else the very model it ran on."""
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    if artifact.targets:
        return any(_is_target(target, 10 * major + minor) for target in artifact.targets)
    if artifact.options.hardware_compatible:
        return (major, minor) >= AMPERE
    built = artifact.gpu
    return built is not None and (built.name, built.compute_capability) == (gpu.name, gpu.compute_capability)


def _is_target(target: str, architecture: int) -> bool:
    """Return whether `SM89`, or `SM120 and later`, names this architecture."""
    found = re.fullmatch(r"SM(\d+)( and later)?", target)
    if found is None:
        return False
    return architecture == int(found[1]) or (found[2] is not None and architecture > int(found[1]))
