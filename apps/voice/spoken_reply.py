"""A reply on its way to the speaker: kept back until the turn is over, then played as it is made, until it was heard.

Input: the reply's text and sound float32 `(n,)`, 24 kHz, as they come → effect: sound goes to the device once `speak`
was called. What becomes of it is decided in one thread while it is made in another, so a lock stands in between: no
sound reaches the device before `speak` or after the end.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from ...runtime.events import TurnEnd
from .notices import Latency
from .sound_device import Played, SoundDevice

Float32 = npt.NDArray[np.float32]


class SpokenReply:
    """One reply. `number` is the device's name for it."""

    def __init__(self, number: int, device: SoundDevice) -> None:
        self.number = number
        self.turn = 0
        """Of the turn it answers."""
        self.text = ""
        """So far."""
        self.made: TurnEnd | None = None
        """How it was made, when it was."""
        self.decided = self.ended = False
        """Whether it may be played; whether no more of it will be."""
        self.played = Played(0, False, None, 0)
        """How much of it was heard, once it has ended."""
        self._device, self._lock = device, threading.Lock()
        self._sound: list[Float32] = []
        self._silence_ms = 0
        self._speech_ended_s: float | None = None
        self._written_down = False

    @property
    def sounds(self) -> bool:
        """Whether any of it was given to the speaker."""
        return self.decided and bool(self._sound)

    @property
    def over(self) -> bool:
        """Whether all of it was heard, or it has no sound."""
        if not self.decided or self.made is None:
            return False
        return not self._sound or self._device.played(self.number).finished

    def write(self, text: str) -> None:
        """More text."""
        self.text += text

    def say(self, samples: Float32) -> bool:
        """More sound; returns whether it was the first that went to the speaker."""
        with self._lock:
            if self.ended:
                return False
            self._sound.append(samples)
            if self.decided:
                self._device.play(self.number, samples)
            return self.decided and len(self._sound) == 1

    def finish(self, end: TurnEnd) -> None:
        """All of it was made."""
        with self._lock:
            self.made = end
            if self.decided and not self.ended:
                self._device.finish(self.number)

    def speak(self, silence_ms: int, decided_s: float | None) -> None:
        """The turn is over, `silence_ms` after the last speech; `decided_s` is the time of that on the device's clock,
        None when a key decided.
        """
        with self._lock:
            self.decided, self._silence_ms = True, silence_ms
            self._speech_ended_s = None if decided_s is None else decided_s - silence_ms / 1000
            for samples in self._sound:
                self._device.play(self.number, samples)
            if self.made is not None:
                self._device.finish(self.number)

    def end(self, *, silence: bool) -> None:
        """No more of it is played; with `silence` the device drops what it still holds."""
        with self._lock:
            self.ended = True
        if silence:
            self._device.drop()
        self.played = self._device.played(self.number)

    def to_be_written_down(self) -> bool:
        """Whether now is the time to ask what was heard: once, when it is made and may be heard."""
        with self._lock:
            now = self.decided and self.made is not None and not self.ended and not self._written_down
            self._written_down |= now
            return now

    def sound_heard(self) -> Float32:
        """`(n,)`, 24 kHz: what was played of it."""
        return np.concatenate([np.empty(0, np.float32), *self._sound])[: self.played.samples]

    def latency(self) -> Latency:
        """What it took, once it has ended."""
        timing = None if self.made is None else self.made.timing
        first = self.played.first_sample_s
        noticed = None if first is None or self._speech_ended_s is None else 1000 * (first - self._speech_ended_s)
        return Latency(
            silence_wait_ms=float(self._silence_ms),
            first_token_ms=None if timing is None else timing.time_to_first_token_ms,
            first_audio_ms=None if timing is None else timing.time_to_first_audio_ms,
            first_sound_ms=noticed,
        )
