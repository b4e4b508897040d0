"""Give parsers damaged files: each must end with one of our own errors, in time, and within bounds of memory."""

import contextlib
import random
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from netvlad_deploy.errors import NetVLADDeployError
from tools.fuzz.mutations import mutated
from tools.fuzz.parser import Parser

LONGEST_S = 5.0
ADDRESS_SPACE_BYTES = 4 << 30
"""How much more address space: an allocation that is never touched is one, too."""


class HangError(BaseException):
    """A file took too long."""


@dataclass
class Outcome:
    """What came of many files: how many were read and refused, and what went wrong, once for each place."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    grown_kib: int = 0
    faults: dict[str, str] = field(default_factory=dict)


class Campaign:
    """Give one parser file after file, and keep count; the file of a fault stays in the folder."""

    def __init__(self, parser: Parser, folder: Path) -> None:
        self.parser, self.folder = parser, folder
        self.seeds, self.outcome = parser.seeds(), Outcome()
        self.path = folder / f"case{parser.suffix}"
        refused = [error for error in map(self._refusal, self.seeds) if error is not None]
        if len(refused) == len(self.seeds):  # then nothing behind the first check would ever be reached
            raise ValueError(f"no sound file is read: {refused[0]}")
        self._start_kib = _peak_kib()
        self._places: set[str] = set()

    def give(self, content: bytes) -> None:
        """Read one file, and note what went wrong."""
        self.path.write_bytes(content)
        began = time.monotonic()
        fault = self._fault()
        outcome = self.outcome
        outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began)
        outcome.grown_kib = max(outcome.grown_kib, _peak_kib() - self._start_kib)
        if fault is None and _peak_kib() - self._start_kib > self.parser.largest_mib << 10:
            fault = "takes too much memory", ""
        if fault is None:
            return
        self._start_kib = _peak_kib()  # so that the next file is not blamed for it
        place, words = fault
        if place not in self._places:
            self._places.add(place)
            kept = self.folder / f"fault-{len(outcome.faults)}{self.parser.suffix}"
            kept.write_bytes(content)
            outcome.faults[place + words] = str(kept)

    def _refusal(self, content: bytes) -> NetVLADDeployError | None:
        self.path.write_bytes(content)
        try:
            self.parser.read(self.path)
        except NetVLADDeployError as error:
            return error
        return None

    def _fault(self) -> tuple[str, str] | None:
        """Read the file; return what went wrong and where, and the words of the error."""
        outcome = self.outcome
        outcome.refused += 1
        try:
            with _in_time(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.parser.read(self.path)
        except NetVLADDeployError as error:
            if "\n" in str(error):
                return "several lines", f": {error!r}"
            asks = isinstance(error.__cause__, MemoryError) and not self.parser.may_ask
            return ("asks for too much memory", "") if asks else None
        except HangError:
            return f"takes longer than {LONGEST_S} s", ""
        except Exception as error:  # noqa: BLE001 - finding these is the point
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__} at {where.filename}:{where.lineno}", f": {str(error)[:100]}"
        outcome.refused, outcome.read = outcome.refused - 1, outcome.read + 1
        return None


def fuzz(parser: Parser, folder: Path, *, seed: int = 0, cases: int | None = None, seconds: float = 1e9) -> Outcome:
    """Read damaged files until so many were read, or so long."""
    rng, campaign, end = random.Random(seed), Campaign(parser, folder), time.monotonic() + seconds
    outcome = campaign.outcome
    while time.monotonic() < end and (cases is None or outcome.read + outcome.refused < cases):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = mutated(rng, rng.choice(campaign.seeds), campaign.seeds)
        campaign.give(content)
    return outcome


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    def stop(_: int, __: FrameType | None) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def limit_memory() -> None:
    """Bound the address space of this process, so that no file can take the machine's memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE_BYTES, resource.RLIM_INFINITY))


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
