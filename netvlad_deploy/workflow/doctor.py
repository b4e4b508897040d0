"""The verb `doctor`: the packages that are installed, and the backends that can run here. It tries, and does not guess.

A package that is missing is a fact. A package that is installed and cannot be imported, and packages that break each
other, are faults.
"""

from collections.abc import Callable
from functools import partial

from netvlad_deploy.errors import BuildError, DeviceUnavailableError, MissingDependencyError, RunError
from netvlad_deploy.report.doctor import Check, Diagnosis, Extra
from netvlad_deploy.runtime import execution_providers as providers
from netvlad_deploy.runtime import openvino_runner
from netvlad_deploy.runtime.execution_providers import DISTRIBUTIONS, ORT_RTX, RTX_PLUGIN, installed_distributions
from netvlad_deploy.spec.build_options import FLAVORS, TENSORRT, Gpu
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.machine import describe_machine
from netvlad_deploy.support.require import install_line, installed_version, optional_packages, require
from netvlad_deploy.support.streams import stdout_to_stderr
from netvlad_deploy.tensorrt.api import EXTRAS, open_tensorrt
from netvlad_deploy.tensorrt.cuda import Cuda

NEEDED = ("netvlad-deploy", "numpy", "typer")
"""Packages that every installation has."""

PURPOSES = {
    "export": "whatever reads a checkpoint",
    "cpu": "running ONNX files on a CPU",
    "gpu": "running ONNX files on a GPU",
    "strict": "validate of an FP16 ONNX file on a CPU",
    "tensorrt": "building and running engines on an NVIDIA GPU",
    "rtx": "engines for RTX GPUs, which build without a GPU",
    "openvino": "running ONNX files with OpenVINO, on a CPU",
    "nvml": "clocks, power and throttling of a GPU in bench",
    "report": "pages of reports in HTML, and their drawings",
    "images": "embed and evaluate on images",
    "fit": "a vocabulary of your own, beside export",
    "transformers": "the backbones DINOv2 and ViT, and model folders of Hugging Face",
    "timm": "the backbones of timm",
    "keras": "Keras files of weights",
    "hdf5": "feature files and descriptors in HDF5",
    "parquet": "images and descriptors in Parquet files",
    "bags": "images in ROS bags",
    "index": "an index of descriptors, and its search",
    "ray": "embed on the nodes of a Ray cluster",
    "triton": "the Triton server of NVIDIA as a package, in an environment of its own",
    "demo": "make demo",
}
"""What each optional dependency group is for."""

DEVELOPMENT = "dev"
ONE_OF = ("cpu", "gpu")
"""Optional dependency groups of which one must be missing."""

RTX_PLUGINS = (RTX_PLUGIN, f"{RTX_PLUGIN}-cu12", f"{RTX_PLUGIN}-cu13")
CUDA_PACKAGES = ("cuda-bindings",)
BROKEN = (BuildError, RunError, AttributeError, RuntimeError, TypeError, ValueError)
"""Errors of a provider that is installed and fails, and of the import of a damaged or foreign package."""

Step = tuple[Callable[[], object], tuple[str, ...]]
"""Something to try, and the packages that are broken if it cannot import them although they are installed."""


def diagnose() -> Diagnosis:
    """Try all that this package can do on this machine.

    >>> {check.name: check.verdict.value for check in diagnose().checks}["backend oracle"]
    'PASS'
    """
    with stdout_to_stderr():  # the libraries that are tried print, and standard output is for the result
        gpu_check = _check("GPU", (_gpu, CUDA_PACKAGES))
        gpu = _describe_gpu(TENSORRT) if gpu_check.verdict is Verdict.PASS else None
        checks = [
            _check("packages that bring onnxruntime", (providers.check_distributions, DISTRIBUTIONS)),
            gpu_check,
            *(_check(f"build engines with {flavor}", (partial(_build, flavor), (flavor,))) for flavor in FLAVORS),
            *(_check(f"backend {name}", *steps) for name, steps in _backends().items()),
        ]
    optional = [name for extra, names in optional_packages().items() if extra != DEVELOPMENT for name in names]
    return Diagnosis(
        machine=describe_machine(),
        packages={
            name: installed_version(name) for name in (*NEEDED, *optional, RTX_PLUGIN, *installed_distributions())
        },
        extras=_extras(),
        gpu=gpu,
        checks=tuple(checks),
        broken=tuple(check.name for check in checks if check.verdict is Verdict.FAIL),
    )


def _gpu() -> str:
    """Return the GPU in words."""
    gpu = _describe_gpu(TENSORRT)
    return f"{gpu.name}, compute capability {gpu.compute_capability}, driver for CUDA {gpu.driver}"


def _describe_gpu(flavor: str) -> Gpu:
    return Cuda(extra=EXTRAS[flavor]).gpu()


def _backends() -> dict[str, list[Step]]:
    """Return the steps that each backend needs, by its name."""
    backends: dict[str, list[Step]] = {
        name: [(partial(providers.probe, name), RTX_PLUGINS if name == ORT_RTX else DISTRIBUTIONS)]
        for name in providers.PROVIDERS
    }
    backends[openvino_runner.OPENVINO] = [(openvino_runner.probe, ("openvino",))]
    backends["strict"] = [*backends[providers.CPU], (partial(require, "onnx", extra="strict"), ("onnx",))]
    for flavor in FLAVORS:
        backends[f"tensorrt, {flavor} engines"] = [
            (partial(open_tensorrt, flavor), (flavor,)),
            (partial(_describe_gpu, flavor), CUDA_PACKAGES),
            (partial(_run, flavor), (flavor,)),
        ]
    backends["torch"] = [(partial(require, "torch", extra="export"), ("torch",))]
    backends["oracle"] = []
    return backends


def _build(flavor: str) -> str:
    """Make a builder, for which the standard TensorRT needs a driver; return TensorRT's version and capabilities."""
    tensorrt = open_tensorrt(flavor)
    tensorrt.builder()
    return f"{tensorrt.version}: {tensorrt.capabilities}"


def _run(flavor: str) -> None:
    """Make a runtime, on a machine that has a GPU."""
    tensorrt = open_tensorrt(flavor)  # holds the logger, which must outlive the runtime
    tensorrt.runtime()


def _check(name: str, *steps: Step) -> Check:
    """Return PASS with the answer of the last step, or the verdict and reason of the first step that failed."""
    said: object = ""
    for action, packages in steps:
        try:
            said = action()
        except DeviceUnavailableError as error:
            return Check(name=name, verdict=Verdict.NOT_RUN, detail=_line(error))
        except (MissingDependencyError, OSError) as error:
            installed = any(installed_version(package) for package in packages)
            return Check(name=name, verdict=Verdict.FAIL if installed else Verdict.NOT_RUN, detail=_line(error))
        except BROKEN as error:
            return Check(name=name, verdict=Verdict.FAIL, detail=_line(error))
    return Check(name=name, verdict=Verdict.PASS, detail=said if isinstance(said, str) else "")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _extras() -> dict[str, Extra]:
    """Return the packages of every optional dependency group, and those of them that are missing."""
    extras = {}
    for extra, names in optional_packages().items():
        missing = tuple(name for name in names if installed_version(name) is None)
        instead = extra in ONE_OF and missing and installed_distributions()
        cure = f"in place of {', '.join(instead)}, never beside it" if instead else install_line(extra)
        extras[extra] = Extra(
            purpose=PURPOSES.get(extra, ""), packages=tuple(names), missing=missing, cure=cure if missing else ""
        )
    return {extra: found for extra, found in extras.items() if extra != DEVELOPMENT}
