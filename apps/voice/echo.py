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

_STEPS_WATCHED = 50
_SLACK_SAMPLES = 5 * STEP_SAMPLES // 4  # left in the queue at its lowest after it was put right: callbacks come late
_SLACK_SPAN = (3 * STEP_SAMPLES // 4, 7 * STEP_SAMPLES // 4)  # outside it the clocks have drifted apart
_NUDGE_STEPS = 12  # a sample in so many steps follows a drift of over 500 parts in a million
_MOST_SLACK_SAMPLES = 3 * STEP_SAMPLES  # so much, and it is cut at once; a reference too late cannot be used
_OWED_SAMPLES = 5 * STEP_SAMPLES  # so much late, the speaker has stood still: what comes now belongs to now


class Reference:
    """What the speaker was given, in lock-step with the microphone.

    Its slack, what is left in the queue at its lowest, is looked at twice a second. Where clocks drift, single samples
    are added or left out, which the canceller follows; only what is far off is put right at once.
    """

    def __init__(self) -> None:
        self._queue = np.zeros(0, np.float32)
        self._owed = 0  # samples given as silence because they had not come yet
        self._steps = 0
        self._slack = sys.maxsize  # so far, in these steps
        self._was_late = False
        self._nudge = 0  # samples that a step takes more than it gives

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
        count = STEP_SAMPLES + (self._nudge if self._steps % _NUDGE_STEPS == 0 else 0)
        step, self._queue = self._queue[:count], self._queue[count:]
        missing = count - len(step)
        self._owed += missing
        if self._owed > _OWED_SAMPLES:
            self._owed = 0
        self._watch()
        step = np.pad(step, (0, missing))
        if count == STEP_SAMPLES:
            return step
        return np.interp(np.linspace(0, count - 1, STEP_SAMPLES), np.arange(count), step).astype(np.float32)

    def _watch(self) -> None:
        """Keep the slack what it should be."""
        self._slack = min(self._slack, len(self._queue) - self._owed)
        self._steps += 1
        if self._steps < _STEPS_WATCHED:
            return
        slack, self._slack, self._steps, self._nudge = self._slack, sys.maxsize, 0, 0
        late, self._was_late = self._was_late, slack < 0
        if slack >= _MOST_SLACK_SAMPLES:
            self._queue = self._queue[slack - _SLACK_SAMPLES :]
        elif slack < 0 and late:
            # Not a callback that was late once: all of it is late, and dropping that would leave nothing.
            more = _SLACK_SAMPLES - slack
            self._queue = np.concatenate([np.zeros(max(0, more - self._owed), np.float32), self._queue])
            self._owed = max(0, self._owed - more)
            self._was_late = False
        elif slack >= 0:
            least, most = _SLACK_SPAN
            self._nudge = int(slack > most) - int(slack < least)


class EchoCanceller:
    """AEC3 on a stream of microphone and speaker sound."""

    def __init__(self) -> None:
        """Raises `ImportError` where the package is not installed."""
        from pywebrtc_audio import EchoCanceller as Aec3

        self._aec3 = Aec3(sample_rate=MICROPHONE_RATE_HZ)

    def process(self, heard: Float32, given: Float32) -> Float32:
        """The microphone's `(160,)` without the echo of the speaker's `(160,)`."""
        return self._aec3.process(heard, given)
