"""Stages in threads: what passes, what waits, and how everything ends."""

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearfield.runtime.pipeline import Channel, Pipeline, Stopped
from nearfield.runtime.workers import Workers

WORKERS = Workers()
WAIT_S = 10.0
"""More than anything here can take; a test that waits longer has found a hang."""


def ended(pipeline: Pipeline) -> bool:
    """Whether all stages end by themselves."""
    waiter = threading.Thread(target=pipeline.join, daemon=True)
    waiter.start()
    waiter.join(WAIT_S)
    return not waiter.is_alive()


@given(st.lists(st.integers(), max_size=50), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30)
def test_everything_passes_in_order_however_small_the_channels_are(items: list[int], first: int, second: int) -> None:
    pipeline, out = Pipeline(WORKERS), list[int]()
    numbers, doubled = Channel[int](pipeline, first), Channel[int](pipeline, second)

    def give() -> None:
        for item in items:
            numbers.put(item)
        numbers.close()

    def double() -> None:
        while taken := numbers.take():
            for item in taken:
                doubled.put(2 * item)
        doubled.close()

    def collect() -> None:
        while taken := doubled.take():
            out.extend(taken)

    for stage in (give, double, collect):
        pipeline.start(stage)
    assert ended(pipeline)
    pipeline.raise_error()
    assert out == [2 * item for item in items]


def test_a_full_channel_makes_the_giver_wait() -> None:
    pipeline, given_items = Pipeline(WORKERS), list[int]()
    channel = Channel[int](pipeline, 3)

    def give() -> None:
        for item in range(10):
            channel.put(item)
            given_items.append(item)

    pipeline.start(give)
    first = channel.take()
    assert len(first) <= 3
    assert len(given_items) <= 3 + len(first) + 1
    pipeline.stop()


def waiting_for_an_item(pipeline: Pipeline) -> Callable[[], None]:
    channel = Channel[int](pipeline, 1)
    return lambda: channel.take().clear()


def waiting_for_room(pipeline: Pipeline) -> Callable[[], None]:
    channel = Channel[int](pipeline, 1)

    def fill() -> None:
        while True:
            channel.put(0)

    return fill


def working(pipeline: Pipeline) -> Callable[[], None]:
    def work() -> None:
        while True:
            pipeline.check()

    return work


@pytest.mark.parametrize("stage", [waiting_for_an_item, waiting_for_room, working])
def test_stopping_ends_a_stage_whatever_it_is_at(stage: Callable[[Pipeline], Callable[[], None]]) -> None:
    pipeline, ended = Pipeline(WORKERS), threading.Event()
    work = stage(pipeline)

    def watched() -> None:
        try:
            work()
        finally:
            ended.set()

    pipeline.start(watched)
    pipeline.stop()
    assert ended.is_set()
    pipeline.stop()
    pipeline.raise_error()


@pytest.mark.parametrize("stage", [waiting_for_an_item, waiting_for_room, working])
def test_a_stage_that_fails_ends_the_others_with_its_error(stage: Callable[[Pipeline], Callable[[], None]]) -> None:
    pipeline = Pipeline(WORKERS)
    pipeline.start(stage(pipeline))

    def fail() -> None:
        raise RuntimeError("out of memory")

    pipeline.start(fail)
    assert ended(pipeline)
    with pytest.raises(RuntimeError, match="out of memory"):
        pipeline.raise_error()


def test_who_waits_for_a_failed_pipeline_is_woken() -> None:
    pipeline = Pipeline(WORKERS)
    channel = Channel[int](pipeline, 1)

    def fail() -> None:
        raise KeyboardInterrupt

    pipeline.start(fail)
    with pytest.raises(Stopped):
        channel.take()
    with pytest.raises(KeyboardInterrupt):
        pipeline.raise_error()


def test_a_closed_channel_gives_what_it_has_and_then_nothing() -> None:
    channel = Channel[int](Pipeline(WORKERS), 4)
    channel.put(1)
    channel.put(2)
    channel.close()
    assert channel.take() == [1, 2]
    assert channel.take() == []


def test_a_stage_can_stop_its_own_pipeline() -> None:
    pipeline = Pipeline(WORKERS)
    pipeline.start(pipeline.stop)
    assert ended(pipeline)


def test_who_awaits_several_items_gets_them_together_or_what_there_is_at_the_end() -> None:
    pipeline, taken = Pipeline(WORKERS), list[list[int]]()
    channel = Channel[int](pipeline, 8)

    def collect() -> None:
        while items := channel.take(at_least=4):
            taken.append(items)

    pipeline.start(collect)
    for item in range(10):
        channel.put(item)
    channel.close()
    assert ended(pipeline)
    assert [item for items in taken for item in items] == list(range(10))
    assert all(len(items) >= 4 for items in taken[:-1])


def test_awaiting_more_than_a_channel_holds_gives_what_it_holds() -> None:
    channel = Channel[int](Pipeline(WORKERS), 2)
    channel.put(1)
    channel.put(2)
    assert channel.take(at_least=5) == [1, 2]


def test_what_is_over_the_most_that_is_taken_stays_and_takes_up_room() -> None:
    channel = Channel[int](Pipeline(WORKERS), 3)
    for item in range(3):
        channel.put(item)
    assert channel.take(at_most=1) == [0]
    channel.put(3)
    channel.close()
    assert channel.take(at_most=2) == [1, 2]
    assert channel.take() == [3]


def test_more_room_lets_a_waiting_giver_go_on() -> None:
    pipeline = Pipeline(WORKERS)
    channel = Channel[int](pipeline, 1)

    def give() -> None:
        for item in range(3):
            channel.put(item)

    pipeline.start(give)
    channel.resize(3)
    assert ended(pipeline)
    assert channel.take() == [0, 1, 2]
