"""The echo is taken out, near speech is left in, and both sounds stay in step whatever the devices' clocks do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.echo import DELAY_S, STEP_SAMPLES, EchoCanceller, Reference
from nearfield.apps.voice.hearing import Hearing

Float32 = npt.NDArray[np.float32]


def speech(seconds: float, rate_hz: int, seed: int) -> Float32:
    """Noise with the rhythm of syllables, below 6 kHz, float32 `(n,)`."""
    count = round(seconds * rate_hz)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    spectrum[round(6000 * seconds) :] = 0
    noise = np.fft.irfft(spectrum, count)
    rhythm = np.clip(np.sin(2 * np.pi * 3 * np.arange(count) / rate_hz), 0, 1)
    sound: Float32 = (0.3 * noise / noise.std() * rhythm).astype(np.float32)
    return sound


def echo_of(sound: Float32, delay_s: float, rate_hz: int) -> Float32:
    """−6 dB, later, and with a short room, float32 of the same length."""
    room = np.exp(-np.arange(rate_hz // 20) / (rate_hz / 60)) * np.random.default_rng(3).standard_normal(rate_hz // 20)
    room[0] = 4
    reverberant = np.convolve(sound, room / np.linalg.norm(room))[: len(sound)]
    delay = round(delay_s * rate_hz)
    return np.concatenate([np.zeros(delay), 0.5 * reverberant])[: len(sound)].astype(np.float32)


def through(hearing: Hearing, heard: Float32, given: Float32, rates: tuple[int, int]) -> list[tuple[float, Float32]]:
    """Both sounds in blocks of 10 ms; returns each frame's level and samples."""
    frames = []
    sizes = [rate // 100 for rate in rates]
    for block in range(len(heard) // sizes[0]):
        near, far = (sound[block * size :][:size] for sound, size in zip((heard, given), sizes, strict=True))
        frames += hearing.push(near, far, ((block + 1) * sizes[0], (block + 1) / 100))
    return [(frame.level, frame.samples) for frame in frames]


def decibels(levels: list[float]) -> float:
    return float(10 * np.log10(np.mean(np.square(levels)) + 1e-12))


@pytest.mark.parametrize("delay_s", [0.03, 0.09, 0.25])
@pytest.mark.parametrize("rates", [(48_000, 48_000), (44_100, 48_000)])
def test_echo_goes_and_speech_stays(delay_s: float, rates: tuple[int, int]) -> None:
    pytest.importorskip("pywebrtc_audio")
    given = speech(6, rates[1], seed=1)
    positions = np.arange(6 * rates[0]) * rates[1] / rates[0]
    echo = np.interp(positions, np.arange(len(given)), echo_of(given, delay_s, rates[1])).astype(np.float32)
    noise = 1e-3 * np.random.default_rng(2).standard_normal(len(echo)).astype(np.float32)
    frames = through(Hearing(*rates, EchoCanceller()), echo + noise, given, rates)[62:]  # after 2 s
    before, after = (
        decibels([level for level, _ in frames]),
        decibels([float(np.std(samples)) for _, samples in frames]),
    )
    assert after < before - 25
    near = speech(6, rates[0], seed=9)
    frames = through(Hearing(*rates, EchoCanceller()), near + noise, np.zeros_like(given), rates)[62:]
    before, after = (
        decibels([level for level, _ in frames]),
        decibels([float(np.std(samples)) for _, samples in frames]),
    )
    assert abs(after - before) < 1.5


def test_sound_is_as_late_as_is_said() -> None:
    pytest.importorskip("pywebrtc_audio")
    near = speech(2, 16_000, seed=4)
    canceller = EchoCanceller()
    steps = [canceller.process(step, np.zeros(STEP_SAMPLES, np.float32)) for step in near.reshape(-1, STEP_SAMPLES)]
    late = np.argmax([np.dot(near[:-400], np.concatenate(steps)[lag : lag - 400 or None]) for lag in range(400)])
    assert abs(late / 16_000 - DELAY_S) < 0.003


def test_without_a_canceller_frames_are_what_was_heard_and_their_time_is_right() -> None:
    sound = speech(1, 16_000, seed=5)
    hearing = Hearing(16_000, 48_000, None)
    frames = hearing.push(sound, np.zeros(48_000, np.float32), mark=(16_000, 100.0))
    np.testing.assert_array_equal(np.concatenate([frame.samples for frame in frames]), sound[: len(frames) * 512])
    assert [frame.captured_s for frame in frames] == pytest.approx(
        [99 + (number + 1) * 512 / 16_000 for number in range(len(frames))]
    )
    assert frames[3].level == pytest.approx(float(np.sqrt(np.mean(np.square(frames[3].samples)))))


@given(st.lists(st.integers(0, 700), max_size=30))
def test_what_is_late_is_dropped_so_that_the_rest_stays_in_step(blocks: list[int]) -> None:
    reference, pushed = Reference(), 0
    for taken, count in enumerate(blocks[:40]):  # less than half a second: it is not put right yet
        reference.push(np.arange(pushed, pushed + count, dtype=np.float32) + 1)
        pushed += count
        step = reference.take()
        forgiven = pushed < taken * STEP_SAMPLES - 4 * STEP_SAMPLES
        if forgiven:
            return
        expected = np.arange(taken * STEP_SAMPLES, (taken + 1) * STEP_SAMPLES, dtype=np.float32) + 1
        np.testing.assert_array_equal(step, np.where(expected <= pushed, expected, 0))


def test_a_long_queue_is_shortened_after_a_second_and_a_short_one_is_not() -> None:
    reference = Reference()
    reference.push(np.arange(8000, dtype=np.float32))
    for step in range(100):
        reference.push(np.full(STEP_SAMPLES, 8000 + step, np.float32))
        reference.take()
    shortened = reference.waiting
    assert STEP_SAMPLES <= shortened < 2 * STEP_SAMPLES
    for _ in range(500):
        reference.push(np.zeros(STEP_SAMPLES, np.float32))
        reference.take()
    assert reference.waiting == shortened


@pytest.mark.parametrize("drift_ppm", [-400, -50, 0, 50, 400])
def test_clocks_that_drift_are_followed_sample_by_sample(drift_ppm: int) -> None:
    """The speaker hands over two blocks of 20 ms at a time, some milliseconds late; its samples tell their time."""
    reference, pushed, lags, whole = Reference(), 0, [], []
    lateness = np.random.default_rng(1).uniform(0, 0.004, 60_000)
    for number in range(6000):  # a minute
        now_s = number / 100 - lateness[number]
        while pushed + 640 <= now_s * 16_000 * (1 + drift_ppm / 1e6):
            reference.push((np.arange(pushed, pushed + 640) / 16_000 / (1 + drift_ppm / 1e6)).astype(np.float32))
            pushed += 640
        step = reference.take()
        lags.append(number / 100 - float(step[0]))
        whole.append(step.all())
    settled = np.array(lags[200:])[whole[200:]]
    # Where blocks of the one and of the other pass each other, all is suddenly a step later, and put right within 1 s.
    jumps = np.abs(np.diff(settled)) > 1.5 / 16_000
    assert jumps.sum() <= (0 if abs(drift_ppm) < 100 else 4)
    assert np.mean(whole[200:]) >= (1.0 if abs(drift_ppm) < 100 else 0.99)
    assert np.ptp(settled) < 0.02
    assert settled.max() < 0.08, "AEC3 gets the reference before the echo"


def test_a_speaker_that_is_late_for_good_is_not_silence_for_good() -> None:
    reference = Reference()
    for _ in range(300):
        reference.push(np.ones(STEP_SAMPLES, np.float32))
        reference.take()
    steps = []
    for number in range(200):  # the same sound, from now on in lumps of 60 ms
        if number % 6 == 5:
            reference.push(np.ones(6 * STEP_SAMPLES, np.float32))
        steps.append(reference.take())
    assert not np.concatenate(steps[:50]).all()
    assert np.concatenate(steps[110:]).all(), "after a second it has made room for them"


@pytest.mark.parametrize("drift_ppm", [-150, 150])
def test_echo_goes_though_clocks_drift(drift_ppm: int) -> None:
    pytest.importorskip("pywebrtc_audio")
    seconds, rate = 40, 16_000
    given = speech(seconds, rate, seed=1)
    played = np.arange(seconds * rate) * (1 + drift_ppm / 1e6)  # the speaker's samples by the microphone's clock
    echo = np.interp(played, np.arange(len(given)), echo_of(given, 0.1, rate)).astype(np.float32)
    hearing, frames, pushed = Hearing(rate, rate, EchoCanceller()), [], 0
    for block in range(seconds * 100 - 10):
        there = int(played[(block + 1) * 160]) // 320 * 320
        frames += hearing.push(echo[block * 160 :][:160], given[pushed:there], ((block + 1) * 160, 0.0))
        pushed = there
    late = frames[len(frames) // 2 :]
    levels = decibels([frame.level for frame in late]), decibels([float(np.std(frame.samples)) for frame in late])
    assert levels[1] < levels[0] - 17, "without drift it is 22"


def test_after_a_speaker_stood_still_its_sound_counts_from_then_on() -> None:
    reference = Reference()
    for _ in range(50):
        assert not reference.take().any()
    reference.push(np.ones(3 * STEP_SAMPLES, np.float32))
    assert sum(reference.take().sum() for _ in range(3)) >= STEP_SAMPLES
