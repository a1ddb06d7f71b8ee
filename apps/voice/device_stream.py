"""What the microphone's stream and the speaker's have in common: how one is opened, and what a watchdog looks at."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import sounddevice

from ...errors import AudioDeviceError
from .device_names import Device, Kind

Float32 = npt.NDArray[np.float32]

_BLOCKS_PER_SECOND = 100


class DeviceStream(ABC):
    """An open stream. Its callback copies and does nothing else."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.ended = False
        """The system has ended the stream, as when the device is gone."""
        self.called_s = time.monotonic()
        """When the callback was last called, or now."""
        self.samples = 0
        """How many samples the callback has dealt with."""
        self.error: Exception | None = None
        """What went wrong in the callback."""

    def _open(self, kind: Kind, stream: Callable[..., Any], latency_s: float) -> None:
        """Open and start a `stream` of sounddevice. Raises `AudioDeviceError` when that fails."""
        try:
            self._stream = stream(
                device=self.device.index,
                samplerate=self.device.rate_hz,
                channels=self.device.channels,
                dtype="float32",
                blocksize=self.device.rate_hz // _BLOCKS_PER_SECOND,
                latency=latency_s,
                callback=self._callback,
                finished_callback=self._finished,
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise AudioDeviceError(f"the {kind} ({self.device.title}) cannot be used: {error}") from error

    @abstractmethod
    def _move(self, sound: Float32, times: Any, status: Any, now_s: float) -> None:  # noqa: ANN401  # cffi
        """Deal with `sound (frames, channels)`; `times` and `status` are PortAudio's."""

    def _callback(self, sound: Float32, frames: int, times: Any, status: Any) -> None:  # noqa: ANN401  # cffi
        """Raises nothing: the stream would end."""
        try:
            self.called_s = now_s = time.monotonic()
            self._move(sound, times, status, now_s)
            self.samples += frames
        except Exception as error:  # noqa: BLE001  # kept for whoever watches
            self.error = error

    def _finished(self) -> None:
        self.ended = True
