"""Threads that last: never more than there is work at a time, and none when nobody has them any more."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
import weakref

import pytest
from nearfield.runtime.workers import Job, Workers

WAIT_S = 10.0
"""More than anything here can take; a test that waits longer has found a hang."""


class Blocked:
    """Work that lasts until it is let go, and tells in which thread it was done."""

    def __init__(self, workers: Workers) -> None:
        self._free, self.started = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        self.job = workers.start(self._work)
        assert self.started.wait(WAIT_S)

    def _work(self) -> None:
        self.thread = threading.current_thread()
        self.started.set()
        assert self._free.wait(WAIT_S)

    def let_go(self) -> None:
        self._free.set()
        self.job.join()


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_work_at_the_same_time_has_a_thread_each(workers: Workers) -> None:
    at_work = [Blocked(workers) for _ in range(4)]
    assert len({work.thread for work in at_work}) == 4
    for work in at_work:
        work.let_go()


def test_whoever_has_waited_for_work_starts_no_thread_for_the_next(workers: Workers) -> None:
    before = threading.active_count()
    for _ in range(200):
        jobs = [workers.start(lambda: None) for _ in range(3)]
        for job in jobs:
            job.join()
        assert threading.active_count() <= before + 3


def test_what_is_started_while_all_are_busy_does_not_wait(workers: Workers) -> None:
    first = Blocked(workers)
    first.let_go()
    second = Blocked(workers)  # where the first was
    assert second.thread is first.thread
    workers.start(lambda: None).join()
    second.let_go()


def test_joining_returns_only_when_the_work_is_done(workers: Workers) -> None:
    work = Blocked(workers)
    waiter = threading.Thread(target=work.job.join)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    work.let_go()
    waiter.join(WAIT_S)
    assert not waiter.is_alive()


def test_work_can_join_itself(workers: Workers) -> None:
    jobs, joined = list[Job](), threading.Event()
    given = threading.Event()

    def work() -> None:
        assert given.wait(WAIT_S)
        jobs[0].join()
        joined.set()

    jobs.append(workers.start(work))
    given.set()
    assert joined.wait(WAIT_S)


def test_what_work_held_is_let_go_when_it_is_done(workers: Workers) -> None:
    class Held:
        """Something large."""

    def look_at(held: Held) -> None:
        assert held is not None

    held = Held()
    gone = weakref.ref(held)
    job = workers.start(functools.partial(look_at, held))
    del held
    job.join()
    assert gone() is None


def test_the_threads_end_when_nobody_has_them_even_those_at_work_then() -> None:
    workers = Workers()
    busy, idle = Blocked(workers), Blocked(workers)
    threads = [busy.thread, idle.thread]
    idle.let_go()
    del workers
    gc.collect()
    busy.let_go()
    for thread in threads:
        assert thread is not None
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_a_program_ends_with_idle_threads_and_with_one_at_work() -> None:
    program = (
        "import threading\n"
        "from nearfield.runtime.workers import Workers\n"
        "workers = Workers()\n"
        "workers.start(lambda: None).join()\n"
        "workers.start(threading.Event().wait)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
