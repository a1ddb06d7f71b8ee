"""The microphone's stream: sound as it comes, float32 at the device's own rate, and when it was captured."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import sounddevice

from ...errors import AudioDeviceError
from .device_names import Device
from .rings import Ring

Float32 = npt.NDArray[np.float32]

_LATENCY_S = 0.02
_BLOCKS_PER_SECOND = 100
_RING_S = 2.0
_LONGEST_DELAY_S = 0.5  # some systems give no times, or nonsense


class Microphone:
    """An open stream; its callback copies into a ring and does nothing else."""

    def __init__(self, device: Device) -> None:
        """Open and start it. Raises `AudioDeviceError` when that fails."""
        self.device = device
        self.ring = Ring(round(_RING_S * device.rate_hz))
        self.ended = False
        """The system has ended the stream, as when the device is gone."""
        self.called_s = time.monotonic()
        """When the callback was last called, or now."""
        self.samples = 0
        """How many samples the callback has dealt with."""
        self.mark = (0, self.called_s)
        """A number of samples, and when the last of them entered the microphone: one pair, set at once."""
        self.error: Exception | None = None
        """What went wrong in the callback."""
        try:
            self._stream = sounddevice.InputStream(
                device=device.index,
                samplerate=device.rate_hz,
                channels=device.channels,
                dtype="float32",
                blocksize=device.rate_hz // _BLOCKS_PER_SECOND,
                latency=_LATENCY_S,
                callback=self._callback,
                finished_callback=self._finished,
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise AudioDeviceError(f"the microphone ({device.title}) cannot be used: {error}") from error

    def _callback(self, sound: Float32, frames: int, times: Any, _status: object) -> None:  # noqa: ANN401  # cffi
        """`sound` is `(frames, channels)`. Raises nothing: the stream would end."""
        try:
            now_s = time.monotonic()
            self.called_s = now_s
            mono = sound[:, 0] if self.device.channels == 1 else sound.mean(axis=1)
            self.ring.write(mono)
            self.samples += frames
            delay_s = times.currentTime - times.inputBufferAdcTime  # of the first sample
            if not 0 <= delay_s <= _LONGEST_DELAY_S:
                delay_s = frames / self.device.rate_hz
            self.mark = (self.ring.written, min(now_s, now_s - delay_s + frames / self.device.rate_hz))
        except Exception as error:  # noqa: BLE001  # kept for whoever watches
            self.error = error

    def _finished(self) -> None:
        self.ended = True
