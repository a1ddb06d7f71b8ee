"""For tests of sound: keeps reading a `SoundDevice` in a thread, with the time of everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from nearfield.apps.voice.sound_device import DeviceState, Heard, SoundDevice

Float32 = npt.NDArray[np.float32]


def right(state: DeviceState) -> bool:
    """Whether there is nothing to be told."""
    return state.working and state.trouble is None


class Listener:
    """All that came from a device, in order; a context manager around the device, which it starts and closes."""

    def __init__(self, device: SoundDevice) -> None:
        self.device = device
        self.frames: list[tuple[float, Heard]] = []
        self.states: list[tuple[float, DeviceState]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Listener:
        self.device.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.device.close()

    @property
    def state(self) -> DeviceState:
        """The latest."""
        return self.states[-1][1]

    def sound(self, since_s: float = 0.0) -> Float32:
        """What was heard after that moment, float32 `(n,)`."""
        return np.concatenate([np.zeros(0, np.float32), *(f.samples for at_s, f in self.frames if at_s >= since_s)])

    def wait(self, what: Callable[[], object], timeout_s: float) -> float:
        """Wait until something is so and return how long that took. Raises `AssertionError` when it does not come."""
        began_s = time.monotonic()
        while not what():
            waited_s = time.monotonic() - began_s
            assert waited_s < timeout_s, f"not within {timeout_s} s; states: {self.states}, {len(self.frames)} frames"
            time.sleep(0.005)
        return time.monotonic() - began_s

    def wait_for_state(self, what: Callable[[DeviceState], bool], timeout_s: float, since: int = 0) -> float:
        """The same for a state among those from number `since` on."""
        return self.wait(lambda: any(what(state) for _, state in self.states[since:]), timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self.device.read(0.05)
            now_s = time.monotonic()
            if isinstance(message, Heard):
                self.frames.append((now_s, message))
            elif message is not None:
                self.states.append((now_s, message))
