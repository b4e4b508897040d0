"""The command line, without the seconds that each process takes to import torch and onnx.

A process that has imported them forks for each command. A `netvlad-deploy` on the PATH hands it the words, the folder,
the environment and the three standard streams of its own, and ends as the fork does: shells see no difference.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIM = """#!{python} -IS
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
socket.send_fds(link, [b"."], [0, 1, 2])
link.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
sys.exit(int(link.makefile().readline()))
"""


@contextlib.contextmanager
def forked_commands() -> Iterator[Path]:
    """Yield a folder whose `netvlad-deploy` is answered by one process, which ends with the `with` block."""
    with tempfile.TemporaryDirectory(prefix="nd-") as name:  # short: the path of a socket has 107 bytes at most
        address, shim = str(Path(name, "socket")), Path(name, "netvlad-deploy")
        shim.write_text(SHIM.format(python=sys.executable, address=address))
        shim.chmod(0o755)
        command = [sys.executable, "-m", "tests.forked", address]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield Path(name)
            server.terminate()


def answer(link: socket.socket) -> None:
    """Run one command in a fork, and send its exit code."""
    _, streams, *_ = socket.recv_fds(link, 1, 3)
    words, folder, environment = json.loads(link.makefile().readline())
    process = os.fork()
    if not process:
        run(streams, words, folder, environment)
    for stream in streams:
        os.close(stream)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(OSError):  # who asked was killed
        link.sendall(f"{code if code >= 0 else 128 - code}\n".encode())


def run(streams: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Be the command: this does not return."""
    from netvlad_deploy.__main__ import main

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["netvlad-deploy", *words]
    code: object = 70
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001 - a fault of this package or of this file is shown, and ends the fork alone
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def serve(address: str) -> None:
    import onnxruntime  # noqa: F401 - here, once
    import pytest
    import torch._dynamo  # noqa: F401 - the same
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    from netvlad_deploy import cli  # noqa: F401 - the same
    from netvlad_deploy.workflow import deploy  # noqa: F401 - the same
    from tests.traces import torchlib_once

    torchlib_once(pytest.MonkeyPatch())
    ONNXRegistry.from_torchlib()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        while True:
            link, _ = door.accept()
            with link:
                answer(link)


if __name__ == "__main__":
    serve(sys.argv[1])
