"""Several shards as one flow: they overlap, no more than a few are under way, and a claim is held until the record."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.bulk import flow
from netvlad_deploy.bulk.flow import MOST_BEGUN, embed_shards
from netvlad_deploy.bulk.plan import Plan
from netvlad_deploy.bulk.shards import ShardDone, record_path, shard_path, write_shard
from netvlad_deploy.errors import InUseError, OutputError
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.support.claims import claimed
from netvlad_deploy.support.files import sha256_file
from tests.bulk.conftest import plan_of, write_photos
from tests.processes import until

PHOTOS = 24


class Means(Runner):
    """Gives the mean colour of each image and the images beside it, so that no batch is like another; counts images."""

    def __init__(self) -> None:
        spec = NetVLADSpec(num_clusters=1, feature_size=3)
        super().__init__("means", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8))
        self.images = 0

    def _run(self, feeds: Arrays) -> Arrays:
        self.images += len(feeds[IMAGES])
        return {DESCRIPTOR: feeds[IMAGES].mean(axis=(1, 2), dtype=np.float32) + feeds[IMAGES].mean(dtype=np.float32)}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    """Return what makes the plan of 24 photos, in shards of a size."""
    write_photos(tmp_path / "photos", PHOTOS)

    def plan(shard_size: int, name: str = "y.npz") -> Plan:
        return plan_of(tmp_path / "photos", tmp_path / name, values=3, batch=2, shard_size=shard_size)

    return plan


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return what lets the writer go on, which waits before its first shard."""
    free = threading.Event()

    def hold(*arguments: object) -> ShardDone:
        free.wait()
        return write_shard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(flow, "write_shard", hold)
    yield free
    free.set()


def left(plan: Plan) -> list[str]:
    """Return what is neither a complete shard nor the plan, and the threads."""
    names = [path.name for path in plan.folder.iterdir() if path.suffix == ".lock" or path.name.startswith(".")]
    return names + [each.name for each in threading.enumerate() if each.name.startswith(("decode", "run-", "write"))]


def test_many_shards_have_the_bytes_of_single_ones(planned: Callable[..., Plan]) -> None:
    together, single = planned(5), planned(5, "z.npz")
    assert [done.shard for done in embed_shards(together, [3, 1, 0, 2, 4], Means())] == [0, 1, 2, 3, 4]
    for number in reversed(range(single.shards)):
        (done,) = embed_shards(single, [number], Means())
        assert done.shard == number
        assert done.sha256 == sha256_file(shard_path(together.folder, number))
    assert not left(together)


def test_later_shards_are_computed_while_one_is_written(planned: Callable[..., Plan], held: threading.Event) -> None:
    """As many as there are in flight, and no more: each has its claim, and its listing in memory."""
    plan, runner = planned(1), Means()
    shards = embed_shards(plan, range(plan.shards), runner)
    consumer = threading.Thread(target=lambda: list(shards))
    consumer.start()
    until(lambda: runner.images == MOST_BEGUN)
    assert len(list(plan.folder.glob("*.lock"))) == MOST_BEGUN
    held.set()
    consumer.join()
    assert (runner.images, len(list(plan.folder.glob("*.npz")))) == (PHOTOS, PHOTOS)
    assert not left(plan)


def test_a_claim_is_held_until_the_record_stands(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, seen = planned(8), []

    def written(*arguments: object) -> ShardDone:
        done = write_shard(*arguments)  # type: ignore[arg-type]
        with pytest.raises(InUseError), claimed(plan.folder / f"shard-{done.shard:06}.lock"):
            pass
        seen.append(record_path(plan.folder, done.shard).exists())
        return done

    monkeypatch.setattr(flow, "write_shard", written)
    for done in embed_shards(plan, range(3), Means()):
        with claimed(plan.folder / f"shard-{done.shard:06}.lock"):
            assert all(seen)
    assert len(seen) == 3


@pytest.mark.parametrize("how", ["closed", "full disk", "claimed"])
def test_what_ends_it_early_leaves_whole_shards_alone(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Threads end although one of them waits for room, claims go, and the shards before are there."""
    plan = planned(1)

    def full(_: Plan, number: int, *rest: object) -> ShardDone:
        if number == 2 and how == "full disk":
            raise OutputError("the disk is full")
        return write_shard(plan, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(flow, "write_shard", full)
    shards = embed_shards(plan, range(plan.shards), Means())
    if how == "closed":
        assert [next(shards).shard for _ in range(2)] == [0, 1]
        shards.close()
    elif how == "full disk":
        with pytest.raises(OutputError, match="the disk is full"):
            list(shards)
    else:
        with claimed(plan.folder / "shard-000002.lock"), pytest.raises(InUseError, match="is in use by process"):
            list(shards)
    there = sorted(path.stem for path in plan.folder.glob("*.npz"))
    assert there[:2] == ["shard-000000", "shard-000001"]
    assert (len(there) == 2) == (how != "closed")
    assert there == sorted(path.stem for path in plan.folder.glob("shard-??????.json"))
    assert not left(plan)
