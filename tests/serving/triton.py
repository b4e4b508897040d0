"""A Triton server and a client of it for tests and tools, both of the environment that `make` builds for them."""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from netvlad_deploy.artifact import OnnxArtifact, stage_artifact
from netvlad_deploy.spec.images import Resize
from netvlad_deploy.support.arrays import Array
from netvlad_deploy.support.files import stage_files

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(os.environ.get("NETVLAD_TRITON_VENV", ROOT / ".venv-triton"))
PROGRAM = Path(__file__).with_name("triton_program.py")
READY_S, STOP_S = 60.0, 40.0
SHARED_MEMORY = Path("/dev/shm")

Given: TypeAlias = "bytes | Sequence[bytes] | Array"
"""An encoded image, several of them, or pixels (B,H,W,3)."""


def with_resize(artifact: OnnxArtifact, path: Path, resize: Resize) -> OnnxArtifact:
    """Write the same graph as another artifact, whose images are resized by another rule."""
    assert artifact.images is not None
    other = replace(artifact, path=path, images=replace(artifact.images, resize=resize))
    with stage_files(force=True) as staging:
        other = stage_artifact(staging, other, artifact.path.read_bytes())
        staging.write(other.reference_path, artifact.reference_path.read_bytes())
    return other


def installed() -> bool:
    return (ENVIRONMENT / ".installed").is_file()


def lives(pid: int) -> bool:
    """Return False for a process that has ended, also if nobody has asked for its exit code yet."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def python() -> Path:
    return ENVIRONMENT / "bin" / "python3"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def inputs(given: Any, name: str = "", datatype: str = "") -> list[dict[str, Any]]:
    """Return one input of a request as the client's program reads it."""
    if isinstance(given, np.ndarray):
        types = {"uint8": "UINT8", "float32": "FP32", "bool": "BOOL"}
        data: Any = base64.b64encode(given.tobytes()).decode()
        said = {"datatype": datatype or types[str(given.dtype)], "dtype": str(given.dtype), "shape": list(given.shape)}
        return [{"name": name or "pixels", "data": data, **said}]
    files = [given] if isinstance(given, bytes) else list(given)
    data = [base64.b64encode(each).decode() for each in files]
    return [{"name": name or "image", "datatype": "BYTES", "shape": [len(files), 1], "data": data}]


class Client:
    """The client's program, to which a server is given with each question."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, kind: str, **said: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"kind": kind, **said}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def open_client() -> Iterator[Client]:
    with subprocess.Popen(
        [str(python()), str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Client(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


class Server:
    """A running server: what it said, and what is asked of it."""

    def __init__(self, repository: Path, log: Path, client: Client, *options: str) -> None:
        self.client, self.log = client, log
        self.ports = {"http": free_port(), "grpc": free_port()}
        self.prefix = f"netvlad-test-{self.ports['http']}-"
        self._command = [
            *(str(python()), "-m", "netvlad_deploy.serving", "--model-repository", str(repository)),
            *(f"--{protocol}-port={port}" for protocol, port in self.ports.items()),
            "--allow-metrics=false",
            *(f"--backend-config=python,shm-region-prefix-name={self.prefix}", *options),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=ROOT, env=outside)
        ends = time.monotonic() + READY_S
        while time.monotonic() < ends and self._process.poll() is None:
            if self.call("is_server_ready").get("answer"):
                return
            time.sleep(0.1)
        raise AssertionError(f"the server is not ready: {self.said()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the server, and return its exit code."""
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            return self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        finally:
            self._process = None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def children(self) -> list[int]:
        """Return the processes of the models that live."""
        assert self._process is not None
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in listed.read_text().split() if lives(int(pid))]

    def left(self) -> list[str]:
        """Return what it has in shared memory."""
        return [path.name for path in SHARED_MEMORY.glob(f"{self.prefix}*")]

    def address(self, protocol: str) -> str:
        return f"127.0.0.1:{self.ports[protocol]}"

    def call(self, method: str, *arguments: str) -> dict[str, Any]:
        return self.client.ask(
            "call", protocol="grpc", address=self.address("grpc"), method=method, arguments=arguments
        )

    def statistics(self, model: str) -> dict[str, Any]:
        asked = {"protocol": "http", "address": self.address("http"), "method": "get_inference_statistics"}
        answer: dict[str, Any] = self.client.ask("call", **asked, arguments=[model])["answer"]
        return answer

    def infer(self, model: str, said: Sequence[Mapping[str, Any]], protocol: str = "grpc") -> Array | str:
        """Return the descriptors of a request (B,P), or the line that refuses it."""
        answer = self.client.ask(
            "infer", protocol=protocol, address=self.address(protocol), model=model, inputs=list(said)
        )
        if "error" in answer:
            return str(answer["error"])
        shape: list[int] = answer["shape"]
        return np.frombuffer(base64.b64decode(answer["data"]), np.float32).reshape(shape)

    def load(
        self, model: str, given: Sequence[Any], expected: Sequence[Array], protocol: str = "grpc", **amount: float
    ) -> dict[str, Any]:
        """Ask with several clients at once; no values expected: the request must be refused."""
        return self.client.ask(
            "load",
            protocol=protocol,
            address=self.address(protocol),
            model=model,
            inputs=[inputs(each) for each in given],
            expected=[base64.b64encode(each.astype(np.float32).tobytes()).decode() for each in expected],
            **amount,
        )


@contextlib.contextmanager
def running(repository: Path, log: Path, client: Client, *options: str) -> Iterator[Server]:
    """Yield a server that is ready, and end it; nothing of it may be left."""
    server = Server(repository, log, client, *options)
    try:
        server.start()
        yield server
    finally:
        code = server.stop()
    assert (code, server.left()) == (0, []), server.said()[-2000:]
