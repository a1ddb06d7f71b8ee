"""Replies on their way to the speaker, in the audio process: sound as it is made, at 24 kHz → the speaker's ring.

One reply at a time; their numbers grow, and what comes late for an earlier one is ignored. A reply begins when a little
of it is there, and as much later as replies before it needed not to stop for want of sound (playout.py); when it stops
all the same, it collects more before it goes on. Only half a second lies in the ring; the rest waits here, and can be
forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .playout import PlayoutDelay
from .resampler import Resampler
from .speaker import Output
from .wire import SPEAKER_RATE_HZ, Played, Progress

Float32 = npt.NDArray[np.float32]

_BEGIN_S = 0.06
_BEGIN_AGAIN_S = 0.2  # after an underrun
_STEP_SAMPLES = 480  # resampled at a time


@dataclass
class _Reply:
    """One reply, and how far it has got."""

    number: int
    start: int
    """Number of its first sample in the ring."""
    gaps_before: int
    """Of the device, before this reply."""
    resampler: Resampler
    waiting: deque[Float32] = field(default_factory=deque)
    samples: int = 0
    """How many have come, at 24 kHz."""
    flowing: bool = False
    """Enough of it was there to begin."""
    enough_s: float = _BEGIN_S
    closed: bool = False
    """No more will come."""
    complete: bool = False
    """And all of it is in the ring."""
    dropped: bool = False
    underruns: int = 0
    first_sample_s: float | None = None


class Replies:
    """The reply that is being played."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._most_from_a_step = 2 * _STEP_SAMPLES * output.rate_hz // SPEAKER_RATE_HZ
        self._delay = PlayoutDelay()
        self._reply = self._new(-1)

    def play(self, number: int, samples: Float32, now_s: float) -> None:
        """Add sound `(n,)` at 24 kHz that came at `now_s`; a new number drops what is left of the reply before."""
        self._begin(number)
        reply, output = self._reply, self._output
        if number < reply.number or reply.closed:
            return
        if reply.flowing and not reply.waiting and output.ring.filled == 0 and output.starved:
            reply.underruns += 1  # only now it is clear that it was no end
            reply.flowing, reply.enough_s = False, _BEGIN_AGAIN_S
        self._delay.arrived(len(samples), now_s)
        reply.samples += len(samples)
        reply.waiting.append(samples)

    def finish(self, number: int) -> None:
        """No more will come: running dry is now the end."""
        self._begin(number)
        if number == self._reply.number:
            self._reply.closed = True

    def drop(self) -> None:
        """Forget what was not played; what still comes for this reply is ignored."""
        self._reply.waiting.clear()
        self._output.drop()
        self._reply.dropped = self._reply.closed = True

    def feed(self, now_s: float) -> None:
        """Fill the ring from what waits, at the device's rate, if it may begin by `now_s`."""
        reply, ring = self._reply, self._output.ring
        if not reply.flowing:
            waiting_s = sum(map(len, reply.waiting)) / SPEAKER_RATE_HZ
            reply.flowing = reply.closed or (waiting_s >= reply.enough_s and self._delay.over(now_s))
        while reply.flowing and reply.waiting and ring.room > self._most_from_a_step:
            piece = reply.waiting.popleft()
            if len(piece) > _STEP_SAMPLES:
                reply.waiting.appendleft(piece[_STEP_SAMPLES:])
            ring.write(reply.resampler.push(piece[:_STEP_SAMPLES]))
        if reply.closed and not (reply.dropped or reply.waiting or reply.complete):
            ring.write(reply.resampler.flush())
            reply.complete = True

    def progress(self, now_s: float) -> Progress | None:
        """How far the reply has got; None before the first."""
        reply, output = self._reply, self._output
        if reply.number < 0:
            return None
        if reply.first_sample_s is None:
            reply.first_sample_s = output.time_of(reply.start)
        heard = max(0, output.heard(now_s) - reply.start)
        finished = reply.complete and not reply.dropped and reply.start + heard == output.ring.written
        samples = reply.samples if finished else min(heard * SPEAKER_RATE_HZ // output.rate_hz, reply.samples)
        first_s = reply.first_sample_s if heard else None
        underruns = reply.underruns + output.gaps - reply.gaps_before
        return Progress(reply.number, Played(samples, finished, first_s, underruns))

    def _begin(self, number: int) -> None:
        """Make this the reply that is played, if it is a later one."""
        if number > self._reply.number:
            self.drop()
            self._delay.begin()
            self._reply = self._new(number)

    def _new(self, number: int) -> _Reply:
        output = self._output
        return _Reply(number, output.ring.written, output.gaps, Resampler(SPEAKER_RATE_HZ, output.rate_hz))
