"""When replies begin, learned from when their pieces came."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.playout import PlayoutDelay

PIECE = 2400
PIECE_S = 0.1


def reply(delay: PlayoutDelay, late_s: Sequence[float], start_s: float = 100.0) -> float:
    """Pieces of a tenth of a second, each as much too late as said; returns how long the reply had to wait."""
    delay.begin()
    delay.arrived(PIECE, start_s)
    for number, late in enumerate(late_s, 1):
        delay.arrived(PIECE, start_s + number * PIECE_S + late)
    return delay.seconds


def test_the_first_reply_does_not_wait() -> None:
    delay = PlayoutDelay()
    assert reply(delay, [0.3]) == 0
    assert delay.over(100.0)


def test_a_model_that_is_fast_enough_never_makes_a_reply_wait() -> None:
    delay = PlayoutDelay()
    assert all(reply(delay, [-0.11, -0.12, -0.2]) == 0 for _ in range(50))


def test_the_next_reply_waits_for_what_came_late_and_a_little_more() -> None:
    delay = PlayoutDelay()
    reply(delay, [-0.05, 0.12, 0.02])
    assert reply(delay, []) == pytest.approx(0.22)
    assert not delay.over(100.21)
    assert delay.over(100.23)


def test_one_late_reply_in_many_is_no_reason_to_wait() -> None:
    delay = PlayoutDelay()
    for number in range(40):
        waited = reply(delay, [0.4 if number == 20 else -0.15])
    assert waited == 0


def test_lateness_is_forgotten_with_the_replies_that_had_it() -> None:
    delay = PlayoutDelay()
    for _ in range(10):
        reply(delay, [0.2])
    assert reply(delay, [-0.1]) == pytest.approx(0.3)
    assert [reply(delay, [-0.1]) for _ in range(32)][-1] == 0


def test_a_reply_of_one_piece_says_nothing() -> None:
    delay = PlayoutDelay()
    reply(delay, [0.2])
    for _ in range(40):
        waited = reply(delay, [])
    assert waited == pytest.approx(0.3)


@given(st.lists(st.lists(st.floats(-5, 5), max_size=4), max_size=40))
def test_it_never_waits_long_and_never_for_less_than_nothing(replies: list[list[float]]) -> None:
    delay = PlayoutDelay()
    for late_s in replies:
        assert 0 <= reply(delay, late_s) <= 0.5
