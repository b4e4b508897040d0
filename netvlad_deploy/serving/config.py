"""The configuration of a model in Triton, as text: inputs, outputs, batches, instances, versions and warm-up.

Source: model_config.proto of Triton's `common` repository, for the names of fields and values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact, OnnxArtifact
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.backends import DEVICES, SERVER_BACKENDS
from netvlad_deploy.spec.images import CHANNELS, AnyProfile
from netvlad_deploy.spec.layer import DESCRIPTOR, HeadsSpec

ONNXRUNTIME, TENSORRT, PYTHON = SERVER_BACKENDS
CPU_DEVICE, GPU_DEVICE = DEVICES
IMAGE, PIXELS = "image", "pixels"
"""The inputs of a served pipeline, of which a request has one: encoded files, or uint8 RGB (H,W,3)."""

STANDARD: Final = "tensorrt"
"""The flavor whose engines Triton's own backend runs."""

BATCH: Final = 8  # images, or sets of local descriptors, that are computed together
WARM_UP_SIZE: Final = (480, 640)  # height and width of the first image, where the rule names no size
MODEL_FILES: Final = {ONNXRUNTIME: "model.onnx", TENSORRT: "model.plan"}
"""Name of the artifact in a version folder, by the backend that opens it."""

ANY_MODEL: Final = (*MODEL_FILES.values(), "model.engine")
"""Names that an artifact may have in a version folder; this package's runtime opens `model.onnx` and `model.engine`."""

TYPES: Final = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bool": "TYPE_BOOL"}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How an artifact is served; None stands for what fits it.

    Args:
        name: the model's name in requests.
        backend: one of SERVER_BACKENDS.
        device: one of DEVICES.
        instances: copies of the model that compute side by side.
        batch: items of all requests that are computed together, at most.
    """

    name: str
    backend: str
    device: str
    instances: int
    batch: int


def serving_of(
    artifact: AnyArtifact,
    name: str,
    *,
    backend: str | None = None,
    device: str | None = None,
    instances: int = 1,
    batch: int | None = None,
) -> Serving:
    """Return how an artifact is served: a pipeline by this package's runtime, which takes files, a head by Triton's.

    Raises: UsageError if it cannot be served so.
    """
    engine = isinstance(artifact, EngineArtifact)
    if isinstance(artifact.spec, HeadsSpec):
        raise UsageError(f"{artifact.path} has the heads {', '.join(artifact.spec.heads)}: export one with --prefix")
    own = TENSORRT if engine else ONNXRUNTIME
    backend = backend or (PYTHON if artifact.images is not None else own)
    device = device or (GPU_DEVICE if engine else CPU_DEVICE)
    if backend not in (PYTHON, own):
        raise UsageError(f"{artifact.path} does not run on Triton's {backend}: leave --backend out, or take {own}")
    if engine and device == CPU_DEVICE:
        raise UsageError(f"{artifact.path} is an engine, which runs on a GPU alone: leave --device out")
    if backend == PYTHON and artifact.images is None:
        raise UsageError(f"{artifact.path} takes local descriptors, python serves images: leave --backend out")
    if backend != PYTHON:
        _check_native(artifact)
    most = max(profile.batch.max for profile in artifact.profiles) if isinstance(artifact, EngineArtifact) else None
    if most is not None and batch is not None and batch > most:
        raise UsageError(f"{artifact.path} takes a batch of {most} at most, not {batch}: lower --batch")
    return Serving(name=name, backend=backend, device=device, instances=instances, batch=batch or most or BATCH)


def _check_native(artifact: AnyArtifact) -> None:
    """Raise UsageError if Triton's own backends cannot run it with batches that differ in size."""
    if isinstance(artifact, EngineArtifact) and artifact.flavor != STANDARD:
        raise UsageError(f"{artifact.path} is of {artifact.flavor}, Triton's own backend runs {STANDARD}'s alone")
    least = min(profile.batch.min for profile in _profiles(artifact))
    if least > 1 or (isinstance(artifact, OnnxArtifact) and "batch" in artifact.spec.fixed_lengths):
        cure = "take --backend python" if artifact.images is not None else "export it again with a free batch"
        raise UsageError(f"{artifact.path} takes batches of {least} or more, or no other: {cure}")


def _profiles(artifact: AnyArtifact) -> Sequence[AnyProfile]:
    return artifact.profiles if isinstance(artifact, EngineArtifact) else (artifact.usual_profile,)


def config_text(artifact: AnyArtifact, serving: Serving) -> str:
    """Return the text of `config.pbtxt`."""
    size, output, dtype = artifact.spec.descriptor_size, DESCRIPTOR, "float32"  # as `Served` gives them
    if serving.backend != PYTHON:
        output, dtype = artifact.outputs[0], artifact.dtypes[artifact.outputs[0]]
    lines = [
        "# Written by netvlad-deploy package triton, which writes it anew with --force.",
        f'name: "{serving.name}"',
        f'backend: "{serving.backend}"',
        *([f'default_model_filename: "{MODEL_FILES[serving.backend]}"'] if serving.backend != PYTHON else []),
        f"max_batch_size: {serving.batch}",
        "input [",
        ",\n".join(_inputs(artifact, serving)),
        "]",
        f'output [ {{ name: "{output}" data_type: {TYPES[dtype]} dims: [ {size} ] }} ]',
        "dynamic_batching { }",
        f"instance_group [ {_instances(artifact, serving)} ]",
        "version_policy { latest { num_versions: 1 } }",
        *_warm_up(artifact, serving),
    ]
    return "\n".join(lines) + "\n"


def _inputs(artifact: AnyArtifact, serving: Serving) -> list[str]:
    if serving.backend == PYTHON:
        return [
            f'  {{ name: "{IMAGE}" data_type: TYPE_STRING dims: [ 1 ] optional: true }}',
            f'  {{ name: "{PIXELS}" data_type: TYPE_UINT8 dims: [ -1, -1, {CHANNELS} ] optional: true '
            "allow_ragged_batch: true }",
        ]
    return [
        f'  {{ name: "{name}" data_type: {TYPES[artifact.dtypes[name]]} dims: [ {", ".join(map(str, dims))} ] }}'
        for name, dims in _dims(artifact).items()
    ]


def _dims(artifact: AnyArtifact) -> dict[str, list[int]]:
    """Return the lengths of each input of the graph but the batch, -1 for those that differ."""
    profiles = _profiles(artifact)
    shapes = [artifact.input_shapes(profile) for profile in profiles]
    return {
        name: [
            lengths[0] if len(set(lengths)) == 1 else -1
            for lengths in zip(*(shape[1:] for each in shapes for shape in each[name]), strict=True)
        ]
        for name in artifact.inputs
    }


def _instances(artifact: AnyArtifact, serving: Serving) -> str:
    """Return the instances; this package's runtime uses the first GPU, an engine all of its profiles."""
    words = [f"count: {serving.instances}", f"kind: KIND_{serving.device.upper()}"]
    if serving.device == GPU_DEVICE and serving.backend == PYTHON:
        words.append("gpus: [ 0 ]")
    if serving.backend == TENSORRT and len(_profiles(artifact)) > 1:
        listed = ", ".join(f'"{number}"' for number in range(len(_profiles(artifact))))
        words.append(f"profile: [ {listed} ]")
    return f"{{ {' '.join(words)} }}"


def _warm_up(artifact: AnyArtifact, serving: Serving) -> list[str]:
    """Return the first request, which the server makes to itself before it is ready: of the usual shape.

    Random bytes as pixels, which have a descriptor; zeros as local descriptors, where random bytes could be no numbers.
    """
    if serving.backend == PYTHON:
        assert artifact.images is not None
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            PIXELS: ("uint8", (*(artifact.images.size or WARM_UP_SIZE), CHANNELS))
        }
        items = 1
    else:
        usual = artifact.input_shapes(_profiles(artifact)[0])
        items = min(usual[artifact.inputs[0]][1][0], serving.batch)
        shapes = {name: (artifact.dtypes[name], usual[name][1][1:]) for name in artifact.inputs}
    inputs = [
        f'inputs {{ key: "{name}" value {{ data_type: {TYPES[dtype]} dims: [ {", ".join(map(str, dims))} ] '
        f"{'random_data' if dtype == 'uint8' else 'zero_data'}: true }} }}"
        for name, (dtype, dims) in shapes.items()
    ]
    return [
        "model_warmup [",
        f'  {{ name: "usual" batch_size: {items}',
        *(f"    {each}" for each in inputs),
        "  }",
        "]",
    ]
