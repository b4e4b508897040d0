"""Every error this package raises on purpose, as one tree.

    NetVLADDeployError
    ├─ UsageError                 2   options that contradict each other, an existing target
    │  └─ InUseError              2   another process is at this work
    ├─ ArtifactError             65   an artifact or its sidecar is damaged, stale or mixed up
    ├─ InputError                65   a checkpoint or a feature array cannot be used
    │  └─ UnfitError             65   one image of many gives no descriptor
    ├─ MissingDependencyError    69   a package is not installed
    ├─ DeviceUnavailableError    69   a GPU, driver or execution provider is not there
    ├─ ExportError               70   the ONNX graph could not be made
    │  └─ FoldError              70   BatchNorm cannot be folded
    ├─ BuildError                70   TensorRT refused the graph
    ├─ RunError                  70   a runner failed
    ├─ ParityError               70   a comparison could not be made
    └─ OutputError               73   a file could not be written

The number is the exit code of the command line, after BSD's sysexits.h. A message is one line: the
subject, got against expected, and a remedy.
"""


class NetVLADDeployError(Exception):
    """Base of every error of this package; `exit_code` is the exit code of the command line."""

    exit_code = 70


class UsageError(NetVLADDeployError):
    """Options contradict each other or the file they are used on, or a target exists already."""

    exit_code = 2


class InUseError(UsageError):
    """Another process is at this work now; it may be asked for again later."""


class ArtifactError(NetVLADDeployError):
    """An artifact, its sidecar or its reference file is missing, damaged, stale or mixed up."""

    exit_code = 65


class InputError(NetVLADDeployError):
    """A checkpoint, feature array or mask is missing, damaged, or does not fit the layer."""

    exit_code = 65


class UnfitError(InputError):
    """One item that gives no descriptor: `reason` is one of few, to count by, `detail` is about this item.

    Where many are embedded it becomes a `Skipped` in the place of the descriptor.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + (f": {detail}" if detail else ""))
        self.reason, self.detail = reason, detail


class MissingDependencyError(NetVLADDeployError):
    """A package that this step needs is not installed."""

    exit_code = 69


class DeviceUnavailableError(NetVLADDeployError):
    """The device, driver or execution provider that was asked for is not there."""

    exit_code = 69


class ExportError(NetVLADDeployError):
    """The module could not be turned into an ONNX graph that keeps the promises of this package."""


class FoldError(ExportError):
    """BatchNorm cannot be folded: training mode, negative variance or a value that is not finite."""


class BuildError(NetVLADDeployError):
    """TensorRT could not parse the graph or build the engine."""


class RunError(NetVLADDeployError):
    """A runner failed, or was used after it was closed."""


class ParityError(NetVLADDeployError):
    """A comparison could not be made at all, which is not the same as a comparison that failed."""


class OutputError(NetVLADDeployError):
    """A file could not be written: permission, disk full, or a folder in the way."""

    exit_code = 73


UNAVAILABLE = (DeviceUnavailableError, MissingDependencyError)
"""Errors that make a step NOT_RUN instead of failing it: a device or a package is missing."""
