"""A spoken conversation: what the microphone hears becomes turns, the model answers, the speaker says it.

    SoundDevice ─▶ VoiceActivity ─▶ TurnTaking ─┬─▶ SoundDevice: hold, resume, drop
                                                └─▶ Mind: hear, answer, interrupted ─▶ SpokenReply ─▶ SoundDevice

The *ear*, a thread of its own, decides who has the word and never waits for the model: an interruption is silence at
once, however busy the model is. Whoever shows all this takes `notice`s.
"""

from __future__ import annotations

import itertools
import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...runtime.images import read_image
from ...runtime.messages import SYSTEM_PROMPT, Image
from ...runtime.omni import Omni
from .activity import VoiceActivity
from .mind import Mind
from .notices import DeviceNotice, Level, Notice, StateChanged
from .patience import Patience
from .saving import save_conversation
from .sound_device import DeviceState, Heard, SoundDevice
from .spoken_reply import SpokenReply
from .store import ConversationStore, Turn
from .turn_taking import (
    Action,
    Answer,
    Changed,
    Hear,
    Hold,
    Interrupt,
    PushToTalk,
    Resume,
    Speak,
    State,
    TakeBack,
    TurnTaking,
)

Float32 = npt.NDArray[np.float32]

_READ_S = 0.05
_LEVEL_FRAMES = 3
"""Every tenth of a second a level is told: as often as an eye can follow."""
_UNREAD_NOTICES = 200
"""So many may wait for whoever shows them; then levels are left out."""


class Assistant:
    """One spoken conversation. Its methods are for any thread and return at once, but for `save` and `close`."""

    def __init__(
        self,
        omni: Omni,
        device: SoundDevice,
        *,
        voice: str | None = None,
        system: str = SYSTEM_PROMPT,
        patience: Patience | None = None,
        transcribe: bool = False,
        store: ConversationStore | None = None,
        complete: Callable[[Float32], float] | None = None,
        name: str | None = None,
        image_pixels: int | None = None,
        seed: int | None = None,
    ) -> None:
        """Begins at once: the device is started here, and closed by `close`. Without a `store` the conversation is kept
        in a temporary file until then, for `save`. `complete`: see `TurnTaking`. `name` is what the model is called
        where the conversation is kept; pictures are scaled down to `image_pixels`.

        Raises `AudioDeviceError` where there is no device at all, and what `Omni.conversation` raises.
        """
        self._omni, self._device, self._image_pixels = omni, device, image_pixels
        self._name = name or omni.bundle.path.name
        self._folder = None if store is not None else tempfile.TemporaryDirectory(prefix="nearfield-")
        self._store = store or ConversationStore(Path(self._folder.name if self._folder else "") / "conversation")
        voice = omni.voices[0] if voice is None else voice
        conversation = omni.conversation(voice=voice, system=system, seed=seed)
        self._activity, self._taking = VoiceActivity(), TurnTaking(patience or Patience.of("medium"), complete)
        self._notices: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[Callable[[], Sequence[Action]]] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._reply: SpokenReply | None = None  # from Answer until it was played, or is void
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        device.start()
        self._id = self._store.begin(self._name, voice)
        self._mind = Mind(conversation, self._keep, self)
        self._mind.transcribe = transcribe
        self._ear = threading.Thread(target=self._listen, name="nearfield ear", daemon=True)
        self._ear.start()

    def notice(self, timeout_s: float) -> Notice | None:
        """What happened next; None after the timeout. Raises what ended the conversation, if something did."""
        try:
            return self._notices.get(timeout=timeout_s)
        except queue.Empty:
            if self._failure is not None:
                raise self._failure from None
            return None

    def interrupt(self) -> None:
        """End the reply; what was not heard of it is forgotten."""
        self._asked.put(self._taking.interrupt)

    def mute(self, on: bool) -> None:
        """Take what the microphone hears for silence."""
        self._asked.put(lambda: self._taking.mute(on))

    def push_to_talk(self, mode: PushToTalk) -> None:
        """Hear only what is said while the key is down ("hold"), between two presses ("toggle"), or all ("off")."""
        self._asked.put(lambda: self._taking.push_to_talk(mode))

    def talk_key(self, down: bool) -> None:
        """The key for it is pressed, or let go."""
        self._asked.put(lambda: self._taking.talk_key(down))

    def voice(self, name: str) -> None:
        """Speak in another voice from the next reply on. Raises `UnknownVoiceError`."""
        self._mind.use_voice(self._omni.bundle.voice(name))

    def attach(self, path: Path) -> None:
        """Show a picture with the next question. Raises `ImageError` or `InputError` for what is none."""
        pixels = read_image(path)
        try:
            self._mind.attach(path.read_bytes(), Image(pixels, self._image_pixels))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error

    def transcribe(self, on: bool) -> None:
        """Have the model write down what it heard, while each reply is played."""
        self._mind.transcribe = on

    def save(self, folder: Path) -> list[Path]:
        """Write the conversation into a folder, as text and sound; returns the files. Raises `NearfieldError`."""
        return save_conversation(folder, self._store.turns(self._id), name=self._name)

    def close(self) -> None:
        """End the conversation. What is being said is cut off; every turn that was over is kept."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._ear.join()
        self._device.close()
        self._mind.close()
        if self._folder is not None:
            self._folder.cleanup()

    # What the mind tells.

    def told(self, notice: Notice) -> None:
        """Something to be shown."""
        if not isinstance(notice, Level) or self._notices.qsize() < _UNREAD_NOTICES:
            self._notices.put(notice)

    def reply_sounds(self) -> None:
        """The reply's first sound went to the speaker."""
        self._asked.put(self._taking.reply_sounds)

    def reply_failed(self) -> None:
        """There will be no more of the reply."""
        self._asked.put(self._taking.reply_failed)

    def question_failed(self) -> None:
        """What was said cannot be used."""
        self._asked.put(self._taking.reset)

    def broken(self, error: BaseException) -> None:
        """Nothing will be done any more: `notice` raises why."""
        self._failure = self._failure or error

    # The ear.

    def _listen(self) -> None:
        try:
            level = _Loudest()
            while not self._closing.is_set():
                self._do_what_was_asked()
                match self._device.read(_READ_S):
                    case Heard() as heard:
                        probability = self._activity.probability(heard.samples)
                        self._carry_out(self._taking.heard(heard.samples, probability), heard.captured_s)
                        if (loudest := level.of(heard.level)) is not None:
                            self.told(Level(loudest))
                    case DeviceState() as state:
                        self.told(DeviceNotice(state))
                        if not state.working:
                            self._lose_the_thread()
                if self._reply is not None and self._reply.over:
                    self._carry_out(self._taking.reply_played())
        except BaseException as error:  # noqa: BLE001  # a thread has nobody to raise it to
            self.broken(error)

    def _do_what_was_asked(self) -> None:
        while not self._asked.empty():
            self._carry_out(self._asked.get()())

    def _lose_the_thread(self) -> None:
        """No sound comes: nobody is listened to, and what comes later does not follow what came before."""
        self._activity.reset()
        if self._taking.state in (State.LISTENING, State.PAUSED):
            self._carry_out(self._taking.reset())

    def _carry_out(self, actions: Sequence[Action], captured_s: float | None = None) -> None:
        mind = self._mind
        for action in actions:
            match action:
                case Hear(samples):
                    mind.hear(samples)
                case Answer():
                    self._reply = SpokenReply(next(self._numbers), self._device)
                    mind.answer(self._reply)
                case Speak(silence_ms) if self._reply is not None:
                    self._reply.speak(silence_ms, captured_s)
                    mind.show(self._reply)
                    mind.ask_what_was_heard(self._reply)
                    if self._reply.sounds:
                        self.reply_sounds()
                case TakeBack():
                    self._end_reply(silence=True)
                    mind.take_back()
                case Hold():
                    self._device.hold()
                case Resume():
                    self._device.resume()
                case Interrupt():
                    if (reply := self._end_reply(silence=True)) is not None:
                        mind.interrupted(reply)
                case Changed(state):
                    if state is State.IDLE and self._reply is not None:  # it was played, or it failed
                        reply = self._reply
                        self._end_reply(silence=reply.made is None)
                        mind.done(reply)
                    self.told(StateChanged(state))

    def _end_reply(self, *, silence: bool) -> SpokenReply | None:
        """There is no reply any more; returns what was one."""
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.end(silence=silence)
        return reply

    def _keep(self, turn: Turn) -> None:
        self._store.add_turn(self._id, turn)


class _Loudest:
    """The loudest of every few levels."""

    def __init__(self) -> None:
        self._levels: list[float] = []

    def of(self, level: float) -> float | None:
        """Add one; the loudest of the last few, when there are as many."""
        self._levels.append(level)
        if len(self._levels) < _LEVEL_FRAMES:
            return None
        loudest, self._levels = max(self._levels), []
        return loudest
