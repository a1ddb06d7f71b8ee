"""The speaker's stream: what lies in a ring is played; it can be held, dropped, and asked what was heard of it.

Inputs: samples float32 at the device's own rate, in `ring` → outputs: the same to the device; in `given`, all that the
device got, silence included, for echo cancellation.

The device plays what it is given some 40 ms later. Each block's time at the device is noted, so `heard` counts what has
left the speaker and not what has left the ring.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import sounddevice

from .device_names import Device
from .device_stream import DeviceStream, Float32
from .rings import Ring

_LATENCY_S = 0.03  # with 20 ms a busy machine is heard; PortAudio makes 40 ms of both 30 and 40, but 40 in two lumps
_RING_S = 0.5
_FADE_S = 0.01
_LONGEST_DELAY_S = 1.0  # some systems give no times, or nonsense


class Speaker(DeviceStream):
    """An open stream, copied out of a ring."""

    def __init__(self, device: Device) -> None:
        """Open and start it. Raises `AudioDeviceError` when that fails."""
        super().__init__(device)
        self.output = Output(device.rate_hz)
        self._open("speaker", sounddevice.OutputStream, _LATENCY_S)

    def _move(self, sound: Float32, times: Any, status: Any, now_s: float) -> None:  # noqa: ANN401  # cffi
        delay_s = times.outputBufferDacTime - times.currentTime
        if not 0 < delay_s <= _LONGEST_DELAY_S:
            delay_s = _LATENCY_S
        try:
            self.output.fill(sound, now_s + delay_s, device_ran_dry=status.output_underflow)
        except Exception:
            sound.fill(0)  # what was half filled is not heard
            raise


class Output:
    """What the speaker's callback does, apart from the device."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.ring = Ring(round(_RING_S * rate_hz))
        """What is to be played."""
        self.given = Ring(rate_hz)
        """What the device got."""
        self.held = False
        """Silence, and nothing leaves the ring."""
        self.starved = False
        """The last block could not be filled."""
        self.gaps = 0
        """How often the device itself ran dry while there was sound to play."""
        self._drop_to = 0
        self._fade_samples = round(_FADE_S * rate_hz)
        self._open = self._fade_samples  # 0: silent; `_fade_samples`: as loud as it is
        self._blocks: deque[tuple[int, int, float]] = deque()  # first sample, samples, time at the device
        self._heard = 0

    def drop(self) -> None:
        """What lies in the ring now will not be played, but for a fade."""
        self._drop_to = self.ring.written

    def fill(self, sound: Float32, at_s: float, *, device_ran_dry: bool) -> None:
        """Fill `(frames, channels)`, whose first sample will be heard at `at_s`. For the callback."""
        before = self.ring.read
        mono = sound[:, 0]
        mono.fill(0)
        dropping = before < self._drop_to
        quiet = self.held or dropping
        gains = self._fade(len(sound), quiet=quiet)
        count = self.ring.read_into(mono[: len(gains)])
        self.starved = not quiet and count < len(sound)
        if count:
            mono[:count] *= gains[:count]
            self._blocks.append((before, count, at_s))
            self.gaps += device_ran_dry
        elif quiet:
            self._open = 0  # there was nothing to fade
        if dropping and self._open == 0:
            self.ring.skip_to(self._drop_to)
        if not self.held and self.ring.filled == 0:
            self._open = self._fade_samples  # fades are for sound that goes on; the next one begins by itself
        sound[:, 1:] = sound[:, :1]
        self.given.write(mono)

    def heard(self, now_s: float) -> int:
        """How many samples of the ring have been heard or dropped by now."""
        while self._blocks and self._blocks[0][2] <= now_s:
            first, count, at_s = self._blocks[0]
            self._heard = first + min(count, round((now_s - at_s) * self.rate_hz))
            if self._heard < first + count:
                break
            self._blocks.popleft()
        return self._heard

    def time_of(self, sample: int) -> float | None:
        """When this sample of the ring is heard; None before it was given to the device, or when that is long ago."""
        for first, count, at_s in list(self._blocks):
            if first <= sample < first + count:
                return at_s + (sample - first) / self.rate_hz
        return None

    def _fade(self, frames: int, *, quiet: bool) -> Float32:
        """Gains of the next samples: all of them, or as many as it takes to become silent."""
        step = -1 if quiet else 1
        opened = self._open + step * np.arange(min(frames, self._open) if quiet else frames)
        self._open = max(0, min(self._open + step * frames, self._fade_samples))
        gains: Float32 = (np.minimum(opened, self._fade_samples) / self._fade_samples).astype(np.float32)
        return gains
