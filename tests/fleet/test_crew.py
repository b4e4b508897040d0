"""Who computes which shard, on a double of Ray: nodes with GPUs, other versions, workers that fail."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from netvlad_deploy.errors import DeviceUnavailableError, InputError, OutputError, RunError, UsageError
from netvlad_deploy.fleet import cluster as cluster_module
from netvlad_deploy.fleet import crew as crew_module
from netvlad_deploy.fleet.cluster import Cluster
from netvlad_deploy.fleet.crew import MOST_FAILED_SHARDS, Crew
from netvlad_deploy.fleet.places import places_on

Reply = Mapping[str, Any]
OPENED: Reply = {"versions": {"onnxruntime": "1.32.0"}}


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class ActorUnavailableError(RayActorError):
    pass


class ActorUnschedulableError(RayError):
    pass


class Ray:
    """What the crew calls of Ray; `answers(node, shard)` is what a worker says, shard None when it opens the plan."""

    exceptions = SimpleNamespace(
        RayError=RayError,
        RayActorError=RayActorError,
        ActorUnavailableError=ActorUnavailableError,
        ActorUnschedulableError=ActorUnschedulableError,
    )

    def __init__(self, nodes: list[dict[str, Any]], answers: Callable[[str, int | None], Reply]) -> None:
        self._nodes, self._say = nodes, answers
        self.asked: list[tuple[str, int | None]] = []
        self.options: list[dict[str, Any]] = []
        self.killed = 0

    def get_runtime_context(self) -> SimpleNamespace:
        return SimpleNamespace(gcs_address="10.0.0.1:6379")

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def remote(self, _: type) -> SimpleNamespace:
        return SimpleNamespace(options=self._hire)

    def _hire(self, **options: Any) -> SimpleNamespace:
        self.options.append(options)
        node = options["scheduling_strategy"]

        def ask(shard: int | None) -> tuple[str, int | None, int]:
            self.asked.append((node, shard))
            return node, shard, len(self.asked)

        actor = SimpleNamespace(
            open=SimpleNamespace(remote=lambda request, cores: ask(None)), embed=SimpleNamespace(remote=ask)
        )
        return SimpleNamespace(remote=lambda: actor)

    def wait(self, references: list[Any], *, timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: tuple[str, int | None, int]) -> Reply:
        return self._say(*reference[:2])

    def kill(self, actor: Any) -> None:
        self.killed += 1


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"Alive": True, "NodeID": name, "NodeManagerAddress": f"host-{name}", "Resources": resources}


def done(name: str, shard: int | None) -> Reply:
    return OPENED if shard is None else {"done": {"shard": shard}}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Crew, list[int]]]:
    """Return a function that has ten shards computed, and returns the crew and the shards that are done."""
    clock = iter(range(10**6))
    monkeypatch.setattr(cluster_module, "listens", lambda _: True)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    strategies = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda name, soft: name)
    monkeypatch.setattr(crew_module, "require", lambda *_, **__: strategies)

    def run(ray: Ray, *, on_gpu: bool = False, shards: int = 10) -> tuple[Crew, list[int]]:
        said: list[int] = []
        crew = Crew(
            ray, Cluster(ray, on_gpu=on_gpu), range(shards), {}, say=lambda answer: said.append(answer["shard"])
        )
        crew.run()
        return crew, sorted(said)

    return run


Run = Callable[..., tuple[Crew, list[int]]]


def test_each_gpu_and_each_few_cores_have_a_worker() -> None:
    nodes = [node("head"), node("gpus", CPU=18, GPU=4), node("cores", CPU=6), {**node("dead", CPU=8), "Alive": False}]
    assert [(each.node, each.cpus, each.gpus) for each in places_on(nodes, on_gpu=True)] == [("gpus", 4, 1)] * 4
    cores = [(each.node, each.cpus, each.gpus) for each in places_on(nodes, on_gpu=False)]
    assert cores == [("gpus", 3, 0)] * 5 + [("cores", 3, 0)] * 2


def test_a_worker_gets_a_gpu_and_its_share_of_the_cores_from_ray(run: Run) -> None:
    ray = Ray([node("a", CPU=16, GPU=2)], done)
    _, said = run(ray, on_gpu=True)
    assert said == list(range(10))
    assert [(each["num_gpus"], each["num_cpus"]) for each in ray.options] == [(1, 8), (1, 8)]


def test_no_more_workers_begin_than_there_are_shards(run: Run) -> None:
    ray = Ray([node(name, CPU=4) for name in "abcdef"], done)
    run(ray, shards=2)
    assert len(ray.options) == 2


def test_a_cluster_without_what_is_needed_is_refused(run: Run) -> None:
    with pytest.raises(DeviceUnavailableError, match="no node of the Ray cluster has a GPU: add one with `ray start`"):
        run(Ray([node("a", CPU=4)], done), on_gpu=True)


def test_a_node_with_other_packages_is_refused(run: Run) -> None:
    def say(name: str, shard: int | None) -> Reply:
        return done(name, shard) if shard is not None or name == "a" else {"versions": {"onnxruntime": "1.31.0"}}

    with pytest.raises(UsageError, match=r"node host-b has onnxruntime 1\.31\.0, another one has 1\.32\.0: install"):
        run(Ray([node("a", CPU=4), node("b", CPU=4)], say))


def test_a_node_that_sees_other_files_ends_the_work(run: Run) -> None:
    with pytest.raises(InputError, match="node host-a: the plan is not there"):
        run(Ray([node("a", CPU=4)], lambda *_: {"error": "InputError", "reason": "the plan is not there"}))


def test_a_node_that_cannot_run_is_left_out_unless_it_is_the_last(run: Run) -> None:
    broken = {"error": "DeviceUnavailableError", "reason": "no GPU"}

    def say(name: str, shard: int | None) -> Reply:
        return broken if shard is None and name == "b" else done(name, shard)

    ray = Ray([node("a", CPU=4), node("b", CPU=4)], say)
    _, said = run(ray)
    assert said == list(range(10))
    assert {name for name, shard in ray.asked if shard is not None} == {"a"}
    with pytest.raises(DeviceUnavailableError, match="node host-b: no GPU"):
        run(Ray([node("b", CPU=4)], say))


def test_a_shard_in_other_hands_is_asked_for_again(run: Run) -> None:
    busy = deque([{"error": "InUseError", "reason": "in use by process 7"}] * 5)

    def say(name: str, shard: int | None) -> Reply:
        return busy.popleft() if shard == 3 and busy else done(name, shard)

    crew, said = run(Ray([node("a", CPU=4)], say))
    assert said == list(range(10))
    assert not crew.failed


def test_a_shard_whose_workers_die_fails_in_the_end_and_one_whose_nodes_die_does_not(run: Run) -> None:
    deaths = deque(["The actor died because its node has died."] * 20)

    def say(name: str, shard: int | None) -> Reply:
        if shard == 3:
            raise RayActorError("The actor died.\nworker exit type: SYSTEM_ERROR")
        if shard == 4 and deaths:
            raise RayActorError(deaths.pop())
        return done(name, shard)

    ray = Ray([node("a", CPU=4)], say)
    crew, said = run(ray)
    assert said == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert crew.failed == {3: {"error": "RunError", "reason": "its workers die: worker exit type: SYSTEM_ERROR"}}
    assert ray.killed == 24


def test_a_node_whose_workers_die_at_once_is_left_out(run: Run) -> None:
    def cannot_begin(name: str, shard: int | None) -> Reply:
        raise RayActorError("The actor died\nno module")

    with pytest.raises(RunError, match="node host-a: workers die before they begin: no module"):
        run(Ray([node("a", CPU=4)], cannot_begin))


def test_a_full_disk_and_many_failed_shards_end_the_work(run: Run) -> None:
    def full(name: str, shard: int | None) -> Reply:
        return OPENED if shard is None else {"error": "OutputError", "reason": "No space left on device"}

    with pytest.raises(OutputError, match="node host-a: No space left on device"):
        run(Ray([node("a", CPU=4)], full))

    def fail(name: str, shard: int | None) -> Reply:
        return OPENED if shard is None else {"error": "RunError", "reason": "not finite"}

    crew, said = run(Ray([node("a", CPU=4)], fail), shards=1000)
    assert not said
    assert len(crew.failed) == MOST_FAILED_SHARDS


@pytest.mark.parametrize(("answers", "words"), [(True, "has lost its last node"), (False, "does not answer any more")])
def test_a_cluster_that_has_gone_is_said(run: Run, monkeypatch: pytest.MonkeyPatch, answers: bool, words: str) -> None:
    nodes = [node("a", CPU=4)]

    def say(name: str, shard: int | None) -> Reply:
        if shard == 5:
            nodes.clear()
            monkeypatch.setattr(cluster_module, "listens", lambda _: answers)
        if not nodes:
            raise ActorUnavailableError("The actor is unavailable")
        return done(name, shard)

    with pytest.raises(RunError, match=f"the Ray cluster {words}.*: run the same command again when it is back"):
        run(Ray(nodes, say))


def test_an_error_of_ray_itself_counts_against_the_shard(run: Run) -> None:
    def say(name: str, shard: int | None) -> Reply:
        if shard == 1:
            raise RayError("ray::Worker.embed()\n  File ...\nMemoryError: 3 GiB")
        return done(name, shard)

    crew, _ = run(Ray([node("a", CPU=4)], say))
    assert crew.failed[1]["reason"] == "node host-a: MemoryError: 3 GiB"


def test_a_cluster_that_does_not_start_is_named_by_what_ray_says() -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nmore")  # noqa: TRY002 - the class that Ray raises

    with pytest.raises(DeviceUnavailableError, match=r"Ray at local cannot be used: .* timed out during startup\.$"):
        cluster_module.connect(SimpleNamespace(init=init), "local", "scratch")
