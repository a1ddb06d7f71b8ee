"""Other sample rates, levels and noise than the recordings have: what `evaluate` does to them before they are heard.

Inputs: samples float32 `(N,)`, 16 kHz, clean → outputs: the same speech as another recorder would have given it to the
runtime, again float32 at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import soxr
from numpy.typing import NDArray

from ..runtime.audio import SAMPLE_RATE_HZ, from_array

Disturbance = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def _resampled(rate_hz: int) -> Disturbance:
    def disturb(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        return from_array(soxr.resample(samples, SAMPLE_RATE_HZ, rate_hz, quality="HQ"), rate_hz)

    return disturb


def _louder(gain_db: float) -> Disturbance:
    """What goes beyond full scale is cut off, as it would be in a file."""
    return lambda samples: np.clip(samples * np.float32(10 ** (gain_db / 20)), -1, 1)


def _noisy(below_db: float) -> Disturbance:
    def disturb(samples: NDArray[np.float32]) -> NDArray[np.float32]:
        noise = np.random.default_rng(len(samples)).standard_normal(len(samples), np.float32)
        level = np.float32(np.sqrt(np.mean(samples**2)) * 10 ** (-below_db / 20))
        return np.clip(samples + level * noise, -1, 1)

    return disturb


CONDITIONS: dict[str, Disturbance] = {
    **{f"{rate_hz / 1000:g} kHz": _resampled(rate_hz) for rate_hz in (8000, 11_025, 22_050, 44_100, 48_000)},
    "−12 dB": _louder(-12),
    "+12 dB": _louder(12),
    "noise 15 dB below": _noisy(15),
}
