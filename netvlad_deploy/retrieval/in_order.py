"""A function called in several threads at once, whose results come in order: bounded, and ended as soon as it is left.

    things ──> feeder thread ──> waiting ──> worker threads ──> done ──> whoever iterates

The feeder alone iterates over the things, so that what they come from, such as an open file, is used by one thread. It
takes the next one when there is room for its result. Which thread is fast changes nothing in the results.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Final, Generic, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

LEAST_BYTES: Final = 1024
"""What any result counts as, so that small ones are bounded, too."""


class InOrder(Iterator[Made], Generic[Given, Made]):
    """The results of a function of each thing, in the order of the things.

    Entering it as a context manager starts its threads, and leaving it ends them, whatever is left. The first error, in
    the order of the things, is raised in the place of its result; no further thing is taken after one.

    Args:
        function: is called in worker threads, once for each thing.
        things: are taken by one thread. A generator is also closed by it.
        name: of the threads.
        width: calls at once; `widen` changes it.
        most_bytes: results that wait are not more than about this much; one more thing is always taken where none
            is left.
        size_of: the bytes of a result.
    """

    def __init__(
        self,
        function: Callable[[Given], Made],
        things: Iterable[Given],
        *,
        name: str,
        width: int,
        most_bytes: int,
        size_of: Callable[[Made], int],
    ) -> None:
        self.width, self.waited_s = width, 0.0
        self._function, self._things, self._name = function, things, name
        self._most_bytes, self._size_of = most_bytes, size_of
        lock = threading.RLock()
        self._room, self._work, self._result = (threading.Condition(lock) for _ in range(3))
        self._waiting: deque[tuple[int, Given]] = deque()
        self._done: dict[int, tuple[Made | BaseException, int]] = {}
        self._fed = self._taken = self._running = self._bytes = 0
        self._usual_bytes = 0.0
        self.stopped = self._over = self._failed = False
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "InOrder[Given, Made]":
        self._start(self._feed)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()
        for thread in self._threads:
            thread.join()

    def __next__(self) -> Made:
        with self._result:
            if self._taken not in self._done:
                started = time.perf_counter()
                self._result.wait_for(lambda: self._taken in self._done or self._at_end)
                self.waited_s += time.perf_counter() - started
            if self._taken not in self._done:
                raise StopIteration
            made, size = self._done.pop(self._taken)
            self._taken += 1
            self._bytes -= size
            self._room.notify()
        if isinstance(made, BaseException):
            self.stop()
            raise made
        return made

    @property
    def idle(self) -> bool:
        """Return True if a worker has nothing to do."""
        return not self._waiting and self._running < self.width

    @property
    def full(self) -> bool:
        """Return True if no thing is taken because too many results wait."""
        return self._bytes + self._usual_bytes * (len(self._waiting) + self._running) >= self._most_bytes

    def widen(self, width: int) -> None:
        """Change how many calls are made at once; those that are under way end as they are."""
        with self._work:
            self.width = width
            self._start_workers()
            self._work.notify_all()
            self._room.notify()

    def stop(self) -> None:
        """Let every thread end after what it is doing, without waiting for it; there are no more results."""
        with self._work:
            self.stopped = True
            self._waiting.clear()
            self._done.clear()
            for condition in (self._room, self._work, self._result):
                condition.notify_all()

    @property
    def _at_end(self) -> bool:
        return self.stopped or (self._over and self._taken >= self._fed)

    def _start(self, target: Callable[[], None]) -> None:
        # daemons: a generator that an error left open must not keep the process from ending
        thread = threading.Thread(target=target, name=f"{self._name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start_workers(self) -> None:
        """Start a thread if all that there are have something to do; the first one is the feeder."""
        wanted = min(self.width, self._running + len(self._waiting))
        while len(self._threads) - 1 < wanted:
            self._start(self._call)

    def _has_room(self) -> bool:
        """Return True if the next thing may be taken, or no thing may be taken any more."""
        under_way = len(self._waiting) + self._running
        has_room = len(self._waiting) < self.width and not self.full
        return self._ended() or has_room or not under_way + self._bytes

    def _ended(self) -> bool:
        return self.stopped or self._failed

    def _feed(self) -> None:
        try:
            for thing in self._things:
                with self._room:
                    if self._ended():
                        break
                    self._waiting.append((self._fed, thing))
                    self._fed += 1
                    self._start_workers()
                    self._work.notify()
                    self._room.wait_for(self._has_room)
                    if self._ended():
                        break
        except BaseException as error:  # noqa: BLE001  # raised where the result would be
            self._finish(self._fed, error)
            self._fed += 1
        finally:
            if close := getattr(self._things, "close", None):
                close()
            with self._work:
                self._over = True
                self._work.notify_all()
                self._result.notify_all()

    def _call(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(
                    lambda: self.stopped or (self._waiting and self._running < self.width) or self._exhausted
                )
                if self.stopped or not self._waiting:
                    return
                number, thing = self._waiting.popleft()
                self._running += 1
                self._room.notify()
            try:
                made: Made | BaseException = self._function(thing)
            except BaseException as error:  # noqa: BLE001  # raised where the result would be
                made = error
            del thing
            with self._work:
                self._running -= 1
                self._finish(number, made)
                del made
                self._work.notify()
                self._room.notify()

    @property
    def _exhausted(self) -> bool:
        return (self._over or self._failed) and not self._waiting

    def _finish(self, number: int, made: "Made | BaseException") -> None:
        """Keep a result until it is taken. After an error nothing that follows it is of use."""
        with self._result:
            if self.stopped:
                return
            size = LEAST_BYTES
            if isinstance(made, BaseException):
                self._failed = True
                self._waiting = deque(each for each in self._waiting if each[0] < number)
                self._room.notify()
                self._work.notify_all()
            else:
                size = max(size, self._size_of(made))
                self._usual_bytes += (size - self._usual_bytes) / 4
            self._done[number] = made, size
            self._bytes += size
            if number == self._taken:
                self._result.notify()
