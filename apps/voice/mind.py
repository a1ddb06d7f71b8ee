"""What was decided is carried out on the conversation, in order; and what it replies, as it comes about.

Inputs: sound of a question, pictures, when to answer, what became of a reply → effects: `Conversation` is called,
replies get their text and sound, finished turns go to the store, notices are told.

Two threads. The *mind* alone calls the conversation, but for its events, which the *mouth* takes: so a reply can be
stopped while it is made. Every method returns at once.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...errors import NearfieldError
from ...runtime.bundle import LoadedVoice
from ...runtime.conversation import Conversation
from ...runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from ...runtime.messages import Image
from .frames import RATE_HZ
from .notices import HeardText, Notice, ReplyText, Trouble, TurnDone
from .spoken_reply import SpokenReply
from .store import Turn

Float32 = npt.NDArray[np.float32]


class Listener(Protocol):
    """Who is told what comes of it; called from the mind's own threads."""

    def told(self, notice: Notice) -> None:
        """Something to be shown."""
        ...

    def reply_sounds(self) -> None:
        """The reply's first sound went to the speaker."""
        ...

    def reply_failed(self) -> None:
        """There will be no more of the reply."""
        ...

    def question_failed(self) -> None:
        """What was said cannot be used."""
        ...

    def broken(self, error: BaseException) -> None:
        """Nothing will be done any more."""
        ...


@dataclass
class _Question:
    """What is being asked."""

    turn: int
    sound: list[Float32] = field(default_factory=list)
    picture: bytes | None = None
    heard_text: str | None = None


class Mind:
    """A conversation and its replies."""

    def __init__(self, conversation: Conversation, keep: Callable[[Turn], None], listener: Listener) -> None:
        """`keep` is given every turn that is over; when it raises `NearfieldError` the conversation goes on."""
        self._conversation, self._store, self._listener = conversation, keep, listener
        self.transcribe = False
        """Whether the model is to write down, after each reply, what it heard."""
        self._pictures: queue.SimpleQueue[tuple[bytes, Image]] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._made: queue.SimpleQueue[tuple[SpokenReply, Iterator[Event]] | None] = queue.SimpleQueue()
        self._numbers = itertools.count(1)
        self._question: _Question | None = None  # from its first sound until it was answered
        self._closed = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(loop,), name=f"nearfield {name}", daemon=True)
            for name, loop in (("mind", self._think), ("mouth", self._speak))
        ]
        for thread in self._threads:
            thread.start()

    def hear(self, samples: Float32) -> None:
        """More sound `(n,)`, 16 kHz, of the question."""
        self._work.put(lambda: self._hear(samples))

    def attach(self, file: bytes, picture: Image) -> None:
        """A picture for the next question, and the file it is from."""
        self._pictures.put((file, picture))

    def answer(self, reply: SpokenReply) -> None:
        """Begin the reply to the question as it is."""
        self._work.put(lambda: self._answer(reply))

    def take_back(self) -> None:
        """The question goes on; of the reply nothing was heard."""
        self._work.put(self._take_back)

    def interrupted(self, reply: SpokenReply) -> None:
        """Of the reply, which has ended, only what was played counts."""
        self._work.put(lambda: self._interrupted(reply))

    def done(self, reply: SpokenReply) -> None:
        """All of the reply was heard, or it failed."""
        self._work.put(lambda: self._done(reply))

    def use_voice(self, voice: LoadedVoice) -> None:
        """Speak in another voice from the next reply on."""
        self._work.put(lambda: self._conversation.use_voice(voice))

    def ask_what_was_heard(self, reply: SpokenReply) -> None:
        """Have it written down, if that is wished and this is the time: while the reply is played nothing else is to be
        done.
        """
        if self.transcribe and reply.to_be_written_down():
            self._work.put(lambda: self._write_down(reply))

    def show(self, reply: SpokenReply) -> None:
        """Tell the text so far, if it may be said already."""
        if reply.decided and not reply.ended and reply.text:
            self._listener.told(ReplyText(reply.turn, reply.text))

    def close(self) -> None:
        """Stop what is being made and what was still to be done; returns when nothing is done any more."""
        self._closed = True
        self._conversation.close()
        self._work.put(None)
        self._made.put(None)
        for thread in self._threads:
            thread.join()

    def _think(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except NearfieldError as error:
                if not self._closed:  # a conversation that is closed in the midst of something says so
                    self._listener.told(Trouble(str(error)))
                    self._listener.question_failed()

    def _hear(self, samples: Float32) -> None:
        question = self._question = self._question or _Question(next(self._numbers))
        try:
            while not self._pictures.empty():
                question.picture, picture = self._pictures.get()
                self._conversation.attach(picture)
            self._conversation.listen(samples)
        except NearfieldError:
            self._question = None  # the conversation dropped it too
            raise
        question.sound.append(samples)

    def _answer(self, reply: SpokenReply) -> None:
        if not reply.ended and self._question is not None:
            reply.turn = self._question.turn
            self._made.put((reply, self._conversation.respond()))

    def _take_back(self) -> None:
        self._conversation.interrupt(0)

    def _interrupted(self, reply: SpokenReply) -> None:
        heard = self._conversation.interrupt(reply.played.samples)
        self._listener.told(ReplyText(reply.turn, heard))
        if heard:  # of nothing, the question is open again
            self._keep(reply, heard, interrupted=True)

    def _done(self, reply: SpokenReply) -> None:
        if reply.made is not None:
            self._keep(reply, reply.text, interrupted=False)

    def _write_down(self, reply: SpokenReply) -> None:
        if self._question is not None and not reply.ended:
            self._question.heard_text = self._conversation.transcript()
            self._listener.told(HeardText(reply.turn, self._question.heard_text))

    def _keep(self, reply: SpokenReply, heard: str, *, interrupted: bool) -> None:
        """The turn is over."""
        question, self._question = self._question, None
        if question is None:
            return
        sound, latency = np.concatenate(question.sound), reply.latency()
        timing = {**asdict(latency), "underruns": float(reply.played.underruns)}
        try:
            self._store(
                Turn(
                    sound, question.heard_text, question.picture, reply.text, heard, interrupted, reply.sound_heard(),
                    timing,
                )
            )  # fmt: skip
        except NearfieldError as error:
            self._listener.told(Trouble(str(error)))
        self._listener.told(TurnDone(question.turn, len(sound) / RATE_HZ, heard, interrupted, latency))

    def _speak(self) -> None:
        while (made := self._made.get()) is not None:
            reply, events = made
            try:
                for event in events:
                    self._say(reply, event)
            except NearfieldError as error:
                if not self._closed and not reply.ended:
                    self._listener.told(Trouble(str(error)))
                    self._listener.reply_failed()

    def _say(self, reply: SpokenReply, event: Event) -> None:
        match event:
            case TextDelta(text=text):
                reply.write(text)
                self.show(reply)
            case AudioChunk(samples=samples):
                if reply.say(samples):
                    self._listener.reply_sounds()
            case TurnEnd() if not reply.ended:
                reply.finish(event)
                self.ask_what_was_heard(reply)

    def _guarded(self, loop: Callable[[], None]) -> None:
        try:
            loop()
        except BaseException as error:  # noqa: BLE001  # a thread has nobody to raise it to
            self._listener.broken(error)
