"""A Ray cluster of three nodes on this machine, in a process of its own: `python -m tests.fleet.ray_nodes`.

The head has no cores, the two others one each. It says its address, then the raylet of each node, and obeys words on
its standard input: `kill N` kills node N as a power cut does, `end` ends all. Without a word more it ends, too.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes 127.0.0.1 for a name of the machine, as others see it
}
"""Variables of the cluster and of those who connect to it."""

STORE_BYTES = 80 * 2**20


def main() -> None:
    from ray.cluster_utils import Cluster

    Path(os.environ["RAY_TMPDIR"], "ray").mkdir()  # where Ray keeps its files, and writes which cluster is there
    cluster: Any = Cluster()
    settings: dict[str, Any] = {
        "node_ip_address": "127.0.0.1",
        "object_store_memory": STORE_BYTES,
        "include_log_monitor": False,
        "no_monitor": True,
    }
    nodes = [cluster.add_node(num_cpus=0, include_dashboard=False, **settings)]
    nodes += [cluster.add_node(num_cpus=1, wait=False, **settings) for _ in range(2)]
    cluster.wait_for_nodes()
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for line in sys.stdin:
        if not line.startswith("kill"):
            break
        nodes[int(line.split()[1])].kill_all_processes(check_alive=False, allow_graceful=False)
        print("killed", flush=True)
    with contextlib.suppress(Exception):  # of nodes that are dead already
        cluster.shutdown()
    for node in nodes:
        with contextlib.suppress(Exception):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
