"""The options that an engine is built with, and the figures that the builder gives of it.

The fields of `BuildOptions` are the table of build options: the command line, the command that builds an engine again,
the line of `trtexec` and the sidecar are made from it. `tensorrt/builder.py` gives each option to TensorRT.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.support.limits import check_choice, check_limit

TENSORRT: Final = "tensorrt"
RTX: Final = "tensorrt-rtx"
FLAVORS: Final = (TENSORRT, RTX)
LEVELS: Final = range(6)
"""TensorRT's optimization levels; without one it takes its own default, 3."""


def option(default: Any, flag: str, text: str, **more: Any) -> Any:
    """Return the field of an option that the command line takes, too.

    Args:
        default: the value that needs no word: False, None or ().
        flag: the option on the command line, which takes a value unless the default is False.
        text: its description in `--help`.
        more: `choices`, the words that it takes; `metavar`, which stands for the value in the help; `trtexec`, the word
            of that tool, with {} for the value; `price`, the warning of an engine that is built with it.
    """
    return field(default=default, metadata={"flag": flag, "help": text, **more})


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The options that an engine is built with.

    Args:
        flavor: tensorrt, or tensorrt-rtx, which builds without a GPU.
        profiles: optimization profiles; a run takes the smallest that fits its shape. Empty for the artifact's usual
            one, which `build_engine` fills in.
        compute_capabilities: GPU architectures of an RTX engine, such as SM89; empty for the portable set.

    The help text of each other option, below, says its meaning.

    Raises: UsageError if two of them contradict each other.

    >>> BuildOptions(optimization_level=5, tf32=True).arguments
    ['--optimization-level', '5', '--tf32']
    >>> BuildOptions(compute_capabilities=("SM89",))
    Traceback (most recent call last):
    netvlad_deploy.errors.UsageError: --compute-capability is for tensorrt-rtx: tensorrt builds for the GPU it runs on
    """

    flavor: str = TENSORRT
    profiles: tuple[AnyProfile, ...] = ()
    tf32: bool = option(False, "--tf32", "Allow TF32, which costs about 1e-3 of accuracy.")
    workspace_mib: int | None = option(
        None,
        "--workspace-mib",
        "Most scratch memory of a kernel, in MiB.  [default: the GPU's memory]",
        trtexec="--memPoolSize=workspace:{}",
    )
    optimization_level: int | None = option(
        None,
        "--optimization-level",
        "0 builds fastest, 5 tries most.  [default: TensorRT's own, 3]",
        trtexec="--builderOptimizationLevel={}",
    )
    hardware_compatible: bool = option(
        False,
        "--hardware-compatible",
        "One engine for GPUs since Ampere, at the price of speed.",
        trtexec="--hardwareCompatibilityLevel=ampere+",
        price="hardware-compatible: runs on Ampere and later GPUs, with at most 48 KiB of shared memory and fewer "
        "kernels to choose from, so slower than an engine built for its GPU",
    )
    version_compatible: bool = option(
        False,
        "--version-compatible",
        "One engine for later versions of the same major version.",
        trtexec="--versionCompatible",
        price="version-compatible: carries a runtime of its own as native code, which makes the file larger, may make "
        "it slower and must be allowed where it is loaded",
    )
    compute_capabilities: tuple[str, ...] = option(
        (), "--compute-capability", "GPU architecture of a tensorrt-rtx engine; repeat for several.", metavar="SMxx"
    )

    def __post_init__(self) -> None:
        check_choice("flavor", self.flavor, FLAVORS)
        if self.workspace_mib is not None:
            check_limit("workspace_mib", self.workspace_mib)
        if self.optimization_level not in (None, *LEVELS):
            raise UsageError(f"optimization level is {self.optimization_level}, expected 0 to {LEVELS[-1]}")
        if self.flavor == RTX and (self.hardware_compatible or self.version_compatible):
            raise UsageError(f"{RTX} ignores or refuses compatibility options: choose --compute-capability instead")
        if self.flavor != RTX and self.compute_capabilities:
            raise UsageError(f"--compute-capability is for {RTX}: {self.flavor} builds for the GPU it runs on")

    def chosen(self, key: str) -> list[tuple[str, Any]]:
        """Return the entry under `key` and the value of each option that has such an entry and is not at its default.

        >>> BuildOptions(workspace_mib=512, version_compatible=True).chosen("trtexec")
        [('--memPoolSize=workspace:{}', 512), ('--versionCompatible', True)]
        """
        pairs = [(each, getattr(self, each.name)) for each in fields(self) if key in each.metadata]
        return [(each.metadata[key], value) for each, value in pairs if value != each.default]

    @property
    def arguments(self) -> list[str]:
        """Return these options as `netvlad-deploy build` takes them, those at their defaults left out."""
        words = [] if self.flavor == TENSORRT else ["--flavor", self.flavor]
        words += [word for profile in self.profiles for word in ("--profile", profile.text)]
        # numbers before switches before lists: scripts and reports have had this order from the start
        for flag, value in sorted(self.chosen("flag"), key=lambda pair: (isinstance(pair[1], tuple), pair[1] is True)):
            items = value if isinstance(value, tuple) else (value,)
            words += [flag] if value is True else [word for item in items for word in (flag, str(item))]
        return words


def fitting_profile(profiles: Sequence[AnyProfile], *shape: int, others: Iterable[tuple[int, ...]] = ()) -> int:
    """Return the index of the profile with the smallest maximum that holds this shape, and those of other inputs.

    Raises: InputError if none does.

    >>> from netvlad_deploy.spec.profiles import Profile
    >>> fitting_profile((Profile.parse("1x1,8x300,64x4096"), Profile.parse("1x300")), 1, 300)
    1
    """
    shapes = (shape, *others)
    fitting = [index for index, profile in enumerate(profiles) if all(profile.holds(*each) for each in shapes)]
    if not fitting:
        outside_alone = (each for each in shapes if not any(profile.holds(*each) for profile in profiles))
        shape = next(outside_alone, shape)
        outside = "; ".join(str(profile) for profile in profiles)
        which = "the profile" if len(profiles) == 1 else "every profile"
        lengths = ", ".join(f"{name} is {length}" for name, length in zip(profiles[0].axes, shape, strict=True))
        raise InputError(f"{lengths}, outside {which} ({outside}): rebuild with a wider range")
    return min(fitting, key=lambda index: profiles[index].largest)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of an engine: its name, its kind, and the dtypes of its inputs and outputs."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuildFigures:
    """Figures of an engine from the log of its build; None where this version of TensorRT does not log one.

    `host_bytes` is the most host memory that the process of the build has taken.
    """

    build_ms: float
    host_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU: its name, its compute capability as `8.7`, and the driver's CUDA version."""

    name: str
    compute_capability: str
    driver: str
