"""The workers on a cluster, and which shard each of them computes."""

import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from netvlad_deploy import errors
from netvlad_deploy.errors import (
    UNAVAILABLE,
    InUseError,
    NetVLADDeployError,
    OutputError,
    RunError,
    UsageError,
)
from netvlad_deploy.fleet.cluster import Cluster
from netvlad_deploy.fleet.places import Place
from netvlad_deploy.fleet.worker import Reply, Worker
from netvlad_deploy.support.require import require

LOG = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""Seconds between two looks at the nodes of the cluster."""

SLOW_S: Final = 60.0
"""Seconds after which it is said that no worker has begun."""

MOST_ERRORS: Final = 2
"""Errors of a shard after which it counts as failed."""

MOST_DEATHS: Final = 4
"""Workers that die at a shard, while their nodes live, before it counts as failed: one may be the machine's fault."""

MOST_FAILED_SHARDS: Final = 20
"""Failed shards after which no more are begun: what they have in common is no shard's fault."""

NODE_DIED: Final = "its node has died"
"""What Ray says of a worker whose node has gone. Source: Ray 2.60, gcs_actor_manager.cc."""


@dataclass
class _Hand:
    """A worker; what it is asked (None: nothing), and the shard that this is about (None: it opens the plan)."""

    actor: Any
    pending: Any
    shard: int | None = None


class Crew:
    """The workers on a cluster, one at each of its places, and the shards that they compute.

    Args:
        ray: the package, connected.
        cluster: where workers can run.
        numbers: the shards.
        request: what `request_for` returns, for each worker.
        say: is called with the answer to each shard that is done.

    `failed` has the error of each shard that failed.
    """

    def __init__(
        self,
        ray: Any,
        cluster: Cluster,
        numbers: Sequence[int],
        request: Mapping[str, Any],
        *,
        say: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._ray, self._cluster, self._request, self._say = ray, cluster, request, say
        self._waiting = deque(numbers)
        self._held: list[int] = []  # shards in the hands of a process that is no worker here
        self._hands: dict[Place, _Hand] = {}
        self._closed: dict[Place, NetVLADDeployError] = {}
        self._deaths: Counter[int | Place] = Counter()
        self._errors: Counter[int] = Counter()
        self._versions: Mapping[str, str] | None = None
        self._looked_s, self._slow_s = 0.0, time.monotonic() + SLOW_S
        self.failed: dict[int, Reply] = {}

    def run(self) -> None:
        """Have all shards computed, each by the next worker that is free, and again where a worker has died.

        Raises: DeviceUnavailableError if no node has what a worker needs; RunError if the cluster goes away;
            OutputError if the disk is full; and what a worker says that cannot open the plan.
        """
        while self._waiting or self._held or any(hand.shard is not None for hand in self._hands.values()):
            if time.monotonic() - self._looked_s >= LOOK_S:
                self._look()
            for hand in self._hands.values():
                if self._waiting and hand.pending is None:
                    hand.shard = self._waiting.popleft()
                    hand.pending = hand.actor.embed.remote(hand.shard)
            for place, answer in self._answers():
                self._take(place, answer)

    def _look(self) -> None:
        """Put a worker at each place that has none, no more than there are shards; ask for held shards again.

        Raises: as `Cluster.places`; and what keeps workers from all places.
        """
        self._looked_s = time.monotonic()
        self._waiting.extend(self._held)
        self._held.clear()
        places = self._cluster.places()
        free = [place for place in places if place not in self._closed]
        if places and not free:
            raise self._closed[places[0]]
        for place in set(self._hands).difference(places):
            if self._hands[place].pending is None:  # else Ray says that it has died
                del self._hands[place]
        left = len(self._waiting) + sum(hand.shard is not None for hand in self._hands.values())
        for place in free:
            if place not in self._hands and len(self._hands) < left:
                self._hands[place] = self._hire(place)
        if self._versions is None and self._looked_s > self._slow_s:
            self._slow_s += 10 * SLOW_S
            LOG.warning("no worker has begun yet: other jobs may hold the cores or GPUs of the cluster")

    def _hire(self, place: Place) -> _Hand:
        affinity = require("ray.util.scheduling_strategies", extra="ray").NodeAffinitySchedulingStrategy
        actor = (
            self._ray.remote(Worker)
            .options(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=affinity(place.node, soft=False))
            .remote()
        )
        return _Hand(actor, actor.open.remote(self._request, place.cpus))

    def _answers(self) -> Iterator[tuple[Place, Reply]]:
        """Wait for answers, no longer than to the next look; the shard of a worker that has died waits again."""
        asked = {hand.pending: place for place, hand in self._hands.items() if hand.pending is not None}
        if not asked:
            time.sleep(LOOK_S / 10)
            return
        exceptions = self._ray.exceptions
        for reference in self._ray.wait(list(asked), timeout=LOOK_S)[0]:
            place = asked[reference]
            try:
                yield place, self._ray.get(reference)
            except (exceptions.RayActorError, exceptions.ActorUnschedulableError) as error:
                unreachable = isinstance(error, exceptions.ActorUnavailableError)
                self._bury(place, str(error).strip(), unreachable=unreachable)
            except exceptions.RayError as error:  # a fault in the worker's own code, which Ray has wrapped
                yield place, {"error": "RunError", "reason": str(error).strip().rpartition("\n")[2]}

    def _take(self, place: Place, answer: Reply) -> None:
        """Take what a worker has answered; it is free then."""
        hand = self._hands[place]
        shard, hand.shard, hand.pending = hand.shard, None, None
        if "error" not in answer:
            if shard is None:
                self._check_versions(place, answer["versions"])
            else:
                self._say({"shard": shard, "done": answer["done"]})
            return
        error: NetVLADDeployError = getattr(errors, answer["error"])(f"node {place.address}: {answer['reason']}")
        if shard is None:
            self._close(place, error)
        elif isinstance(error, InUseError):
            LOG.info("shard %d is waited for: %s", shard, error)
            self._held.append(shard)
        elif isinstance(error, OutputError):
            raise error
        else:
            self._errors[shard] += 1
            self._retry(shard, self._errors[shard] < MOST_ERRORS, {**answer, "reason": str(error)})

    def _retry(self, shard: int, again: bool, answer: Reply) -> None:
        """Put a shard behind all others, or count it as failed; too many failed ones end the work."""
        if again:
            LOG.warning("shard %d is tried again: %s", shard, answer["reason"])
            self._waiting.append(shard)
            return
        LOG.warning("shard %d has failed: %s", shard, answer["reason"])
        self.failed[shard] = answer
        if len(self.failed) >= MOST_FAILED_SHARDS:
            self._waiting.clear()
            self._held.clear()

    def _bury(self, place: Place, reason: str, *, unreachable: bool) -> None:
        """Give up a worker that has died: its shard waits again, and the next look hires another.

        An unreachable one has died with its node, or by itself: that counts against a shard, not against the place.
        """
        hand = self._hands.pop(place)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(hand.actor)
        last = reason.rpartition("\n")[2]
        LOG.warning("a worker on node %s has died: %s", place.address, last)
        if hand.shard is not None:
            self._deaths[hand.shard] += NODE_DIED not in reason
            again = self._deaths[hand.shard] < MOST_DEATHS
            self._retry(hand.shard, again, {"error": "RunError", "reason": f"its workers die: {last}"})
        elif not unreachable and NODE_DIED not in reason:
            self._deaths[place] += 1
            if self._deaths[place] >= MOST_DEATHS:
                self._closed[place] = RunError(f"node {place.address}: workers die before they begin: {last}")

    def _close(self, place: Place, error: NetVLADDeployError) -> None:
        """Leave a place out whose worker cannot run; one that sees other files, or has other code, ends the work.

        Raises: that error.
        """
        if not isinstance(error, (*UNAVAILABLE, RunError)):
            raise error
        LOG.warning("left out: %s", error)
        self._ray.kill(self._hands.pop(place).actor)
        self._closed[place] = error

    def _check_versions(self, place: Place, versions: Mapping[str, str]) -> None:
        """Refuse a node with other packages than the first one: its descriptors would differ in their last bits."""
        first = self._versions = self._versions or versions
        for name in sorted(set(first) | set(versions)):
            here, there = versions.get(name), first.get(name)
            if here != there:
                raise UsageError(
                    f"node {place.address} has {name} {here}, another one has {there}: install the same on all nodes"
                )
