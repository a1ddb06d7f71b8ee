"""What happens to speech between a mouth and a recording, drawn anew each time it is heard in training.

Inputs: (samples,) float32 or int16 at 16 kHz → outputs: (samples,) float32 in −1…1. Speed and pitch change together by
up to 12 %; then come silence before and after, a small room, a narrower band (a telephone's 300–3400 Hz at the
narrowest), noise of some colour 8–36 dB below the speech, and another level, ±12 dB, or so loud that it is cut off.

It takes under two milliseconds an utterance: the room, the band and the tone of the microphone are one multiplication
in the frequency domain, and noises are kept ready.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import soxr

Samples = npt.NDArray[np.float32]

SAMPLE_RATE_HZ = 16000

SPEED_SPAN = 0.12
SILENCE_S = 0.5
SNR_DB = (8.0, 36.0)
LEVEL_DB = 12.0
LOUD_SHARE, LOUD_DB = 0.25, (6.0, 14.0)  # how often, at full strength, somebody is too near the microphone
LOUDEST_PEAK = 4.0  # of full scale: what is too loud is cut off, as a recorder would
ROOM_SHARE, BAND_SHARE, NOISE_SHARE = 0.5, 0.4, 0.85  # how often each happens, at full strength
ROOMS = 48
ROOM_S = 0.35
NOISE_SAMPLES = 1 << 20
NOISE_SLOPES = (0.0, 0.0, 0.5, 1.0, 1.0, 2.0)  # power falls as 1/f^slope: white, pink, brown
_CURVE_HZ = np.geomspace(60, SAMPLE_RATE_HZ / 2, 32)


@dataclass(frozen=True)
class Disturbed:
    """Disturbed speech, and where its words went: a word at t seconds is now at `t / speed + delay_s`."""

    samples: Samples
    speed: float
    delay_s: float


def disturb(samples: Samples | npt.NDArray[np.int16], rng: np.random.Generator, strength: float = 1.0) -> Samples:
    """Disturb one utterance: (samples,) → (other number of samples,) float32; strength 0 changes nothing but pauses."""
    return disturb_timed(samples, rng, strength).samples


def disturb_timed(
    samples: Samples | npt.NDArray[np.int16], rng: np.random.Generator, strength: float = 1.0
) -> Disturbed:
    """`disturb`, telling also how time moved."""
    speech = _floats(samples)
    spoken = _spoken(speech, rng, strength)
    return replace(spoken, samples=_recorded(spoken.samples, _level(speech), rng, strength))


def disturb_beside(
    samples: Samples | npt.NDArray[np.int16],
    rng: np.random.Generator,
    snr_db: tuple[float, float] = SNR_DB,
    loud_share: float = LOUD_SHARE,
) -> tuple[Samples, Samples]:
    """One utterance twice, as long and with each word at the same moment: clean, and disturbed with all strength."""
    speech = _floats(samples)
    spoken = _spoken(speech, rng, 1.0).samples
    return np.clip(spoken, -1, 1), _recorded(spoken, _level(speech), rng, 1.0, snr_db, loud_share)


def _level(speech: Samples) -> float:
    """Root mean square, never 0."""
    return float(np.sqrt(np.mean(np.square(speech)) + 1e-12))


def _floats(samples: Samples | npt.NDArray[np.int16]) -> Samples:
    return samples.astype(np.float32) / np.float32(32768 if samples.dtype == np.int16 else 1)


def _spoken(speech: Samples, rng: np.random.Generator, strength: float) -> Disturbed:
    """At another speed, with silence before and after."""
    speed = float(rng.uniform(1 - SPEED_SPAN * strength, 1 + SPEED_SPAN * strength))
    if abs(speed - 1) > 1e-3:
        speech = soxr.resample(speech, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="LQ")
    before, after = (round(SILENCE_S * SAMPLE_RATE_HZ * share) for share in rng.random(2))
    return Disturbed(np.pad(speech, (before, after)), speed, before / SAMPLE_RATE_HZ)


def _recorded(
    speech: Samples,
    level: float,
    rng: np.random.Generator,
    strength: float,
    snr_db: tuple[float, float] = SNR_DB,
    loud_share: float = LOUD_SHARE,
) -> Samples:
    """In a room, by some microphone, with noise and at another level; `level` is the speech's."""
    speech = _filter(speech, rng, strength)
    if rng.random() < NOISE_SHARE * strength:
        noise = _noises()[rng.integers(len(NOISE_SLOPES))]
        start = rng.integers(NOISE_SAMPLES - len(speech))
        softest_db, loudest_db = snr_db[1], snr_db[1] + (snr_db[0] - snr_db[1]) * strength
        drawn_db = rng.uniform(loudest_db, softest_db)
        speech += noise[start : start + len(speech)] * np.float32(level * 10 ** (-drawn_db / 20))
    gain_db = rng.uniform(-LEVEL_DB, LEVEL_DB) * strength
    if rng.random() < loud_share * strength:
        gain_db = rng.uniform(*LOUD_DB)
    gain = min(10 ** (gain_db / 20), LOUDEST_PEAK / float(np.abs(speech).max() + 1e-6))
    recorded: Samples = np.clip(speech * np.float32(gain), -1, 1)
    return recorded


def _filter(speech: Samples, rng: np.random.Generator, strength: float) -> Samples:
    """Room, band and tone in one pass; the level of the speech stays about what it was."""
    room = rng.integers(ROOMS) if rng.random() < ROOM_SHARE * strength else None
    size = _fast_size(len(speech) + (round(ROOM_S * SAMPLE_RATE_HZ) if room is not None else 0))
    spectrum = np.fft.rfft(speech, size)  # (size / 2 + 1,)
    curve_db = np.full(len(_CURVE_HZ), 0.0)
    tone = rng.uniform(-6, 6, 3) * strength  # a microphone's: a smooth curve through three points
    curve_db += np.interp(np.log(_CURVE_HZ), np.log([100, 900, 7000]), tone)
    if rng.random() < BAND_SHARE * strength:
        highest_hz = np.exp(rng.uniform(np.log(3300), np.log(7500)))
        lowest_hz = np.exp(rng.uniform(np.log(50), np.log(320)))
        curve_db -= 60 * np.clip(np.log2(_CURVE_HZ / highest_hz) * 3, 0, 1)
        curve_db -= 40 * np.clip(np.log2(lowest_hz / _CURVE_HZ) * 1.5, 0, 1)
    gains = 10 ** (curve_db / 20)
    spectrum *= np.interp(np.arange(len(spectrum)) * (SAMPLE_RATE_HZ / size), _CURVE_HZ, gains).astype(np.float32)
    if room is not None:
        spectrum *= _rooms(size)[room]
    filtered: Samples = np.fft.irfft(spectrum, size)[: len(speech)].astype(np.float32)
    return filtered * np.float32(_level(speech) / _level(filtered))


def _fast_size(samples: int) -> int:
    """The next 2^n or 3·2^n: few sizes, so that the rooms' spectra are kept."""
    power = 1 << max(samples - 1, 1).bit_length()
    return power * 3 // 4 if samples <= power * 3 // 4 else power


@functools.lru_cache(maxsize=16)
def _rooms(size: int) -> npt.NDArray[np.complex64]:
    """Spectra of the rooms at one transform size: (ROOMS, size / 2 + 1) complex64."""
    return np.fft.rfft(_impulse_responses(), size).astype(np.complex64)


@functools.cache
def _impulse_responses() -> Samples:
    """Small rooms, each the direct sound, a few early echoes and a noisy tail that dies away: (ROOMS, samples)."""
    rng = np.random.default_rng(1)
    length = round(ROOM_S * SAMPLE_RATE_HZ)
    seconds = np.arange(length) / SAMPLE_RATE_HZ
    responses = np.zeros((ROOMS, length), np.float32)
    for response in responses:
        decay_s = rng.uniform(0.08, 0.5)  # to −60 dB
        tail = rng.standard_normal(length) * 10 ** (-3 * seconds / decay_s)
        tail[: round(0.003 * SAMPLE_RATE_HZ)] = 0
        tail = np.convolve(tail, np.exp(-np.arange(12) / rng.uniform(0.5, 3)))[:length]  # walls swallow the highs
        direct_to_tail_db = rng.uniform(0, 15)
        response += tail / np.sqrt(np.sum(tail**2)) * 10 ** (-direct_to_tail_db / 20)
        for _ in range(rng.integers(1, 6)):
            response[rng.integers(16, 400)] += rng.uniform(-0.4, 0.4)
        response[0] += 1
    return responses


@functools.cache
def _noises() -> Samples:
    """Noises of each slope at unit level, half of them swelling and fading: (slopes, NOISE_SAMPLES) float32."""
    rng = np.random.default_rng(2)
    bins_hz = np.fft.rfftfreq(NOISE_SAMPLES, 1 / SAMPLE_RATE_HZ)
    noises = []
    for index, slope in enumerate(NOISE_SLOPES):
        spectrum = rng.standard_normal(len(bins_hz)) + 1j * rng.standard_normal(len(bins_hz))
        noise = np.fft.irfft(spectrum / np.maximum(bins_hz, 40) ** (slope / 2), NOISE_SAMPLES)
        if index % 2:
            points = rng.uniform(0.3, 1.5, NOISE_SAMPLES // 4000)
            noise *= np.interp(np.arange(NOISE_SAMPLES), np.arange(len(points)) * 4000, points)
        noises.append(noise / np.sqrt(np.mean(noise**2)))
    return np.array(noises, np.float32)
