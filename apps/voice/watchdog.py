"""Whether the devices do what they should, judged from outside: nothing in PortAudio says when one is gone.

A stream of a device that is gone, asleep or moved stays "active"; it is no longer called, gives exact zeros, or goes on
with another device. `check` is called many times a second and finds such things within a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import pulse
from .device_names import Device, Kind
from .wire import DeviceChoice, DeviceState

Float32 = npt.NDArray[np.float32]

_FIRST_CALL_S = 2.0  # a Bluetooth headset takes that long to begin
_NO_CALL_S = 0.5
_BEGUN_S = 0.2  # so much sound: one that is asleep takes a buffer's full before it stands still
_SILENCE_S = 0.8
_PACE_S = 0.6  # half of the sound missing is then told within 0.84 s, wherever in such a stretch it began
_LEAST_PACE = 0.8


class Stream(Protocol):
    """What is looked at of `Microphone` and `Speaker`."""

    device: Device
    ended: bool
    """The system has ended it."""
    called_s: float
    """When its callback was last called, or when it was opened."""
    samples: int
    """How many samples the callback has dealt with."""
    error: Exception | None
    """What went wrong in the callback."""


class Gone(Exception):
    """A device cannot be used any more; its text is for people."""


class Watchdog:
    """Looks at the streams of both devices."""

    def __init__(
        self,
        choice: DeviceChoice,
        microphone: Stream,
        speaker: Stream,
        connected: Callable[[], pulse.Streams | None],
        *,
        lasting_trouble: str | None = None,
    ) -> None:
        """`connected` says what a sound server has connected the streams to; `lasting_trouble` is always told."""
        self._connected = connected
        self._lasting_trouble = lasting_trouble
        self._microphone = _Watched("microphone", choice.microphone, microphone)
        self._speaker = _Watched("speaker", choice.speaker, speaker)
        self._not_silent_s = microphone.called_s

    def heard(self, samples: Float32, now_s: float) -> None:
        """Samples `(n,)` came from the microphone."""
        if np.any(samples):  # even a quiet room is not exactly 0
            self._not_silent_s = now_s

    def check(self, now_s: float) -> DeviceState | None:
        """How it stands; None until both devices have begun. Raises `Gone`."""
        watched = (self._microphone, self._speaker)
        begun = [each.check(now_s) for each in watched]
        connected = self._connected()
        if connected is not None:
            self._microphone.check_device(connected.microphone)
            self._speaker.check_device(connected.speaker)
        if not all(begun):
            return None
        troubles = [each.slow for each in watched if each.slow is not None]
        working = not troubles
        if now_s - self._not_silent_s > _SILENCE_S:
            troubles.append(f"the microphone ({self._microphone.title}) gives only digital silence: is it muted?")
        if self._lasting_trouble is not None:
            troubles.append(self._lasting_trouble)
        return DeviceState(working, self._microphone.title, self._speaker.title, "; ".join(troubles) or None)


class _Watched:
    """One of the two."""

    def __init__(self, kind: Kind, wanted: str | None, stream: Stream) -> None:
        self._kind, self._wanted, self._stream = kind, wanted, stream
        self._name, self.title = stream.device.name, stream.device.title
        self._counted = (0, stream.called_s)  # samples, and when they were counted
        self.slow: str | None = None
        """What is wrong when much less sound passes than should."""

    def check(self, now_s: float) -> bool:
        """Whether it has begun. Raises `Gone` when it does not go on."""
        stream = self._stream
        if stream.error is not None:
            raise Gone(f"the {self._kind} ({self.title}) failed: {stream.error!r}")
        if stream.ended:
            raise Gone(f"the {self._kind} ({self.title}) is gone")
        if now_s - stream.called_s > (_NO_CALL_S if stream.samples else _FIRST_CALL_S):
            trouble = "gives no sound" if self._kind == "microphone" else "takes no sound"
            raise Gone(f"the {self._kind} ({self.title}) {trouble}")
        if stream.samples < _BEGUN_S * stream.device.rate_hz:
            self._counted = (stream.samples, now_s)
            return False
        self._check_pace(now_s)
        return True

    def check_device(self, device: pulse.Device | None) -> None:
        """Take note of another device, if it may be another. Raises `Gone` if not."""
        if device is None or device.name == self._name:
            return
        if device.is_monitor:
            raise Gone(f"the microphone ({self.title}) is gone, and there is no other")
        if self._wanted is not None:
            raise Gone(f"the {self._kind} ({self.title}) is gone; the system offers {device.title} in its place")
        self._name, self.title = device.name, device.title  # the system's default is another now

    def _check_pace(self, now_s: float) -> None:
        samples, since_s = self._counted
        if now_s - since_s < _PACE_S:
            return
        pace = (self._stream.samples - samples) / (now_s - since_s) / self._stream.device.rate_hz
        self._counted = (self._stream.samples, now_s)
        self.slow = None
        if pace < _LEAST_PACE:
            self.slow = f"only {pace:.0%} of the {self._kind}'s sound gets through: the computer is too busy"
