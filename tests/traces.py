"""Trace a module with `torch.onnx.export` once in a test run, whichever test and worker asks first.

Almost all time of an export is torch's, and many tests export modules that differ in their weights alone. torch traces
without the values of weights, so what it returned is kept in a folder that all workers of a run share, under a hash of
everything else that torch was given: the classes of the module, the shapes of its tensors, the examples and the
options. Another module of the same hash gets the same graph with its own weights. All that the package does before and
after runs in each test.

The optimiser of the graph does see values: it may remove a product with ones, or join equal constants. So tensors of
one value count with it, equal tensors count as equal, and a graph is kept only if each of its floating-point constants
is a tensor of the module.

Nothing is kept, and nothing taken, while a test has patched functions that a forward pass may call: another forward
pass would stand behind the same name. A module that holds a closure (a hook, a local class) is never kept either.
"""

import functools
import hashlib
import io
import os
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from netvlad_deploy.export import onnx_model  # noqa: F401 - its modules must be there before a test patches one
from netvlad_deploy.models import assembly  # noqa: F401 - the same

WATCHED = (
    *(f"netvlad_deploy.{room}" for room in ("export.fold", "models", "spec", "oracle")),
    *("tests.", "torch.nn"),
)
"""What the names of the modules begin with whose functions a test may replace, and a forward pass may call."""

FLOATS = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE))


def content(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor's values."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


class Hasher(pickle.Pickler):
    """A pickler that writes the type and shape of a tensor in its place, and the number of the first that equals it."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=4)
        self._seen: dict[bytes, int] = {}

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            values = content(value)
            number = self._seen.setdefault(values, len(self._seen))
            size = value.element_size()
            only = values[:size] if values == values[:size] * value.numel() else b""
            return str, (f"{type(value)} {value.dtype} {tuple(value.shape)} {value.requires_grad} {number} {only!r}",)
        if isinstance(value, types.MethodType):
            raise pickle.PicklingError("a method says no more than the name of its function")
        if type(value).__module__ == "torch.export.dynamic_shapes":
            return str, (f"{type(value)} {sorted(vars(value).items())}",)
        return NotImplemented


def digest(*given: Any) -> str | None:
    """Return a hash of all that was given but weights, None if it holds what has no name, as a closure."""
    stream = io.BytesIO()
    try:
        Hasher(stream).dump(given)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(stream.getvalue()).hexdigest()


def functions(module: types.ModuleType) -> dict[str, int]:
    """Return the identity of all that has a name in a module, and of the members of its classes.

    `__slotnames__` is what copying or pickling an instance leaves in its class.
    """
    found = {name: id(value) for name, value in vars(module).items()}
    for name, value in vars(module).items():
        if isinstance(value, type) and value.__module__ == module.__name__:
            members = vars(value).items()
            found |= {f"{name}.{member}": id(each) for member, each in members if member != "__slotnames__"}
    return found


class Watch:
    """What the watched modules had when they were first seen."""

    def __init__(self) -> None:
        self.first: dict[str, dict[str, int]] = {}
        self.patched()

    def patched(self) -> bool:
        """Return True if a watched module has other functions than at first."""
        for name, module in list(sys.modules.items()):
            if name.startswith(WATCHED):
                now = functions(module)
                if not self.first.setdefault(name, now).items() <= now.items():  # an import adds names
                    return True
        return False


def torchlib_once(patch: pytest.MonkeyPatch) -> None:
    """Let torch make its table of operators once in a process, not anew in each export, which only reads it."""
    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def is_shared(model: onnx.ModelProto, weights: dict[str, torch.Tensor]) -> bool:
    """Return True if each floating-point constant of a graph is a tensor of its module, unchanged.

    Torch joins the two bounds of a range into one operator, with constants of its own: those of a single value are
    taken where the module has a tensor of that value, which counts in the hash.
    """
    single = {content(tensor) for tensor in weights.values() if tensor.numel() == 1}
    return all(
        (tensor.name in weights and tensor.raw_data == content(weights[tensor.name])) or tensor.raw_data in single
        for tensor in model.graph.initializer
        if tensor.data_type in FLOATS
    )


def traced_once(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return `torch.onnx.export`, but what it has returned before in this run is read from the folder."""
    watch = Watch()

    @functools.wraps(export)
    def traced(module: torch.nn.Module, examples: tuple[torch.Tensor, ...], **options: Any) -> Any:
        key = None if watch.patched() else digest(module, examples, options, torch.get_default_dtype())
        if key is None:
            return export(module, examples, **options)
        kept, weights = folder / key, weights_of(module)
        if kept.exists():
            model = onnx.ModelProto.FromString(kept.read_bytes())
            for tensor in model.graph.initializer:
                if tensor.name in weights:
                    tensor.raw_data = content(weights[tensor.name])
            return torch.onnx.ONNXProgram(onnx_ir.from_proto(model), None)
        program = export(module, examples, **options)
        model = onnx_ir.to_proto(program.model)
        if is_shared(model, weights):
            own = folder / f"{key}.{os.getpid()}"
            own.write_bytes(model.SerializeToString())
            own.rename(kept)  # whole, or not there: another worker may look at any time
        return program

    return traced
