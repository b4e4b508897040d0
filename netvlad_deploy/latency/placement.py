"""Where the threads of a worker start a block: on cores that the measurement draws, the same for every candidate.

A scheduler leaves a thread where it ran before. So of two processes one may share its core with something busy for a
whole measurement and the other not, and a ratio of the two would tell the cores apart, not the candidates.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

TASKS: Final = Path("/proc/self/task")


def place_threads(shift: int) -> None:
    """Move each thread of this process to a core of its own, counted from core number `shift`, and let it go again.

    Threads that may run on one core only stay there: a library has bound them. Does nothing where there is no Linux.
    """
    if not TASKS.is_dir():
        return
    cores = sorted(os.sched_getaffinity(0))
    for number, task in enumerate(sorted(int(path.name) for path in TASKS.iterdir())):
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
            allowed = os.sched_getaffinity(task)
            if len(allowed) > 1:
                os.sched_setaffinity(task, {cores[(number + shift) % len(cores)]})
                os.sched_setaffinity(task, allowed)
