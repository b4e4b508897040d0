"""Run an engine with TensorRT or TensorRT-RTX on the GPU: NumPy, cuda-bindings and TensorRT alone.

A serialized engine is executable code. It is loaded only after its hash was compared with its sidecar, and only by
the TensorRT version that built it.
"""

import contextlib
from typing import Any

import numpy as np

from netvlad_deploy.arrays import Arrays
from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.errors import ArtifactError, RunError
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.cuda import Cuda
from netvlad_deploy.runtime.trt_api import EXTRAS, last_error, open_tensorrt
from netvlad_deploy.spec import FEATURES


class TensorRTRunner(Runner):
    """Run an engine: one execution context on one stream, device buffers kept from run to run.

    Raises: DeviceUnavailableError without a GPU; ArtifactError if another TensorRT version built the engine.
    """

    def __init__(self, artifact: EngineArtifact) -> None:
        super().__init__(
            artifact.flavor,
            artifact.spec,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            dtype=artifact.dtypes[FEATURES],
            profiles=artifact.profiles,
            precision=artifact.precision,
            feature_range=artifact.range,
        )
        self._dtypes = artifact.dtypes
        self._buffers: dict[str, tuple[int, int]] = {}
        self._cuda = Cuda(extra=EXTRAS[artifact.flavor])
        with contextlib.ExitStack() as undo:
            undo.callback(self._cuda.close)
            tensorrt = open_tensorrt(artifact.flavor)
            if artifact.versions.get(artifact.flavor) != tensorrt.version:
                raise ArtifactError(
                    f"{artifact.path} was built by {artifact.flavor} {artifact.versions.get(artifact.flavor)}, this is "
                    f"{tensorrt.version}: {artifact.rebuild_command}"
                )
            self._logger = tensorrt.logger()
            self._runtime = tensorrt.module.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(artifact.path.read_bytes())
            self._context = self._engine and self._engine.create_execution_context()
            if self._context is None:
                raise RunError(f"{artifact.path} cannot be loaded: {last_error(self._logger) or 'no reason given'}")
            undo.pop_all()

    def close(self) -> None:
        """Release the context, the engine, the buffers and the stream, in this order."""
        if self._open:
            super().close()
            self._context = self._engine = self._runtime = None
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._cuda.close()

    def _run(self, feeds: Arrays) -> Arrays:
        for name, array in feeds.items():
            if not self._context.set_input_shape(name, array.shape):
                self._fail(f"shape {array.shape} of {name}")
            self._cuda.copy_to_device(self._bind(name, array.nbytes), array)
        if missing := self._context.infer_shapes():
            self._fail(f"inputs without a shape: {missing}")
        results = {
            name: np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name]) for name in self.outputs
        }
        addresses = {name: self._bind(name, array.nbytes) for name, array in results.items()}
        if not self._context.execute_async_v3(int(self._cuda.stream)):
            self._fail("execution")
        for name, array in results.items():
            self._cuda.copy_to_host(array, addresses[name])
        self._cuda.synchronize()
        return results

    def _bind(self, name: str, size_bytes: int) -> int:
        """Return device memory for a tensor, growing its buffer if it is too small, and tell the context."""
        address, held_bytes = self._buffers.get(name, (0, 0))
        if held_bytes < size_bytes:
            if held_bytes:
                del self._buffers[name]
                self._cuda.free(address)
            address = self._cuda.allocate(size_bytes)
            self._buffers[name] = (address, size_bytes)
            if not self._context.set_tensor_address(name, address):
                self._fail(f"address of {name}")
        return address

    def _fail(self, what: str) -> Any:
        raise RunError(f"{self.name} refused {what}: {last_error(self._logger) or 'no reason given'}")
