"""The driver: a process that connects to a Ray cluster, and has it compute the shards of a plan.

It is a process of its own since Ray ends its driver where it stands, without an exception, a minute after a cluster has
gone. What Ray prints goes to a file: its raylets fill a terminal when a node dies.
"""

import os

from netvlad_deploy.fleet.cluster import Cluster, connect
from netvlad_deploy.fleet.crew import Crew
from netvlad_deploy.support.children import Channel
from netvlad_deploy.support.require import require


def serve(channel: Channel) -> None:
    """Have the shards computed that the parent asks for, and send it the answer to each.

    Raises: DeviceUnavailableError if there is no such cluster; MissingDependencyError without Ray; and as `Crew.run`.
    """
    request, _ = channel.receive()
    _print_into(request["log"])
    ray = require("ray", extra="ray")
    connect(ray, request["address"], request["scratch"])
    cluster = Cluster(ray, on_gpu=request["on_gpu"])
    crew = Crew(ray, cluster, request["numbers"], request["worker"], say=channel.send)
    try:
        crew.run()
    finally:
        if not cluster.gone:  # Ray would wait for it
            ray.shutdown()
    channel.send({"failed": list(crew.failed.items())})


def _print_into(path: str) -> None:
    """Send what this process and its children print to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
