"""The Triton server that the package nvidia-pytriton brings, started without a container.

Its Python backend looks for the program of a model's process beside itself, but the package has one for each version of
Python elsewhere: so the backend is laid out anew, as links.

Source: `Triton` in triton.py of pytriton for the layout; python_backend's README for the program.
"""

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from netvlad_deploy.errors import MissingDependencyError
from netvlad_deploy.support.require import install_line
from netvlad_deploy.support.scratch import held_folder, sweep

STUB: Final = "triton_python_backend_stub"
LOOPBACK: Final = "127.0.0.1"
ADDRESSES: Final = ("--http-address", "--grpc-address", "--metrics-address")
"""Options of the server that say who may connect: this machine alone, where they are not given."""


def start(arguments: Sequence[str]) -> NoReturn:
    """Become the server, with its own options; the model's process runs the Python of this one, with its packages.

    Raises: MissingDependencyError if nvidia-pytriton is not installed, or not for this Python; OutputError without a
        temporary folder.
    """
    server = server_folder()
    sweep()
    backends, handle = held_folder()
    lay_out(server, backends)
    os.set_inheritable(handle, True)  # so the folder is kept while the server lives
    command, environment = command_of(server, backends, arguments, os.environ)
    os.execve(command[0], command, environment)  # noqa: S606


def server_folder() -> Path:
    """Return the folder of the server's files, which are not imported.

    Raises: MissingDependencyError without nvidia-pytriton.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"nvidia-pytriton is not installed: {install_line('triton')}")
    return Path(spec.origin).parent / "tritonserver"


def lay_out(server: Path, backends: Path) -> None:
    """Link the Python backend into a folder, with the program of its processes for this version of Python.

    Raises: MissingDependencyError if there is none.
    """
    python = "{}.{}".format(*sys.version_info)
    stub = server / "python_backend_stubs" / python / STUB
    if not stub.is_file():
        known = sorted(path.name for path in (server / "python_backend_stubs").glob("3.*"))
        raise MissingDependencyError(
            f"this nvidia-pytriton is not for Python {python}, but for {', '.join(known) or 'none'}: take one of those"
        )
    folder = backends / "python"
    folder.mkdir()
    for path in (*(server / "backends" / "python").glob("*.*"), stub):
        (folder / path.name).symlink_to(path)


def command_of(
    server: Path, backends: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return the command that is the server, and its environment.

    The model's process takes the library of the Python of this process, and the packages of the first `python3` in
    PATH.
    """
    given = {argument.partition("=")[0] for argument in arguments}
    local = [f"{name}={LOOPBACK}" for name in ADDRESSES if name not in given]
    command = [str(server / "bin" / "tritonserver"), f"--backend-directory={backends}", *local, *arguments]
    paths = {
        "PATH": (str(Path(sys.executable).parent), environment.get("PATH", "")),
        "LD_LIBRARY_PATH": (sysconfig.get_config_var("LIBDIR") or "", environment.get("LD_LIBRARY_PATH", "")),
    }
    return command, {**environment, **{name: os.pathsep.join(filter(None, each)) for name, each in paths.items()}}
