"""Where workers run on a cluster: one for each GPU, or for each few cores of a node."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

CORES_EACH: Final = 4
"""Cores of a worker on a CPU: with more of them one session gains less and less, and a second session gains more."""


@dataclass(frozen=True)
class Place:
    """Where one worker runs, and what of its node it has to itself.

    Args:
        node: the node's identity in Ray.
        address: the node's network address, for messages.
        number: which worker of this node.
        cpus: cores that the worker has.
        gpus: GPUs that it has, 0 or 1.
    """

    node: str
    address: str
    number: int
    cpus: int
    gpus: int


def places_on(nodes: Iterable[Mapping[str, Any]], *, on_gpu: bool) -> list[Place]:
    """Return a place for each worker on the nodes of a cluster that live, as `ray.nodes()` lists them.

    A node of 6 cores has two places of 3 cores, one of 4 GPUs and 32 cores has four places of 8 cores and a GPU. A node
    without cores, as the head of a cluster often is, or without a GPU where one is needed, has none.

    >>> places_on([{"Alive": True, "NodeID": "a", "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 6.0}}],
    ...     on_gpu=False)[1]
    Place(node='a', address='10.0.0.2', number=1, cpus=3, gpus=0)
    """
    places: list[Place] = []
    for node in nodes:
        if not node["Alive"]:
            continue
        cpus, gpus = (int(node["Resources"].get(name, 0)) for name in ("CPU", "GPU"))
        count = gpus if on_gpu else -(-cpus // CORES_EACH)
        places.extend(
            Place(node["NodeID"], node["NodeManagerAddress"], number, max(cpus // count, 1), int(on_gpu))
            for number in range(count)
            if cpus
        )
    return places
