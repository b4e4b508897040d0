"""Shards computed on a Ray cluster of several nodes, whatever is killed meanwhile."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.support.claims import claimed
from tests.fleet.ray_nodes import ENVIRONMENT
from tests.processes import alive, until

pytestmark = [pytest.mark.ray, pytest.mark.ort, pytest.mark.export, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
IMAGES, SHARD = 48, 4
SHARDS = IMAGES // SHARD
MARK = "NETVLAD_TEST_CLUSTER"


@dataclass
class Nodes:
    """A cluster, and the folder where its users work: the artifact, images, and their descriptors by a plain run."""

    process: "subprocess.Popen[str]"
    address: str
    raylets: list[int]
    folder: Path
    environment: dict[str, str]
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def kill(self, node: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"kill {node}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "killed\n"

    def start(self, target: str, *options: str, ray: str | None = "") -> "subprocess.Popen[str]":
        """Start `embed` into a target; on this cluster, unless another address is given, or None for no Ray."""
        command = ["embed", "tiny.onnx", "images", "-o", target, "--shard-size", str(SHARD), *options]
        command += [] if ray is None else ["--ray", ray or self.address]
        self.started.append(
            subprocess.Popen(
                [sys.executable, "-m", "netvlad_deploy", *command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return self.started[-1]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, tiny: OnnxArtifact) -> Iterator[Nodes]:
    """Return a cluster of a head without cores and two nodes of one; nothing of it is left at the end."""
    folder, mark = tmp_path_factory.mktemp("fleet"), uuid.uuid4().hex
    for path in (tiny.path, tiny.reference_path, tiny.path.with_name(f"{tiny.path.name}.json")):
        shutil.copy(path, folder)
    write_images(folder / "images")
    environment = {**os.environ, **ENVIRONMENT, MARK: mark, "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    with (
        tempfile.TemporaryDirectory(prefix="nd-", ignore_cleanup_errors=True) as short,  # of sockets: 107 bytes at most
        (folder / "nodes.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.fleet.ray_nodes"],
            cwd=ROOT,
            env=environment | {"RAY_TMPDIR": short},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (folder / "nodes.log").read_text()
        found = Nodes(process=process, folder=folder, environment=environment, **json.loads(line))
        plain = found.start("plain", ray=None)
        assert plain.wait() == 1, plain.communicate()
        yield found
        process.communicate("end\n")
        for each in found.started:
            each.kill()
            each.communicate()
        until(lambda: not alive(MARK, mark))
    assert not Path(short).exists()


def write_images(folder: Path) -> None:
    """Write images that take a moment each, one of them damaged."""
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = random.integers(0, 255, (240, 320 + 32 * (number % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / "017.png").write_bytes(b"no image")


def records(folder: Path) -> set[int]:
    return {int(path.stem[-6:]) for path in folder.glob("shard-??????.json")}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder of shards by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same_as_plain(nodes: Nodes, target: str) -> bool:
    """Return True if a folder of shards is that of the plain run in every byte."""
    return contents(nodes.folder / target) == contents(nodes.folder / "plain")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Return how a run ended, and what it said of it."""
    output, said = process.communicate()
    return process.returncode, output + said


def state_and_parent(process: int) -> tuple[str, int]:
    state, parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, int(parent)


def is_held(path: Path) -> bool:
    """Return True if a process holds the claim in a file."""
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def stopped_within_a_shard(folder: Path, raylets: list[int]) -> tuple[int, int]:
    """Stop a worker of one of some nodes while it is at a shard; return its process and its node's raylet."""
    found: list[tuple[int, int]] = []

    def caught() -> bool:
        for path in folder.glob("shard-*.lock"):
            try:
                process = int(json.loads(path.read_bytes())["pid"])
                raylet = state_and_parent(process)[1]
                if raylet not in raylets:
                    continue
                os.kill(process, signal.SIGSTOP)
                if is_held(path) and state_and_parent(process)[0] == "T":  # "Z" is one that was killed before
                    found.append((process, raylet))
                    return True
                os.kill(process, signal.SIGCONT)
            except (OSError, ValueError):  # the shard is done, and the file gone
                continue
        return False

    until(caught)
    return found[0]


def hold(stack: ExitStack, folder: Path, shards: Any) -> None:
    """Hold shards as another process would, as soon as they are listed: workers must wait for them."""
    until((folder / "manifest.json").exists)
    for shard in shards:
        stack.enter_context(claimed(folder / f"shard-{shard:06}.lock"))


def test_a_killed_worker_and_a_killed_node_cost_nothing_but_time(nodes: Nodes) -> None:
    folder = nodes.folder / "hurt"
    run = nodes.start("hurt")
    first, safe = stopped_within_a_shard(folder, nodes.raylets)  # until the end it leaves the work to the other node
    others = [raylet for raylet in nodes.raylets if raylet != safe]
    worker, _ = stopped_within_a_shard(folder, others)
    os.kill(worker, signal.SIGKILL)
    worker, hurt = stopped_within_a_shard(folder, others)  # another one, in its place
    nodes.kill(nodes.raylets.index(hurt))
    os.kill(worker, signal.SIGKILL)
    os.kill(first, signal.SIGCONT)
    code, said = ended(run)
    assert code == 1, said
    assert "1 skipped: 1 not recognised as an image" in said
    assert said.count("has died") >= 2
    assert same_as_plain(nodes, "hurt")


def test_a_killed_driver_leaves_shards_that_are_not_computed_again(nodes: Nodes) -> None:
    folder = nodes.folder / "again"
    with ExitStack() as held:
        run = nodes.start("again")
        hold(held, folder, [SHARDS - 1])
        until(lambda: len(records(folder)) >= 5)
        run.kill()
        assert run.wait() == -signal.SIGKILL
    done = records(folder)
    before = {number: (folder / f"shard-{number:06}.npz").stat() for number in done}
    run = nodes.start("again")
    code, said = ended(run)
    assert code == 1, said
    assert f"{len(done)} of {SHARDS} shards were there already" in said
    for number, status in before.items():
        assert os.path.samestat(status, (folder / f"shard-{number:06}.npz").stat())
    assert same_as_plain(nodes, "again")


def test_a_shard_that_fails_twice_is_named_and_the_others_are_done(nodes: Nodes) -> None:
    folder, inputs = nodes.folder / "failing", nodes.folder / "images"
    lost = [inputs / f"{number:03}.png" for number in range(40, 44)]
    with ExitStack() as held:
        run = nodes.start("failing")
        hold(held, folder, [10])
        until(lambda: len(records(folder)) >= 5)
        for path in lost:
            path.rename(nodes.folder / path.name)
    code, said = ended(run)
    assert code == 65, said
    assert "error: shard 10 has failed: node 127.0.0.1: none of the 4 inputs of shard 10, such as images/" in said
    assert records(folder) == set(range(SHARDS)) - {10}
    for path in lost:
        (nodes.folder / path.name).rename(path)
    code, said = ended(nodes.start("failing", ray=None))  # what Ray began, one machine ends
    assert code == 1, said
    assert same_as_plain(nodes, "failing")


def test_a_cluster_of_this_machine_is_started_and_ended(nodes: Nodes) -> None:
    code, said = ended(nodes.start("own.npz", ray="local"))
    if "timed out during startup" in said:  # Ray gives its own processes 15 seconds, which a busy machine may not have
        code, said = ended(nodes.start("own.npz", ray="local"))
    assert code == 1, said
    code, said = ended(nodes.start("plain.npz", ray=None))
    assert code == 1, said
    assert (nodes.folder / "own.npz").read_bytes() == (nodes.folder / "plain.npz").read_bytes()
    assert not list(nodes.folder.glob("*.parts"))


def test_a_cluster_that_goes_away_ends_the_run_and_loses_nothing(nodes: Nodes) -> None:
    folder = nodes.folder / "alone"
    with ExitStack() as held:
        run = nodes.start("alone")
        hold(held, folder, [SHARDS - 1])
        until(lambda: len(records(folder)) >= 5)
        nodes.kill(0)
        code, said = ended(run)
    assert code == 70, said
    assert "error: the Ray cluster does not answer any more: run the same command again when it is back" in said
    until(lambda: not any(is_held(path) for path in folder.glob("shard-*.lock")))
    code, said = ended(nodes.start("alone", ray=None))
    assert code == 1, said
    assert same_as_plain(nodes, "alone")
    code, said = ended(nodes.start("none"))
    assert code == 69, said
    assert f"error: no Ray cluster answers at {nodes.address}" in said
