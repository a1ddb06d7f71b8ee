"""One audio process, seen from Nearfield: started, written to without waiting, read from, ended for sure."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from .apart import module_command
from .wire import DeviceState, Failed, FromAudio, Heard, Progress, ToAudio, WireError, encode, read_message

COMMAND = module_command(f"{__package__}.audio_process")
_CREATION_FLAGS = 0
if sys.platform == "win32":
    _CREATION_FLAGS = subprocess.CREATE_NO_WINDOW  # a desktop program would show an empty console
_END_S = 1.0
_ERROR_LINES = 20


class AudioChild:
    """A running audio process."""

    def __init__(self, command: Sequence[str], receive: Callable[[FromAudio], None]) -> None:
        """Start it; `receive` gets what it sends, in another thread. Raises `OSError` when it cannot be started."""
        self._receive = receive
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._errors: deque[str] = deque(maxlen=_ERROR_LINES)
        self.ended = threading.Event()
        """It sends nothing any more."""
        self.frames = 0
        """How many frames of sound have come."""
        self._nonsense: str | None = None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            creationflags=_CREATION_FLAGS,
        )
        self._threads = [
            threading.Thread(target=work, name=f"audio {name}", daemon=True)
            for name, work in (("reader", self._read), ("writer", self._write), ("errors", self._read_errors))
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: ToAudio) -> None:
        """Have a message written; never waits."""
        self._outgoing.put(encode(message))

    def end(self) -> None:
        """End it, whatever it is doing; takes two seconds at most."""
        self._process.kill()
        self._outgoing.put(None)
        # It may wait for the system itself, and then nothing more can be done: it is left to end when it can.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        until_s = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                assert pipe is not None
                pipe.close()

    def last_words(self) -> str:
        """Why it ended by itself without saying so, as far as that can be told."""
        if self._nonsense is not None:
            return f"it sent nonsense: {self._nonsense}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        line = next((line for line in reversed(self._errors) if line.strip()), "it printed nothing")
        return f"exit code {self._process.returncode}; {line.strip()}"

    def _read(self) -> None:
        source = self._process.stdout
        assert source is not None
        try:
            while (message := read_message(source)) is not None:
                if not isinstance(message, Heard | DeviceState | Progress | Failed):
                    raise WireError(f"a {type(message).__name__} is not for Nearfield")
                self.frames += isinstance(message, Heard)
                self._receive(message)
        except (WireError, OSError) as error:
            self._nonsense = str(error)
        self.ended.set()

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(OSError):  # it has ended: the reader tells
            while (data := self._outgoing.get()) is not None:
                rest = memoryview(data)
                while rest:
                    rest = rest[pipe.write(rest) :]

    def _read_errors(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        left = b""
        while data := pipe.read(4096):
            *lines, left = (left + data).split(b"\n")
            self._errors.extend(line.decode("utf-8", errors="replace") for line in lines)
            left = left[-4096:]
        self._errors.append(left.decode("utf-8", errors="replace"))
