"""The audio process: microphone and speaker, alone with PortAudio.

    stdin: DeviceChoice, then Play, Finish, Hold, Resume, Drop     stdout: Heard, DeviceState, Progress, Failed

It is a process of its own because PortAudio calls back into Python: beside a model at work that would come too late.
And when a device goes PortAudio may hang, or never list another one: then this process says why, and ends, or is ended,
and `SoundDevice` starts the next. It also ends when its standard input does, so it never outlives who started it.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from ...errors import AudioDeviceError
from .apart import needs_portaudio
from .wire import (
    DeviceChoice,
    DeviceState,
    Drop,
    Failed,
    Finish,
    Hold,
    Message,
    Play,
    Progress,
    Resume,
    WireError,
    encode,
    read_message,
)

if TYPE_CHECKING:
    from .echo import EchoCanceller
    from .microphone import Microphone
    from .pulse import Watch
    from .speaker import Speaker

_POLL_S = 0.005
_SWITCH_S = 0.001  # between threads: a callback must not wait for Python's usual 5 ms
_NO_CANCELLER = "no echo cancellation (pywebrtc-audio is not installed): use headphones"

Commands = queue.SimpleQueue[Message]


def main() -> None:
    """Work until there is no more to do; never returns."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every program of a terminal; ending is the parent's job
    sys.setswitchinterval(_SWITCH_S)
    source, out = _take_over_pipes()
    commands = Commands()
    threading.Thread(target=_read_commands, args=(source, commands), name="commands", daemon=True).start()
    choice = commands.get()
    code = 1
    if isinstance(choice, DeviceChoice):
        try:
            _work(choice, commands, out)
        except AudioDeviceError as error:
            _send(out, Failed(str(error)))
        except OSError:
            code = 0  # nobody listens any more
    os._exit(code)  # without PortAudio's own clean-up: it can hang


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Where messages come from and go to, for this file alone; for everybody else there is no input, and errors only.

    What a library prints would come between the messages. And on Windows one that merely looks at standard input while
    it is loaded waits for the read that is under way there.
    """
    source, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return source, out


def _read_commands(source: BinaryIO, commands: Commands) -> None:
    """Hand on what comes; the end of it is the end of this process."""
    try:
        while (message := read_message(source)) is not None:
            commands.put(message)
    except (WireError, OSError) as error:
        print(f"the audio process was told nonsense: {error}", file=sys.stderr)
    os._exit(0)


def _work(choice: DeviceChoice, commands: Commands, out: BinaryIO) -> None:
    """Open the devices and move sound. Raises `AudioDeviceError` when that is no longer possible."""
    from .priority import raise_priority

    raise_priority()
    with needs_portaudio():
        from .device_names import find
        from .microphone import Microphone
        from .speaker import Speaker
    from . import pulse

    server = pulse.look()
    microphone = Microphone(find("microphone", choice.microphone, server))
    speaker = Speaker(find("speaker", choice.speaker, server))
    watch = None if server is None else pulse.Watch()
    _Loop(choice, microphone, speaker, watch, commands, out).run()


class _Loop:
    """Everything but the callbacks, in one thread, some two hundred times a second."""

    def __init__(
        self,
        choice: DeviceChoice,
        microphone: Microphone,
        speaker: Speaker,
        watch: Watch | None,
        commands: Commands,
        out: BinaryIO,
    ) -> None:
        from .hearing import Hearing
        from .replies import Replies
        from .watchdog import Watchdog

        canceller = _canceller() if choice.echo_cancellation else None
        self._commands, self._out = commands, out
        self._microphone, self._speaker = microphone, speaker
        self._hearing = Hearing(microphone.device.rate_hz, speaker.device.rate_hz, canceller)
        self._replies = Replies(speaker.output)
        self._watchdog = Watchdog(
            choice,
            microphone,
            speaker,
            lambda: None if watch is None else watch.streams,
            lasting_trouble=_NO_CANCELLER if choice.echo_cancellation and canceller is None else None,
        )
        self._state: DeviceState | None = None
        self._progress: Progress | None = None

    def run(self) -> None:
        """Go on until a device is gone. Raises `AudioDeviceError` then."""
        from .watchdog import Gone

        try:
            while True:
                self._obey()
                self._replies.feed(time.monotonic())
                self._listen()
                self._report(time.monotonic())
        except Gone as gone:
            raise AudioDeviceError(str(gone)) from gone

    def _obey(self) -> None:
        """Do as told; waits a little for something to do."""
        try:
            command = self._commands.get(timeout=_POLL_S)
            while True:
                self._do(command)
                command = self._commands.get_nowait()
        except queue.Empty:
            pass

    def _do(self, command: Message) -> None:
        match command:
            case Play(reply, samples):
                self._replies.play(reply, samples, time.monotonic())
            case Finish(reply):
                self._replies.finish(reply)
            case Hold():
                self._speaker.output.held = True
            case Resume():
                self._speaker.output.held = False
            case Drop():
                self._replies.drop()
                self._speaker.output.held = False
            case _:
                raise WireError(f"a {type(command).__name__} is not for the audio process")

    def _listen(self) -> None:
        mark = self._microphone.mark
        heard, given = self._microphone.ring.take(), self._speaker.output.given.take()
        self._watchdog.heard(heard, time.monotonic())
        for frame in self._hearing.push(heard, given, mark):
            _send(self._out, frame)

    def _report(self, now_s: float) -> None:
        state, progress = self._watchdog.check(now_s), self._replies.progress(now_s)
        if state is not None and state != self._state:
            self._state = state
            _send(self._out, state)
        if progress is not None and progress != self._progress:
            self._progress = progress
            _send(self._out, progress)


def _canceller() -> EchoCanceller | None:
    from .echo import EchoCanceller

    try:
        return EchoCanceller()
    except ImportError:
        return None


def _send(out: BinaryIO, message: Message) -> None:
    out.write(encode(message))
    out.flush()


if __name__ == "__main__":
    main()
