"""Resampling: the same piece by piece as in one, exact in the band, silent beyond it, and hardly late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.resampler import Resampler

RATES = [(48_000, 16_000), (44_100, 16_000), (24_000, 48_000), (24_000, 44_100), (8_000, 16_000), (16_000, 16_000)]


def tone(hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A sine, float32 `(n,)`."""
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


@given(rates=st.sampled_from(RATES), cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_pieces_give_the_same_as_the_whole(rates: tuple[int, int], cuts: list[int]) -> None:
    sound = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    whole, piecewise = Resampler(*rates), Resampler(*rates)
    expected = np.concatenate([whole.push(sound), whole.flush()])
    pieces = [piecewise.push(piece) for piece in np.split(sound, sorted(cuts))]
    np.testing.assert_array_equal(np.concatenate([*pieces, piecewise.flush()]), expected)
    assert len(expected) == -(-3000 * rates[1] // rates[0])


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.42])
def test_tones_of_the_band_pass_unchanged_and_in_time(rates: tuple[int, int], share: float) -> None:
    hz = share * min(rates)
    resampler = Resampler(*rates)
    out = np.concatenate([resampler.push(tone(hz, rates[0])), resampler.flush()])
    inner = slice(len(out) // 4, 3 * len(out) // 4)
    np.testing.assert_allclose(out[inner], tone(hz, rates[1])[inner], atol=1e-4)


@pytest.mark.parametrize("rates", [(48_000, 16_000), (44_100, 16_000)])
def test_tones_beyond_the_band_are_gone(rates: tuple[int, int]) -> None:
    out = Resampler(*rates).push(tone(0.55 * rates[1], rates[0]))
    assert np.abs(out[len(out) // 4 :]).max() < 1e-4


@pytest.mark.parametrize("rates", RATES)
def test_no_more_than_two_milliseconds_are_held_back(rates: tuple[int, int]) -> None:
    out = Resampler(*rates).push(tone(440, rates[0]))
    held_back_s = 0.5 - len(out) / rates[1]
    assert held_back_s <= 32 / min(rates) + 1e-4


def test_after_a_reset_or_an_end_the_stream_is_new() -> None:
    sound, used = tone(440, 48_000), Resampler(48_000, 16_000)
    expected = Resampler(48_000, 16_000).push(sound)
    used.push(sound)
    used.reset()
    np.testing.assert_array_equal(used.push(sound), expected)
    used.flush()
    np.testing.assert_array_equal(used.push(sound), expected)
