"""A Ray cluster: the connection, its nodes, and whether it is still there."""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, Final

from netvlad_deploy.errors import DeviceUnavailableError, RunError
from netvlad_deploy.fleet.places import Place, places_on

OWN_CLUSTER: Final = "local"
"""The address that stands for a cluster of this machine alone, which lives as long as the driver."""

STORE_BYTES: Final = 80 * 2**20
"""Shared memory of a local cluster, about the least that Ray takes: shards go through files."""

CONNECT_S: Final = 3.0

NO_ANSWER: Final = "the Ray cluster does not answer any more: run the same command again when it is back"

RAY_ENDS: Final = "The program will terminate."
"""The last words of a driver that was asking the cluster when it went. Source: Ray 2.60, gcs_rpc_client.h."""

GONE_S: Final = 20.0
"""Seconds without an answer after which the cluster, or the last of its nodes, counts as gone. Ray itself ends its
driver after 60. Source: Ray 2.60, gcs_rpc_server_reconnect_timeout_s.
"""


def connect(ray: Any, address: str, scratch: str) -> None:
    """Connect to the cluster, or start one on this machine, which keeps its files in the folder `scratch`.

    Raises: DeviceUnavailableError if there is none, or it is of another version of Ray or Python.
    """
    own: Mapping[str, Any] = {}
    if address == OWN_CLUSTER:
        own = {
            "num_cpus": len(os.sched_getaffinity(0)),
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": scratch,
        }
    elif address != "auto" and not listens(address):
        raise DeviceUnavailableError(f"no Ray cluster answers at {address}: give the address that `ray start` printed")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **own)
    except Exception as error:  # Ray raises this very class where a node does not start in time
        first = str(error).strip().partition("\n")[0]
        raise DeviceUnavailableError(f"Ray at {address} cannot be used: {first}") from error


def listens(address: str) -> bool:
    """Return True if a process listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


class Cluster:
    """The nodes of the cluster that `ray` is connected to; `gone` says that it cannot be reached any more."""

    def __init__(self, ray: Any, *, on_gpu: bool) -> None:
        self._ray, self._on_gpu = ray, on_gpu
        self._address: str = ray.get_runtime_context().gcs_address
        self._places: list[Place] = []
        self._answered_s = self._manned_s = time.monotonic()
        self._was_manned = self.gone = False

    def places(self) -> list[Place]:
        """Return where workers can run now; what was seen last where the cluster does not answer.

        Raises: DeviceUnavailableError if there has been no such place; RunError if the cluster, or its last node, has
            been gone for GONE_S.
        """
        now = time.monotonic()
        if listens(self._address):  # without this, asking for the nodes would wait, and then end this process
            self._answered_s = now
            self._places = places_on(self._ray.nodes(), on_gpu=self._on_gpu)
        if self._places:
            self._was_manned, self._manned_s = True, now
        elif not self._was_manned:
            what = "GPU" if self._on_gpu else "CPU"
            raise DeviceUnavailableError(f"no node of the Ray cluster has a {what}: add one with `ray start`")
        self.gone = now - self._answered_s > GONE_S
        if self.gone:
            raise RunError(NO_ANSWER)
        if now - self._manned_s > GONE_S:
            raise RunError(
                "the Ray cluster has lost its last node that could work: run the same command again when it is back"
            )
        return self._places
