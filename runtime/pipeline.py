"""Stages that work side by side, each in a thread, joined by bounded channels.

One stage hands items to the next through a `Channel`; a full one makes the giver wait, so no stage runs far ahead. A
stage that fails ends the whole pipeline with its error, and `stop` ends it at once: whoever waits at a channel wakes,
and a stage at work stops where it next calls `check`. Nothing here can wait for ever on a stage that is gone.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .workers import Job, Workers

T = TypeVar("T")


class Stopped(Exception):
    """The work is no longer wanted; only ever seen inside a stage, or by who takes from a stopped pipeline."""


def carry_on() -> None:
    """A check where nothing ever stops the work."""


class Pipeline:
    """The stages of one piece of work and what they share."""

    def __init__(self, workers: Workers) -> None:
        """`workers` are the threads the stages run in."""
        self._workers = workers
        self._lock = threading.Lock()
        self._changes: list[threading.Condition] = []  # one for each channel, all with this lock
        self._stages: list[Job] = []
        self._stopped = False
        self._error: BaseException | None = None

    def start(self, stage: Callable[[], None]) -> None:
        """Run a stage beside all others."""
        self._stages.append(self._workers.start(lambda: self._run(stage)))

    def check(self) -> None:
        """For a stage to call between its steps: raises `Stopped` when its work is no longer wanted."""
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """End all stages and wait for them: at most as long as the step each is at takes. May be called again."""
        with self._lock:
            self._wake_all()
        self.join()

    def join(self) -> None:
        """Wait until all stages have ended."""
        for stage in self._stages:
            stage.join()

    def raise_error(self) -> None:
        """Raise what a stage failed with, if one did."""
        if self._error is not None:
            raise self._error

    def _run(self, stage: Callable[[], None]) -> None:
        try:
            with contextlib.suppress(Stopped):
                stage()
        except BaseException as error:  # noqa: BLE001  # whatever it is, who waits for the result must hear of it
            with self._lock:
                self._error = self._error or error
                self._wake_all()

    def _wake_all(self) -> None:
        """Whoever waits anywhere finds that it is over."""
        self._stopped = True
        for changed in self._changes:
            changed.notify_all()


class Channel(Generic[T]):
    """A queue from one stage of a pipeline to another, at most `size` items long."""

    def __init__(self, pipeline: Pipeline, size: int) -> None:
        self._pipeline, self._size = pipeline, size
        self._changed = threading.Condition(pipeline._lock)
        pipeline._changes.append(self._changed)
        self._items: deque[T] = deque()
        self._awaited = 1  # nobody is woken for less: a stage that wakes for nothing takes time from the others
        self._closed = False

    def resize(self, size: int) -> None:
        """Let it be at most `size` items long, at least one, from now on; what is in it stays."""
        with self._changed:
            self._size = max(1, size)
            self._changed.notify_all()

    def put(self, item: T) -> None:
        """Add an item, waiting for room. Raises `Stopped`."""
        with self._changed:
            while len(self._items) >= self._size and not self._pipeline._stopped:
                self._changed.wait()
            self._pipeline.check()
            self._items.append(item)
            if len(self._items) >= min(self._awaited, self._size):
                self._changed.notify_all()

    def close(self) -> None:
        """Say that no more items come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, at_least: int = 1, at_most: int = sys.maxsize) -> list[T]:
        """Take all there is, waiting for so many items, or for fewer if it is closed or full; nothing after the last.

        What is over `at_most` stays. Raises `Stopped`.
        """
        with self._changed:
            self._awaited = at_least
            while len(self._items) < min(at_least, self._size) and not self._closed and not self._pipeline._stopped:
                self._changed.wait()
            self._pipeline.check()
            items = [self._items.popleft() for _ in range(min(at_most, len(self._items)))]
            self._changed.notify_all()
            return items
