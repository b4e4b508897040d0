"""How an engine is to be built: flavor, optimization profiles, what the builder may do; and what it said of the engine.

Standard library only, like `spec`. One object says it to the builder, to the sidecar, to the command that builds the
same engine again, and to `trtexec`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.support.limits import check_limit

TENSORRT: Final = "tensorrt"
RTX: Final = "tensorrt-rtx"
FLAVORS: Final = (TENSORRT, RTX)
LEVELS: Final = range(6)
"""TensorRT's optimization levels; without one it takes its own default, 3."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What an engine is built with.

    Args:
        flavor: tensorrt, or tensorrt-rtx, which builds without a GPU.
        profiles: optimization profiles; a run takes the smallest that fits its shape. Empty for the usual one of what
            is built: `build_engine` fills it in.
        tf32: let the products of an FP32 graph round their inputs to TF32, which costs about 1e-3.
        workspace_mib: most scratch memory of a kernel in MiB, None for TensorRT's own limit, the GPU's memory.
        optimization_level: 0 (builds fastest) to 5, None for TensorRT's own.
        hardware_compatible: one engine for every GPU since Ampere, at the price of slower kernels.
        version_compatible: one engine for later versions of the same major version, at the price of a larger file
            that carries a runtime of its own as native code.
        compute_capabilities: GPU architectures of an RTX engine, such as SM89; empty for the portable set.

    Raises: UsageError if two of them contradict each other.
    """

    flavor: str = TENSORRT
    profiles: tuple[AnyProfile, ...] = ()
    tf32: bool = False
    workspace_mib: int | None = None
    optimization_level: int | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.flavor not in FLAVORS:
            raise UsageError(f"flavor {self.flavor!r} is unknown: choose {' or '.join(FLAVORS)}")
        if self.workspace_mib is not None:
            check_limit("workspace_mib", self.workspace_mib)
        if self.optimization_level not in (None, *LEVELS):
            raise UsageError(f"optimization level is {self.optimization_level}, expected 0 to {LEVELS[-1]}")
        if self.flavor == RTX and (self.hardware_compatible or self.version_compatible):
            raise UsageError(f"{RTX} ignores or refuses compatibility options: choose --compute-capability instead")
        if self.flavor != RTX and self.compute_capabilities:
            raise UsageError(f"--compute-capability is for {RTX}: {self.flavor} builds for the GPU it runs on")

    @property
    def arguments(self) -> list[str]:
        """Return these options as `netvlad-deploy build` takes them, those at their defaults left out."""
        arguments = [] if self.flavor == TENSORRT else ["--flavor", self.flavor]
        arguments += [word for profile in self.profiles for word in ("--profile", profile.text)]
        for name, value in (("workspace-mib", self.workspace_mib), ("optimization-level", self.optimization_level)):
            arguments += [] if value is None else [f"--{name}", str(value)]
        for name, value in (
            ("tf32", self.tf32),
            ("hardware-compatible", self.hardware_compatible),
            ("version-compatible", self.version_compatible),
        ):
            arguments += [f"--{name}"] if value else []
        return arguments + [word for name in self.compute_capabilities for word in ("--compute-capability", name)]


def fitting_profile(profiles: Sequence[AnyProfile], *shape: int) -> int:
    """Return the index of the profile with the smallest maximum that holds this shape.

    Raises: InputError if none does.
    """
    fitting = [index for index, profile in enumerate(profiles) if profile.holds(*shape)]
    if not fitting:
        outside = "; ".join(str(profile) for profile in profiles)
        which = "the profile" if len(profiles) == 1 else "every profile"
        lengths = ", ".join(f"{name} is {length}" for name, length in zip(profiles[0].axes, shape, strict=True))
        raise InputError(f"{lengths}, outside {which} ({outside}): rebuild with a wider range")
    return min(fitting, key=lambda index: profiles[index].largest)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of an engine: its name, kind and the dtypes of what it reads and writes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuildFigures:
    """What the builder said of the engine; None where this TensorRT does not say.

    `host_bytes` is the most memory that the process of the build has taken from the host.
    """

    build_ms: float
    host_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU an engine was built on: its name, its compute capability as `8.7`, and the driver's CUDA version."""

    name: str
    compute_capability: str
    driver: str
