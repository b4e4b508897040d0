"""What Triton's Python backend runs in a process of its own: requests in, responses out.

Source: Triton's python_backend for the class, its methods and its arguments.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final

import numpy as np

from netvlad_deploy.errors import ArtifactError, DeviceUnavailableError, InputError, NetVLADDeployError
from netvlad_deploy.serving.config import ANY_MODEL, IMAGE, PIXELS
from netvlad_deploy.serving.served import Served
from netvlad_deploy.spec.items import Content
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.machine import available_cores
from netvlad_deploy.support.require import pip_line

BINDING: Final = "triton_python_backend_utils"
"""The module that the backend gives to a model's process; nothing else has it."""

KNOWN: Final = np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5


class ServedModel:
    """A model of Triton; `sidecar_sha256` is the hash of the sidecar, which has the file's hash and the resize rule."""

    sidecar_sha256: ClassVar[str] = ""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the artifact in the version's folder.

        Raises: an error of Triton's, which then does not serve the model, with the line of the error that says why.
        """
        self._triton = importlib.import_module(BINDING)
        try:
            check_binding(self._triton)
            self._served = self._open(args)
        except NetVLADDeployError as error:
            raise self._triton.TritonModelException(str(error)) from None

    def _open(self, args: Mapping[str, str]) -> Served:
        folder = Path(args["model_repository"]) / args["model_version"]
        path = next(filter(Path.is_file, (folder / name for name in ANY_MODEL)), None)
        if path is None:
            raise ArtifactError(f"{folder} has no artifact: package it again")
        config = json.loads(args["model_config"])
        instances = sum(int(group.get("count", 1)) for group in config.get("instance_group", ())) or 1
        return Served(
            path,
            sidecar_sha256=self.sidecar_sha256,
            gpu=args["model_instance_kind"] == "GPU",
            threads=max(1, available_cores() // instances),
            batch=int(config["max_batch_size"]),
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response to each request, in order: its descriptors, or the line that says why it has none."""
        read = [self._contents(request) for request in requests]
        good = [each for each in read if not isinstance(each, NetVLADDeployError)]
        answers = iter(self._served.answer(good))
        found = [each if isinstance(each, NetVLADDeployError) else next(answers) for each in read]
        return [self._response(each) for each in found]

    def finalize(self) -> None:
        """Close the artifact."""
        self._served.close()

    def _contents(self, request: Any) -> Sequence[Content] | NetVLADDeployError:
        """Return the images of a request: the encoded ones, or views of the pixels."""
        tensors = {name: self._triton.get_input_tensor_by_name(request, name) for name in (IMAGE, PIXELS)}
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        if len(given) != 1:
            return InputError(f"a request has {IMAGE} or {PIXELS}, got {' and '.join(given) or 'neither'}")
        name, tensor = next(iter(given.items()))
        try:
            values = tensor.as_numpy()
        except (ValueError, TypeError, self._triton.TritonModelException) as error:
            return InputError(f"{name} cannot be read: {error}")
        if not values.ndim or not values.size:
            return InputError(f"{name} has shape {values.shape}, expected at least one image")
        return [bytes(value) for value in values.ravel()] if name == IMAGE else list(values)

    def _response(self, answer: Array | NetVLADDeployError) -> Any:
        if isinstance(answer, NetVLADDeployError):
            error = self._triton.TritonError
            code = error.INVALID_ARG if isinstance(answer, InputError) else error.INTERNAL
            return self._triton.InferenceResponse(error=error(" ".join(str(answer).split()), code))
        return self._triton.InferenceResponse([self._triton.Tensor(DESCRIPTOR, np.ascontiguousarray(answer))])


def check_binding(triton: ModuleType) -> None:
    """Send a known array through Triton's binding to NumPy and back, as requests and descriptors go.

    A binding that was compiled for NumPy 1 reads wrong values under NumPy 2, without an error. `Tensor` alone keeps the
    array that it is given, so the values go through a second tensor.

    Raises: DeviceUnavailableError if they come back as others.
    """
    try:
        found = triton.Tensor.from_dlpack("back", triton.Tensor("known", KNOWN)).as_numpy()
    except (ValueError, TypeError, AttributeError, triton.TritonModelException) as error:
        raise DeviceUnavailableError(f"Triton's binding to NumPy does not work: {error}") from error
    if found.dtype != KNOWN.dtype or not np.array_equal(found, KNOWN):
        raise DeviceUnavailableError(
            f"this server's binding reads wrong values under NumPy {np.__version__}, for which it was not built: "
            f"run {pip_line('install', 'numpy<2')}, or take a newer server"
        )
