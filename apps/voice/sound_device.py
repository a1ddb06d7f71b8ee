"""Microphone and speaker of a spoken conversation, for the process that runs the model.

Inputs: replies, float32 `(n,)` at 24 kHz, in any pieces → outputs: `Heard`, 32 ms of the microphone at 16 kHz without
the echo of those replies, and `DeviceState` whenever something about the devices changes.

The devices themselves are in a process of their own (audio_process.py). When it ends, or no sound comes from it, it is
started again, however often it takes; the system's devices are then looked at afresh, so what was unplugged is found
again, and a reply goes on where it stopped. Whoever reads gets frames, or is told why there are none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from ...errors import AudioDeviceError
from .audio_child import COMMAND, AudioChild
from .frames import FRAME_SAMPLES
from .wire import (
    MICROPHONE_RATE_HZ,
    NOTHING_PLAYED,
    SPEAKER_RATE_HZ,
    DeviceChoice,
    DeviceState,
    Drop,
    Failed,
    Finish,
    FromAudio,
    Heard,
    Hold,
    Play,
    Played,
    Progress,
    Resume,
    ToAudio,
)

__all__ = [
    "MICROPHONE_RATE_HZ",
    "SPEAKER_RATE_HZ",
    "DeviceChoice",
    "DeviceState",
    "Heard",
    "Played",
    "SoundDevice",
]

Float32 = npt.NDArray[np.float32]

_TICK_S = 0.1
_QUIET_TICKS = 7  # so long without a frame, and the audio process does not work
_BEGIN_TICKS = 100  # it may take longer to begin: Python starts, devices are opened
_PAUSES_S = (0.0, 0.25, 0.5, 1.0, 1.5)  # before it is started again; the last one for good
_WORKED_FRAMES = 30  # about a second: then a failure is a new one
_KEPT_FRAMES = 60 * MICROPHONE_RATE_HZ // FRAME_SAMPLES  # a minute
_KEPT_REPLIES = 8  # of which it is known how far they got


@dataclass
class _Reply:
    """The reply that is being played, kept so that another audio process can go on with it."""

    number: int
    pieces: list[Float32] = field(default_factory=list)
    finished: bool = False
    """No more will come."""
    dropped: bool = False
    before: Played = NOTHING_PLAYED
    """What audio processes that are gone have played of it."""


class SoundDevice:
    """The devices, as long as they are needed."""

    def __init__(self, choice: DeviceChoice, *, command: Sequence[str] = COMMAND) -> None:
        """`command` starts the audio process."""
        self._choice = choice
        self._command = command
        self._changed = threading.Condition()
        # All that follows is read and changed with that lock.
        self._states: deque[DeviceState] = deque()
        self._frames: deque[Heard] = deque(maxlen=_KEPT_FRAMES)
        self._state: DeviceState | None = None
        self._trouble: str | None = None
        self._child: AudioChild | None = None
        self._children = 0
        self._reply = _Reply(-1, finished=True, dropped=True)
        self._played: dict[int, Played] = {}
        self._held = False
        self._closing = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="sound device", daemon=True)

    def start(self) -> None:
        """Begin, and wait until sound comes. Raises `AudioDeviceError` when a device is missing or does not work."""
        self._supervisor.start()
        with self._changed:
            self._changed.wait_for(lambda: self._state is not None)
            assert self._state is not None
            trouble = None if self._state.working else self._trouble or self._state.trouble
        if trouble is not None:
            self.close()
            raise AudioDeviceError(trouble)

    def read(self, timeout_s: float) -> Heard | DeviceState | None:
        """The next frame, or first what is new about the devices; None when neither comes within `timeout_s`.

        A minute of frames waits to be read; then the oldest are forgotten.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._states or self._frames, timeout_s)
            if self._states:
                return self._states.popleft()
            return self._frames.popleft() if self._frames else None

    def play(self, reply: int, samples: Float32) -> None:
        """Play `(n,)` at 24 kHz behind what is there of this reply; a higher number drops what is left of another.

        What comes for an earlier reply, for a finished one or for one that was dropped is ignored.
        """
        with self._changed:
            if not self._begin(reply):
                return
            piece = np.array(samples, np.float32)
            self._reply.pieces.append(piece)
            self._send(Play(reply, piece))

    def finish(self, reply: int) -> None:
        """No more sound will come for this reply: when it has run dry, it is at its end."""
        with self._changed:
            if self._begin(reply):
                self._reply.finished = True
                self._send(Finish(reply))

    def hold(self) -> None:
        """Fall silent at once and keep what was not played."""
        with self._changed:
            self._held = True
            self._send(Hold())

    def resume(self) -> None:
        """Go on after `hold`."""
        with self._changed:
            self._held = False
            self._send(Resume())

    def drop(self) -> None:
        """Fall silent at once and forget what was not played."""
        with self._changed:
            self._held = False
            self._reply.pieces.clear()
            self._reply.finished = self._reply.dropped = True
            self._send(Drop())

    def played(self, reply: int) -> Played:
        """How far a reply has got: what has left the speaker, at most some 20 ms ago. Only the latest few are known."""
        with self._changed:
            return self._played.get(reply, NOTHING_PLAYED)

    def close(self) -> None:
        """End the audio process; takes some seconds at most, whatever the devices do."""
        self._closing.set()
        if self._supervisor.is_alive():
            self._supervisor.join()

    def _begin(self, reply: int) -> bool:
        """Make this the reply that is played, if it is a later one; returns whether it is now, and still open."""
        if reply > self._reply.number:
            self._reply = _Reply(reply)
            self._played[reply] = NOTHING_PLAYED
            while len(self._played) > _KEPT_REPLIES:
                del self._played[next(iter(self._played))]
        return reply == self._reply.number and not self._reply.finished

    def _send(self, message: ToAudio) -> None:
        if self._child is not None:
            self._child.send(message)

    def _receive(self, child: int, message: FromAudio) -> None:
        """Take what an audio process sends, by its number; called in its reader's thread."""
        with self._changed:
            if child != self._children:  # an earlier one: it was given up
                return
            match message:
                case Heard():
                    self._frames.append(message)
                    self._changed.notify_all()
                case DeviceState():
                    self._tell(message)
                case Progress(reply, played):
                    if reply == self._reply.number:
                        self._played[reply] = _sum(self._reply.before, played)
                case Failed(trouble):
                    self._trouble = trouble

    def _tell(self, state: DeviceState) -> None:
        if state != self._state:
            self._state = state
            self._states.append(state)
            self._changed.notify_all()

    def _supervise(self) -> None:
        """Have an audio process at work until `close`; runs in a thread of its own."""
        failures = 0
        while not self._closing.is_set():
            trouble, worked = self._use_child()
            if self._closing.is_set():
                return
            failures = 0 if worked else failures + 1
            with self._changed:
                self._trouble = trouble
                self._tell(DeviceState(False, None, None, f"{trouble}; trying again"))
            self._closing.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])

    def _use_child(self) -> tuple[str, bool]:
        """Start an audio process and stay with it until it ends: why it did, and whether it worked at all."""
        with self._changed:
            self._children += 1
            self._trouble = None
            number = self._children
        try:
            child = AudioChild(self._command, partial(self._receive, number))
        except OSError as error:
            return f"the audio process cannot be started: {error}", False
        try:
            with self._changed:
                self._child = child
                self._brief()
            return self._watch(child), child.frames >= _WORKED_FRAMES
        finally:
            with self._changed:
                self._child = None
                self._children += 1
                self._reply.before = self._played.get(self._reply.number, NOTHING_PLAYED)
            child.end()

    def _brief(self) -> None:
        """Tell a new audio process all it has to know."""
        self._send(self._choice)
        reply = self._reply
        if self._held:
            self._send(Hold())
        if not reply.dropped and not reply.before.finished:
            rest = np.concatenate([np.zeros(0, np.float32), *reply.pieces])[reply.before.samples :]
            self._send(Play(reply.number, rest))
            if reply.finished:
                self._send(Finish(reply.number))

    def _watch(self, child: AudioChild) -> str:
        """Wait until an audio process ends or sends no frames any more, and return why."""
        frames = quiet_ticks = 0
        while not self._closing.is_set():
            if child.ended.wait(_TICK_S):
                return self._trouble or f"the audio process ended: {child.last_words()}"
            # By ticks, not by the clock: where the whole computer slept, nobody was too late.
            quiet_ticks = quiet_ticks + 1 if child.frames == frames else 0
            frames = child.frames
            if quiet_ticks >= (_QUIET_TICKS if frames else _BEGIN_TICKS):
                return self._trouble or "the audio process does not answer"
        return "closed"


def _sum(before: Played, now: Played) -> Played:
    """How far a reply has got that went on in another audio process."""
    return Played(
        before.samples + now.samples,
        finished=now.finished,
        first_sample_s=now.first_sample_s if before.first_sample_s is None else before.first_sample_s,
        underruns=before.underruns + now.underruns,
    )
