"""Execution providers of ONNX Runtime: one for each backend, and never another than was asked for.

docs/architecture.md says in which ways ONNX Runtime goes on with the CPU, and how TF32 is judged. TensorRT's and
TensorRT-RTX's providers take one optimization profile: with several, TensorRT's stays on the first. The GPU providers
were tested on a double of ONNX Runtime only.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Any, Final

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import DeviceUnavailableError, MissingDependencyError, OutputError, RunError, UsageError
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.spec.tensors import shape_words
from netvlad_deploy.support.files import check_private
from netvlad_deploy.support.require import install_line, installed_version, pip_line, require

CPU: Final = "onnxruntime"
CUDA: Final = "onnxruntime-cuda"
ORT_TENSORRT: Final = "onnxruntime-tensorrt"
ORT_RTX: Final = "onnxruntime-rtx"
PROVIDERS: Final = {
    CPU: "CPUExecutionProvider",
    CUDA: "CUDAExecutionProvider",
    ORT_TENSORRT: "TensorrtExecutionProvider",
    ORT_RTX: "NvTensorRTRTXExecutionProvider",
}
PROFILED: Final = (ORT_TENSORRT, ORT_RTX)
"""Backends that build an engine, for one optimization profile."""

RTX_PLUGIN: Final = "onnxruntime-ep-nv-tensorrt-rtx"
"""The package that brings the RTX provider as a plugin library of the CPU's onnxruntime, from 1.24 on."""

DISTRIBUTIONS: Final = (
    "onnxruntime",
    "onnxruntime-azure",
    "onnxruntime-cann",
    "onnxruntime-coreml",
    "onnxruntime-directml",
    "onnxruntime-gpu",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-trt-rtx",
    "onnxruntime-webgpu",
)
"""Packages that bring the same module `onnxruntime`: the one installed last overwrites files of the others."""

NO_CPU: Final = "session.disable_cpu_ep_fallback"
TF32_OVERRIDE: Final = "NVIDIA_TF32_OVERRIDE"
UNAVAILABLE_WORDS: Final = re.compile(
    r"CUDA (?:failure|error|initialization failure with error:?) (?:3|35|36|46|100|101|209|802|803|804)\b"
    r"|explicitly disabled by the user|cannot open shared object|Failed to load (?:shared )?library|Invalid device ID"
    r"|[Pp]lease install (?:TensorRT libraries|the correct version of CUDA)"
)
"""Messages of ONNX Runtime for an absent driver, GPU or library; any other error is a fault, not an absence."""

PROBE: Final = bytes.fromhex(
    "08083a390a0e0a01780a01781201792203416464120570726f62655a0f0a0178120a0a08080112040a020801620f"
    "0a0179120a0a08080112040a02080142040a001011"
)
"""An ONNX model that adds its input to itself."""


def import_onnxruntime(backend: str) -> Any:
    """Import ONNX Runtime for a backend.

    Raises: MissingDependencyError if it is missing, or installed more than once.
    """
    check_distributions()
    return require("onnxruntime", extra="cpu" if backend in (CPU, ORT_RTX) else "gpu")


def installed_distributions() -> dict[str, str]:
    """Return the installed packages that bring the module `onnxruntime`, with their versions."""
    return {name: version for name in DISTRIBUTIONS if (version := installed_version(name)) is not None}


def check_distributions() -> None:
    """Raise MissingDependencyError if several packages bring the module `onnxruntime`, which pip does not notice."""
    names = list(installed_distributions())
    if len(names) > 1:
        raise MissingDependencyError(
            f"{' and '.join(names)} overwrite each other's files: {pip_line('uninstall', '-y', *names)}, then "
            f"{install_line('cpu')} or {install_line('gpu')}, not both"
        )


def errors_of(onnxruntime: Any) -> tuple[type[Exception], ...]:
    """Return the exception classes of ONNX Runtime, which share no base, and RuntimeError, which it raises as well."""
    members = vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    return (*(member for member in members if isinstance(member, type) and issubclass(member, Exception)), RuntimeError)


def precision_on(backend: str, artifact: OnnxArtifact) -> str:
    """Return the precision in effect on a backend: FP32 may become TF32 where no option turns that off.

    Raises: UsageError for wide logits there: no error model says how much TF32 changes them.
    """
    if backend not in PROFILED or os.environ.get(TF32_OVERRIDE) == "0":
        return artifact.precision
    if artifact.precision == "fp16-wide-logits":
        raise UsageError(f"{PROVIDERS[backend]} may round wide logits to TF32: set {TF32_OVERRIDE}=0")
    return "tf32" if artifact.precision == "fp32" else artifact.precision


def make_cache(artifact: OnnxArtifact, precision: str, profile: AnyProfile) -> Path:
    """Make and return the folder for the engines that a provider compiles: `NAME.onnx.cache/SHA-PRECISION-PROFILE`.

    ONNX Runtime's own key is the model's name, inputs and outputs: it would take a cached engine with other weights.
    What stands there is executable code, like an engine.

    Raises: OutputError if it cannot be made; ArtifactError if somebody else could have written into it.
    """
    name = f"{artifact.sha256[:16]}-{precision}-{profile.text}"
    above = artifact.path.with_name(artifact.path.name + ".cache")
    folder = above / name
    for made in (above, folder):
        try:
            made.mkdir(mode=0o700, exist_ok=True)
            check_private(made, made.lstat())
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    return folder.resolve()


def provider_options(
    backend: str, artifact: OnnxArtifact, profile: AnyProfile, *, cache: Path | None = None
) -> dict[str, str]:
    """Return the options of a backend's provider for an artifact, all of them text as ONNX Runtime wants it.

    Precision is that of the graph: `trt_fp16_enable` stays unset. The shapes are a text in which a colon ends a name.

    Raises: UsageError if the provider could not read the name of the input.

    Source: https://onnxruntime.ai/docs/execution-providers (CUDA, TensorRT) and
    https://nvidia.github.io/TensorRT-RTX-EP-ABI/_generated/provider-options.html
    """
    if backend == CPU:
        return {}
    if backend == CUDA:
        return {"device_id": "0", "use_tf32": str(int(artifact.precision == "tf32"))}
    prefix = "trt" if backend == ORT_TENSORRT else "nv"
    options = {"device_id": "0"}
    if any(":" in name for name in artifact.inputs):
        raise UsageError(
            f"{artifact.path} takes {artifact.inputs[0]}, and {backend} reads no name with a colon: build an engine, "
            "or export with other --tensor-names"
        )
    for bound, shapes in shape_words(artifact.input_shapes(profile)).items():
        options[f"{prefix}_profile_{bound}_shapes"] = shapes
    if cache is not None and backend == ORT_RTX:
        options["nv_runtime_cache_path"] = str(cache)
    elif cache is not None:
        for kind in ("engine", "timing"):
            options |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(cache)}
    return options


def open_session(
    onnxruntime: Any, backend: str, model: bytes, options: Any, settings: dict[str, str], *, name: str
) -> Any:
    """Open a session on a backend's provider and no other; `settings` are the provider's options.

    Raises: DeviceUnavailableError if the provider, its driver or its GPU is not there; MissingDependencyError without
        the plugin that brings it; RunError if ONNX Runtime refuses the model.
    """
    provider, arguments = PROVIDERS[backend], {}
    if backend != CPU:
        options.add_session_config_entry(NO_CPU, "1")  # nodes that the provider does not take are an error
    if provider in onnxruntime.get_available_providers():
        arguments["providers"] = [(provider, settings)]
    elif backend == ORT_RTX:
        device = _rtx_device(onnxruntime)
        provider = device.ep_name
        options.add_provider_for_devices(
            [device], {key: value for key, value in settings.items() if key != "device_id"}
        )
    else:
        raise _not_in_this_package(onnxruntime, provider)
    try:
        session = onnxruntime.InferenceSession(model, options, enable_fallback=0, **arguments)
    except errors_of(onnxruntime) as error:
        words = " ".join(str(error).split())  # a reason stands in one row of a report
        if backend != CPU and UNAVAILABLE_WORDS.search(words):
            if model is not PROBE and _works(backend):
                raise RunError(f"{provider} works here and leaves nodes of {name} to the CPU: {words}") from error
            raise DeviceUnavailableError(f"{provider} cannot be used here; ONNX Runtime says: {words}") from error
        raise RunError(f"ONNX Runtime cannot load {name}: {words}") from error
    if session.get_providers()[0] != provider:  # it could not be loaded, and was dropped
        raise DeviceUnavailableError(f"asked for {provider}, ONNX Runtime took {session.get_providers()[0]}")
    return session


def probe(backend: str) -> None:
    """Open a session with a model of one node on a backend's provider, which shows whether it can be used here.

    Raises: DeviceUnavailableError, MissingDependencyError, RunError.
    """
    onnxruntime = import_onnxruntime(backend)
    settings = {} if backend == CPU else {"device_id": "0"}
    open_session(onnxruntime, backend, PROBE, onnxruntime.SessionOptions(), settings, name="a model of one node")


def _works(backend: str) -> bool:
    """Return True if a backend's provider can run a model of one node here."""
    try:
        probe(backend)
    except (DeviceUnavailableError, MissingDependencyError, RunError):
        return False
    return True


def _not_in_this_package(onnxruntime: Any, provider: str) -> DeviceUnavailableError:
    installed = list(installed_distributions()) or ["onnxruntime"]
    return DeviceUnavailableError(
        f"{' '.join(installed)} {onnxruntime.__version__} has no {provider}, onnxruntime-gpu may have: "
        f"{pip_line('uninstall', '-y', *installed)}, then {install_line('gpu')}"
    )


def _rtx_device(onnxruntime: Any) -> Any:
    """Return the first device of the RTX provider, its plugin library registered.

    Raises: MissingDependencyError if the plugin is not installed, or ONNX Runtime too old for it;
        DeviceUnavailableError if it finds no GPU.
    """
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"onnxruntime {onnxruntime.__version__} takes no plugins: {pip_line('install', '-U', 'onnxruntime')}"
        )
    devices = _rtx_devices(onnxruntime)
    if not devices:
        try:
            plugin = importlib.import_module(RTX_PLUGIN.replace("-", "_"))
            name, library = plugin.get_ep_name(), plugin.get_library_path()
        except (ImportError, OSError) as error:
            raise MissingDependencyError(
                f"{ORT_RTX} needs a plugin ({error}): {pip_line('install', RTX_PLUGIN)}"
            ) from error
        try:
            onnxruntime.register_execution_provider_library(name, library)
        except errors_of(onnxruntime) as error:
            if "already registered" not in str(error):
                raise DeviceUnavailableError(f"{RTX_PLUGIN} cannot be used here: {error}") from error
        devices = _rtx_devices(onnxruntime)
    if not devices:
        raise DeviceUnavailableError(f"{RTX_PLUGIN} found no GPU it can use: it needs an RTX GPU and its driver")
    return devices[0]


def _rtx_devices(onnxruntime: Any) -> list[Any]:
    names = (PROVIDERS[ORT_RTX], "nv_tensorrt_rtx")  # of the plugin in its earlier and its later versions
    return [device for device in onnxruntime.get_ep_devices() if device.ep_name in names]
