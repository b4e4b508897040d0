"""A function in several threads: results in order, bounded, the first error in its place, and no thread left."""

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from netvlad_deploy.retrieval.in_order import InOrder
from netvlad_deploy.retrieval.pace import Pace
from tests.processes import HANG_S, until

NAME = "in-order-test"


def in_order(
    function: Callable[[int], int], things: Iterable[int], *, width: int = 3, most_bytes: int = 1 << 30
) -> InOrder[int, int]:
    return InOrder(function, things, name=NAME, width=width, most_bytes=most_bytes, size_of=lambda _: 1 << 20)


def left() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(NAME)]


@pytest.mark.parametrize("width", [1, 2, 8])
def test_results_come_in_order_whoever_is_fast(width: int) -> None:
    random_s = random.Random(width)

    def square(number: int) -> int:
        time.sleep(random_s.random() / 500)
        return number**2

    with in_order(square, range(60), width=width, most_bytes=5 << 20) as results:
        assert list(results) == [number**2 for number in range(60)]
        assert list(results) == []
    assert not left()
    with in_order(square, []) as results:
        assert list(results) == []


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("source", [False, True], ids=["in the function", "in what gives the things"])
def test_an_error_comes_in_its_place_and_ends_all(width: int, source: bool) -> None:
    taken: list[int] = []

    def things() -> Iterator[int]:
        for number in range(10_000):
            if source and number == 5:
                raise OSError("gone")
            taken.append(number)
            yield number

    def fail(number: int) -> int:
        if number == 5:
            raise OSError("gone")
        time.sleep(0.001)  # so that earlier ones still wait when there is no more
        return number

    with in_order(fail, things(), width=width) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(OSError, match="gone"):
            next(results)
        assert list(results) == []
    assert len(taken) < 10_000
    assert not left()


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    with in_order(make, range(100), width=2, most_bytes=8 << 20) as results:
        until(lambda: results.full and results.idle)
        assert 8 <= len(made) <= 8 + 2 * 2
        assert list(results) == list(range(100))
    assert len(made) == 100


def test_one_result_larger_than_the_room_goes_alone() -> None:
    with in_order(lambda number: number, range(9), most_bytes=1) as results:
        assert list(results) == list(range(9))


def test_one_thread_alone_takes_the_things_and_closes_what_gives_them() -> None:
    threads = set()
    closed = []

    def things() -> Iterator[int]:
        try:
            for number in range(10_000):
                threads.add(threading.current_thread().name)
                yield number
        finally:
            closed.append(threading.current_thread().name)

    with in_order(lambda number: number, things(), width=4) as results:
        assert [next(results), next(results)] == [0, 1]
    assert len(threads) == 1
    assert closed == list(threads)
    assert not left()


def test_the_width_is_how_many_calls_are_made_at_once() -> None:
    barrier = threading.Barrier(3)
    running, most = [0], [0]
    lock = threading.Lock()

    def call(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if 10 <= number < 13:
            barrier.wait(HANG_S)  # passed only by three together
        elif number >= 13:
            time.sleep(0.002)  # in which another call would begin
        with lock:
            running[0] -= 1
        return number

    with in_order(call, range(40), width=1, most_bytes=4 << 20) as results:
        assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
        assert most[0] == 1
        results.widen(3)
        assert [next(results) for _ in range(9)] == list(range(4, 13))
        assert most[0] == 3
        until(lambda: results.full and results.idle)
        results.widen(1)
        most[0] = 0
        assert list(results) == list(range(13, 40))
        assert most[0] == 1


def test_ctrl_c_ends_the_threads() -> None:
    main = threading.main_thread().ident
    assert main is not None
    until_stopped: list[InOrder[int, int]] = []

    def call(number: int) -> int:
        if number == 3:
            until(lambda: bool(until_stopped))
            signal.pthread_kill(main, signal.SIGINT)
            until(lambda: until_stopped[0].stopped)
        return number

    def use() -> None:
        with in_order(call, range(1000)) as results:
            until_stopped.append(results)
            list(results)

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not left()


LEFT_OPEN = """
from netvlad_deploy.retrieval.in_order import InOrder
def numbers():
    with InOrder(abs, range(10**6), name="n", width=2, most_bytes=1, size_of=lambda _: 1) as results:
        yield from results
kept = numbers()
next(kept)
raise ValueError("unhandled")
"""


def test_a_stream_that_an_error_left_open_does_not_keep_the_process() -> None:
    outcome = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=HANG_S)
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1] == "ValueError: unhandled"


def test_the_number_of_decoders_follows_who_waits_and_settles() -> None:
    pace = Pace(2, most=4)
    assert [pace.adjust(waiting=0.5, full=False) for _ in range(4)] == [3, 4, 4, 4]
    assert pace.adjust(waiting=0.5, full=True) == 4, "that wait was for no decoder"
    needed = 3
    numbers = [
        pace.adjust(waiting=0.2 if pace.decoders < needed else 0, full=pace.decoders >= needed) for _ in range(200)
    ]
    assert set(numbers[3:]) == {2, 3}
    assert numbers[100:].count(2) <= 2, "one that is missed comes back, and is tried again ever later"
