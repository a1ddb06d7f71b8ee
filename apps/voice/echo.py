"""The assistant's own voice is taken out of what the microphone hears (AEC3, from WebRTC).

Inputs: what the speaker was given and what the microphone heard, both 16 kHz mono float32 → output: the microphone's
sound without the former, 8 ms later.

The canceller compares both sounds step by step, so they must run past it in lock-step: one that slips by some
milliseconds costs it seconds to find the echo again. Speaker and microphone are devices of their own with clocks of
their own, and hand over their blocks when they like; `Reference` is the short queue that makes up for it.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from .wire import MICROPHONE_RATE_HZ

Float32 = npt.NDArray[np.float32]

STEP_SAMPLES = MICROPHONE_RATE_HZ // 100
"""What AEC3 takes at a time: 10 ms."""
DELAY_S = 0.008
"""How much later sound comes out than it went in (measured with pywebrtc-audio 0.2)."""

_LEAST_SAMPLES = STEP_SAMPLES  # the queue's lowest filling after it was shortened: room for callbacks being late
_MOST_SAMPLES = 3 * STEP_SAMPLES  # so much over a second, and it is shortened; a reference too late cannot be used
_STEPS_WATCHED = 100
_OWED_SAMPLES = 5 * STEP_SAMPLES  # so much late, the speaker has stood still: what comes now belongs to now


class Reference:
    """What the speaker was given, in lock-step with the microphone."""

    def __init__(self) -> None:
        self._queue = np.zeros(0, np.float32)
        self._owed = 0  # samples given as silence because they had not come yet
        self._steps = 0
        self._lowest = sys.maxsize  # filling of the queue, over the last second

    @property
    def waiting(self) -> int:
        """How many samples wait for the microphone's."""
        return len(self._queue)

    def push(self, samples: Float32) -> None:
        """Add samples `(n,)` the speaker was given. Those whose time has passed are dropped: the rest stays in step."""
        late = min(self._owed, len(samples))
        self._owed -= late
        self._queue = np.concatenate([self._queue, samples[late:]])

    def take(self) -> Float32:
        """The `(160,)` samples that belong to the microphone's next 160; silence in place of what has not come yet."""
        step, self._queue = self._queue[:STEP_SAMPLES], self._queue[STEP_SAMPLES:]
        missing = STEP_SAMPLES - len(step)
        self._owed += missing
        if self._owed > _OWED_SAMPLES:
            self._owed = 0
        self._watch()
        return np.pad(step, (0, missing))

    def _watch(self) -> None:
        """Keep the queue short, by what was too much of it over the last second."""
        self._lowest = min(self._lowest, len(self._queue))
        self._steps += 1
        if self._steps == _STEPS_WATCHED:
            if self._lowest >= _MOST_SAMPLES:
                self._queue = self._queue[self._lowest - _LEAST_SAMPLES :]
            self._steps, self._lowest = 0, sys.maxsize


class EchoCanceller:
    """AEC3 on a stream of microphone and speaker sound."""

    def __init__(self) -> None:
        """Raises `ImportError` where the package is not installed."""
        from pywebrtc_audio import EchoCanceller as Aec3

        self._aec3 = Aec3(sample_rate=MICROPHONE_RATE_HZ)

    def process(self, heard: Float32, given: Float32) -> Float32:
        """The microphone's `(160,)` without the echo of the speaker's `(160,)`."""
        return self._aec3.process(heard, given)
