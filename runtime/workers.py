"""Threads that last: work is done in one that is idle, or in a new one while all are busy.

A reply has three stages, so a conversation would start and end thousands of threads. One that ends leaves its share of
the allocator's memory to whichever comes next, and the process grows until each share has held all that any stage ever
needed. Here there are never more threads than pieces of work at the same time.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue


class Job:
    """A piece of work that was handed over."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._thread: int | None = None
        self._done = threading.Event()

    def join(self) -> None:
        """Wait until it is done; from inside it, go on."""
        if self._thread != threading.get_ident():
            self._done.wait()

    def _run(self, idle: threading.Semaphore) -> None:
        self._thread = threading.get_ident()
        self._work()
        del self._work  # which may hold whoever holds this
        idle.release()  # first: who has waited for this job finds its thread idle
        self._done.set()


class Workers:
    """The threads. They end when nobody has this object any more, and at the end of the program."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)  # threads without a job; those they have been promised to are not counted
        weakref.finalize(self, self._jobs.put, None)

    def start(self, work: Callable[[], None]) -> Job:
        """Begin a piece of work, which must not raise."""
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=_serve, args=(self._jobs, self._idle), name="nearfield worker", daemon=True).start()
        job = Job(work)
        self._jobs.put(job)
        return job


def _serve(jobs: SimpleQueue[Job | None], idle: threading.Semaphore) -> None:
    """Do what comes, until nothing more can come. Knows only what it needs, so that `Workers` can go."""
    while (job := jobs.get()) is not None:
        job._run(idle)
        del job
    jobs.put(None)  # for the others
