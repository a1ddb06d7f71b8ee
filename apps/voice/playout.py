"""How long a reply's beginning is kept back so that what follows it comes in time: learned from the replies before.

Inputs: when each piece of sound came and how long it is → output: seconds to wait after the first one.

A piece is late when all before it would have been played by then, had it begun with the first. Where the model makes
sound much faster than it is played, nothing is ever late and nothing waits. Where it is barely faster, replies begin as
much later as nineteen of twenty needed lately: a short wait is heard less than a gap between two words. Voice over IP
calls it adaptive playout (Ramjee, Kurose, Towsley and Schulzrinne, INFOCOM 1994).
"""

from __future__ import annotations

from collections import deque

import numpy as np

from .wire import SPEAKER_RATE_HZ

_REPLIES = 32
_SHARE = 0.95
_SPARE_S = 0.1  # for those that will be later still
_LONGEST_S = 0.5  # for a computer that cannot keep up at all, no wait is long enough


class PlayoutDelay:
    """One for all replies of a device; each piece of each is told to it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """To be waited after the first piece of this reply."""
        self._late_s: deque[float] = deque(maxlen=_REPLIES)  # the latest piece of each reply
        self._first_s = 0.0
        self._samples = 0
        self._latest_s: float | None = None  # of this reply; None while there is but one piece

    def begin(self) -> None:
        """What comes now is another reply's."""
        if self._latest_s is not None:
            self._late_s.append(self._latest_s)
            needed_s = float(np.quantile(self._late_s, _SHARE)) + _SPARE_S
            self.seconds = min(max(0.0, needed_s), _LONGEST_S)
        self._samples, self._latest_s = 0, None

    def arrived(self, samples: int, now_s: float) -> None:
        """So many more samples at 24 kHz have come."""
        if self._samples == 0:
            self._first_s = now_s
        else:
            late_s = now_s - self._first_s - self._samples / SPEAKER_RATE_HZ
            self._latest_s = late_s if self._latest_s is None else max(self._latest_s, late_s)
        self._samples += samples

    def over(self, now_s: float) -> bool:
        """Whether the first piece has waited long enough."""
        return now_s >= self._first_s + self.seconds
