"""The microphone's stream: sound as it comes, float32 at the device's own rate, and when it was captured."""

from __future__ import annotations

from typing import Any

import sounddevice

from .device_names import Device
from .device_stream import DeviceStream, Float32
from .rings import Ring

_LATENCY_S = 0.02
_RING_S = 2.0
_LONGEST_DELAY_S = 0.5  # some systems give no times, or nonsense


class Microphone(DeviceStream):
    """An open stream, copied into a ring."""

    def __init__(self, device: Device) -> None:
        """Open and start it. Raises `AudioDeviceError` when that fails."""
        super().__init__(device)
        self.ring = Ring(round(_RING_S * device.rate_hz))
        self.mark = (0, self.called_s)
        """A number of samples, and when the last of them entered the microphone: one pair, set at once."""
        self._open("microphone", sounddevice.InputStream, _LATENCY_S)

    def _move(self, sound: Float32, times: Any, status: Any, now_s: float) -> None:  # noqa: ANN401, ARG002  # cffi
        self.ring.write(sound[:, 0] if self.device.channels == 1 else sound.mean(axis=1))
        length_s = len(sound) / self.device.rate_hz
        delay_s = times.currentTime - times.inputBufferAdcTime  # of the first sample
        if not 0 <= delay_s <= _LONGEST_DELAY_S:
            delay_s = length_s
        self.mark = (self.ring.written, min(now_s, now_s - delay_s + length_s))
