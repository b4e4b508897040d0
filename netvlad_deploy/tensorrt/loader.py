"""Load an engine, after checking that it is the one of its sidecar and that it fits this machine.

A serialised engine is executable code, and TensorRT's own checks find no tampering. So its bytes are hashed again as
they are read, and TensorRT's version and the GPU are compared with the sidecar, before anything is deserialised.
Afterwards the tensors of the engine must be those of the sidecar.
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
from netvlad_deploy.tensorrt.api import EXTRAS, TensorRT, open_tensorrt
from netvlad_deploy.tensorrt.cuda import Cuda
from netvlad_deploy.tensorrt.device_output import OutputMemory

LOG = logging.getLogger(__name__)

TENSOR_DTYPES: Final = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool", "UINT8": "uint8"}
"""NumPy's name of each data type of TensorRT that an input or output can have."""

AMPERE: Final = (8, 0)
"""Least compute capability of a GPU that runs a hardware-compatible engine."""


@dataclass(frozen=True, kw_only=True)
class EngineTensor:
    """An input or output of a loaded engine; `profiles` holds the least, usual and largest shape in each profile."""

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    format: str
    profiles: tuple[tuple[tuple[int, ...], ...], ...]


class LoadedEngine:
    """A deserialised engine with the objects that must outlive it.

    It is on the GPU that was this thread's current one, `device`. The slots of an engine share `capture_lock`: whoever
    captures a CUDA graph holds it, and so does all that may wait for the whole GPU, which would break a capture.

    Raises: DeviceUnavailableError without a GPU; ArtifactError if the file, TensorRT or the GPU differs from the
        sidecar; RunError with TensorRT's own words if the engine cannot be loaded.
    """

    def __init__(self, artifact: EngineArtifact) -> None:
        self.artifact = artifact
        self.cuda = Cuda(extra=EXTRAS[artifact.flavor])
        self.device = self.cuda.device()
        self.capture_lock = threading.RLock()
        self.output_memory = OutputMemory(self.cuda, self.device, self.capture_lock)
        self.tensorrt = open_tensorrt(artifact.flavor, errors_only=True)
        content = artifact.content()
        _check_machine(artifact, self.tensorrt, self.cuda.gpu())
        self.runtime = self.tensorrt.runtime()
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
        """Return TensorRT's last error in this thread, in its own words; other threads may fail at the same time."""
        return self.tensorrt.last_error(threading.get_ident()) or "no reason given"

    def tensors(self) -> Iterator[EngineTensor]:
        """Yield every input and output of the engine."""
        engine, trt = self.engine, self.tensorrt.module
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = str(engine.get_tensor_dtype(name).name)
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            profiles = range(engine.num_optimization_profiles if given else 0)
            yield EngineTensor(
                name=name,
                mode="input" if given else "output",
                dtype=TENSOR_DTYPES.get(dtype, dtype),
                shape=tuple(engine.get_tensor_shape(name)),
                format=engine.get_tensor_format(name).name,
                profiles=tuple(
                    tuple(tuple(shape) for shape in engine.get_tensor_profile_shape(name, profile))
                    for profile in profiles
                ),
            )

    def memory_bytes(self) -> tuple[int, ...]:
        """Return the bytes of activation memory that an execution context takes in each profile."""
        profiles = range(self.engine.num_optimization_profiles)
        return tuple(self.engine.get_device_memory_size_for_profile_v2(profile) for profile in profiles)

    def _check_validity(self, content: bytes) -> None:
        validity, diagnostics = self.runtime.get_engine_validity(content)
        states, path = self.tensorrt.module.EngineValidity, self.artifact.path
        if validity == states.INVALID:
            raise ArtifactError(f"{path} is not valid here ({diagnostics}): {self.artifact.cure}")
        if validity == states.SUBOPTIMAL:
            LOG.warning("%s runs here, but not at its best (%s): %s", path, diagnostics, self.artifact.cure)

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
            raise ArtifactError(f"{artifact.path} has {found}, its sidecar says {said}: {artifact.cure}")


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
        raise ArtifactError(f"{artifact.path} does not fit this machine: {found}: {artifact.cure}")


def _same_version(built: str, running: str, *, later: bool) -> bool:
    """Return True if the versions are equal, or with `later` if the running one is a later one of the same major."""
    if built == running or not later:
        return built == running
    numbers = [[int(part) for part in re.findall(r"\d+", version)] for version in (built, running)]
    return all(numbers) and numbers[0][0] == numbers[1][0] and numbers[0] < numbers[1]


def _fits_gpu(artifact: EngineArtifact, gpu: Gpu) -> bool:
    """Return True if the engine was built for this GPU.

    An RTX engine is for architectures, a hardware-compatible one for GPUs since Ampere, any other for one model of GPU.
    """
    major, minor = (int(part) for part in gpu.compute_capability.split("."))
    if artifact.targets:
        return any(_is_target(target, 10 * major + minor) for target in artifact.targets)
    if artifact.options.hardware_compatible:
        return (major, minor) >= AMPERE
    built = artifact.gpu
    return built is not None and (built.name, built.compute_capability) == (gpu.name, gpu.compute_capability)


def _is_target(target: str, architecture: int) -> bool:
    """Return True if a target such as `SM89` or `SM120 and later` names this architecture.

    >>> _is_target("SM89", 89), _is_target("SM89", 90), _is_target("SM80 and later", 90)
    (True, False, True)
    """
    found = re.fullmatch(r"SM(\d+)( and later)?", target)
    if found is None:
        return False
    return architecture == int(found[1]) or (found[2] is not None and architecture > int(found[1]))
