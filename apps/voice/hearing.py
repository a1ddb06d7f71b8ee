"""What the microphone gives, and what the speaker was given → frames of 32 ms at 16 kHz without echo.

Inputs: samples float32 at the rates of the two devices, any number at a time → outputs: `Heard`, `(512,)` each. Both go
through resamplers of the same length, so they stay in step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .echo import DELAY_S, STEP_SAMPLES, EchoCanceller, Reference
from .frames import FRAME_SAMPLES
from .resampler import Resampler
from .wire import MICROPHONE_RATE_HZ, Heard

Float32 = npt.NDArray[np.float32]


class Hearing:
    """One stream of frames."""

    def __init__(self, microphone_rate_hz: int, speaker_rate_hz: int, canceller: EchoCanceller | None) -> None:
        self._rate_hz = microphone_rate_hz
        self._canceller = canceller
        self._microphone = Resampler(microphone_rate_hz, MICROPHONE_RATE_HZ)
        self._speaker = Resampler(speaker_rate_hz, MICROPHONE_RATE_HZ)
        self._reference = Reference()
        self._raw = np.zeros(0, np.float32)
        self._clean = np.zeros(0, np.float32)  # the first samples of `_raw`, without echo
        self._samples = 0  # given in frames so far

    def push(self, heard: Float32, given: Float32, mark: tuple[int, float]) -> list[Heard]:
        """Add what both devices had since the last call; returns the frames that completes.

        `mark`: a number of the microphone's samples, and when the last of them was captured.
        """
        self._reference.push(self._speaker.push(given))
        self._raw = np.concatenate([self._raw, self._microphone.push(heard)])
        self._cancel()
        frames = []
        while len(self._clean) >= FRAME_SAMPLES:
            self._samples += FRAME_SAMPLES
            level = float(np.sqrt(np.mean(np.square(self._raw[:FRAME_SAMPLES]))))
            frames.append(Heard(self._clean[:FRAME_SAMPLES], level, self._captured_s(mark)))
            self._raw, self._clean = self._raw[FRAME_SAMPLES:], self._clean[FRAME_SAMPLES:]
        return frames

    def _cancel(self) -> None:
        """Go on by whole steps."""
        steps = [self._clean]
        for start in range(len(self._clean), len(self._raw) - STEP_SAMPLES + 1, STEP_SAMPLES):
            step, given = self._raw[start : start + STEP_SAMPLES], self._reference.take()
            steps.append(step if self._canceller is None else self._canceller.process(step, given))
        self._clean = np.concatenate(steps)

    def _captured_s(self, mark: tuple[int, float]) -> float:
        """When the last sample given so far entered the microphone."""
        known_samples, known_s = mark
        behind_s = (known_samples - self._samples * self._rate_hz / MICROPHONE_RATE_HZ) / self._rate_hz
        return known_s - behind_s - (0.0 if self._canceller is None else DELAY_S)
