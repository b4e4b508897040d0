"""A double of the module that Triton's Python backend gives to a model's process."""

from types import SimpleNamespace
from typing import Any


class TritonError(Exception):
    """What a request is answered with, and what is raised where a tensor cannot be read."""

    INVALID_ARG, INTERNAL = 1, 2

    def __init__(self, text: str, _: int = 0) -> None:
        super().__init__(text)


def binding() -> Any:
    """Return the module; a request is a mapping of tensors, a response its tensors or its error."""
    return SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: request.get(name),
        TritonModelException=TritonError,
        TritonError=TritonError,
        InferenceResponse=lambda tensors=None, error=None: error or tensors,
        Tensor=lambda _, values: values,
    )
