"""Disturbance of speech: it stays speech of a known length, and each kind of it is there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.nano.augment import (
    LEVEL_DB,
    SAMPLE_RATE_HZ,
    SILENCE_S,
    SPEED_SPAN,
    disturb,
    disturb_beside,
    disturb_timed,
)


def tone(hz: float = 440.0, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.1 * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def level_db(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(samples))))


@given(seed=st.integers(0, 2**32 - 1), milliseconds=st.integers(100, 4000))
def test_the_result_is_as_long_as_speed_and_silence_say(seed: int, milliseconds: int) -> None:
    speech = tone(seconds=milliseconds / 1000)
    disturbed = disturb_timed(speech, np.random.default_rng(seed))
    spoken_s = milliseconds / 1000 / disturbed.speed
    assert abs(disturbed.speed - 1) <= SPEED_SPAN
    assert 0 <= disturbed.delay_s <= SILENCE_S
    assert -0.01 <= len(disturbed.samples) / SAMPLE_RATE_HZ - spoken_s - disturbed.delay_s <= SILENCE_S + 0.01
    assert disturbed.samples.dtype == np.float32
    assert np.isfinite(disturbed.samples).all()
    assert np.abs(disturbed.samples).max() <= 1


def test_the_same_seed_disturbs_the_same_way() -> None:
    first, second = (disturb(tone(), np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_integers_are_read_at_full_scale() -> None:
    whole = np.round(tone() * 32768).astype(np.int16)
    from_integers = disturb(whole, np.random.default_rng(1))
    from_floats = disturb(whole.astype(np.float32) / np.float32(32768), np.random.default_rng(1))
    np.testing.assert_array_equal(from_integers, from_floats)


def test_without_strength_only_silence_is_added() -> None:
    speech = tone()
    disturbed = disturb_timed(speech, np.random.default_rng(3), strength=0)
    start = round(disturbed.delay_s * SAMPLE_RATE_HZ)
    kept = disturbed.samples[start : start + len(speech)]
    np.testing.assert_allclose(kept, speech, atol=1e-5)
    assert level_db(disturbed.samples[:start] + 1e-9) < -90


def test_a_word_is_where_the_times_say() -> None:
    click = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    click[SAMPLE_RATE_HZ] = 1.0  # at one second
    for seed in range(20):
        disturbed = disturb_timed(click, np.random.default_rng(seed), strength=0.3)
        found_s = np.abs(disturbed.samples).argmax() / SAMPLE_RATE_HZ
        assert found_s == pytest.approx(1 / disturbed.speed + disturbed.delay_s, abs=0.002)


def test_levels_speeds_and_noise_spread_over_their_ranges() -> None:
    speech = tone()
    results = [disturb_timed(speech, np.random.default_rng(seed)) for seed in range(200)]
    levels = np.array([level_db(result.samples) for result in results])
    assert levels.min() < level_db(speech) - LEVEL_DB / 2
    assert levels.max() > level_db(speech) + LEVEL_DB / 3
    speeds = [result.speed for result in results]
    assert min(speeds) < 0.92 < 1.08 < max(speeds)
    before = [result.samples[: round(result.delay_s * SAMPLE_RATE_HZ)] for result in results if result.delay_s > 0.1]
    noisy = [level_db(silence + 1e-12) > -80 for silence in before]
    assert 0.6 < np.mean(noisy) < 1  # noise lies over the silence too, and some recordings are clean


def test_some_recordings_lose_their_high_frequencies() -> None:
    hiss = np.random.default_rng(0).standard_normal(SAMPLE_RATE_HZ).astype(np.float32) * 0.1
    losses_db = []
    for seed in range(100):
        power = np.abs(np.fft.rfft(disturb(hiss, np.random.default_rng(seed)))) ** 2
        high, low = (power[round(len(power) * share) :][: len(power) // 10].mean() for share in (0.85, 0.3))
        losses_db.append(10 * np.log10(low / high))
    assert np.max(losses_db) > 15  # below them lies only noise
    assert np.min(losses_db) < 3


def test_beside_disturbed_speech_is_the_same_clean() -> None:
    click = np.zeros(2 * SAMPLE_RATE_HZ, np.float32)
    click[SAMPLE_RATE_HZ] = 1.0
    for seed in range(10):
        clean, disturbed = disturb_beside(click, np.random.default_rng(seed), (30.0, 36.0))
        assert clean.shape == disturbed.shape
        assert abs(int(np.abs(clean).argmax()) - int(np.abs(disturbed).argmax())) < 0.002 * SAMPLE_RATE_HZ
        heard = np.abs(clean) > 0.05
        assert heard.sum() < 50, "nothing but the click is in the clean one"
        assert not np.array_equal(clean, disturbed)


def test_noise_is_as_far_below_as_is_asked() -> None:
    def noise_level(snr_db: float) -> float:
        pairs = [disturb_beside(tone(), np.random.default_rng(seed), (snr_db, snr_db)) for seed in range(30)]
        # Before the speech is nothing but noise, at what level it was recorded; rooms only echo what was said.
        return float(np.median([level_db(disturbed[:800] + 1e-9) for _, disturbed in pairs]))

    assert noise_level(10.0) - noise_level(30.0) == pytest.approx(20.0, abs=2.0)
