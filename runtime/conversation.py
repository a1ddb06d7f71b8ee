"""A conversation that listens while you speak, speaks while it thinks, and remembers what was heard.

    conversation = omni.conversation()
    conversation.listen(samples)            # as they come from the microphone
    for event in conversation.respond():    # TextDelta, AudioChunk, TurnEnd
        ...
    conversation.interrupt(played_samples)  # at any time, from any thread

What is said and shown is encoded and read by the Thinker and the Talker as it comes, and the next turn goes on in the
same caches. Nothing is lost by answering too early: a reply of which no word was heard is taken back by `interrupt`,
and the question goes on as if nobody had tried to answer it.

Where the model's context ends the oldest turns leave, and the instructions stay. What remains is then read anew, which
takes time: it is done between two turns, once three quarters are full, until half is free.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..errors import AudioError, ContextLimitError, InputError
from .bundle import LoadedVoice
from .events import AudioChunk, Event, TurnEnd
from .heard import UNITS_PER_SECOND, spoken_units, tokens_heard
from .history import History, Piece
from .manifest import Manifest
from .messages import Part
from .parts import Parts
from .pipeline import Pipeline
from .question import Question, Senses
from .reading import Reader
from .reply import Clock, Manner, Reply, check_whole_number
from .turns import Turns

TRANSCRIBE = "Write down what you hear."
_TIDY_ABOVE, _TIDY_TO = 0.75, 0.5
_REPLY_SHARE = 1 / 8
"""Of the context: how much is kept free for a reply."""
_ENOUGH_UNITS = 30.0
"""A reply as long as "I am fine, thank you." tells how fast the voice speaks."""


@dataclass
class _Answer:
    """The reply to a question, and where it stands in the history."""

    asked: int
    """Positions before what was only read for the reply."""
    opened: int | None = None
    """How many were read for it; None while they are not."""
    kept: int | None = None
    """How many of its tokens are in the history; None while it is not decided."""
    taken_samples: int = 0
    """How much of its sound was taken."""


class Conversation:
    """One conversation with a loaded bundle, which has one at a time."""

    def __init__(
        self,
        parts: Parts,
        settings: Manifest,
        manner: Manner,
        *,
        system: str,
        seeds: np.random.SeedSequence,
        clock: Clock = time.perf_counter,
    ) -> None:
        """`Omni.conversation` makes one. Raises `BundleError` for a chat template that cannot be fed piece by piece."""
        self._parts, self._settings, self._manner, self._clock = parts, settings, manner, clock
        self._seeds = seeds
        self._senses = Senses(Turns(parts.tokenizer, system), parts.audio_encoder, parts.vision_encoder, settings)
        self._lock = threading.RLock()
        self._closed = False
        self._context = parts.thinker.decoder.context
        self._history = History()
        self._reader = Reader(parts.thinker, None if manner.voice is None else parts.talker)
        self._history.append(Piece.of_text(self._senses.turns.system_ids, 0, turn=0))
        self._question = Question(self._senses, turn=1)
        self._make_room(0)
        self._reader.catch_up(self._history)
        self._reply: Reply | None = None  # to the question; None until respond()
        self._answer = _Answer(0)
        self._tidying: Pipeline | None = None
        self._units_per_second = UNITS_PER_SECOND

    @property
    def history(self) -> History:
        """What the model remembers. Of an open question it has all that can no longer change."""
        return self._history

    def listen(self, samples: npt.NDArray[np.float32]) -> None:
        """Add sound `float32 (n,)`, 16 kHz, to the question. A reply that is being made ends, as if it had been
        interrupted after all that was taken of it.

        Raises `AudioError` for another kind of array; `ContextLimitError` when the question is longer than the context,
        and then it is dropped.
        """
        _check_sound(samples)
        with self._lock:
            question = self._open_question()
            blocks = question.listen(samples)
            if blocks:
                self._add(question.settled)
            for embeddings in blocks:
                self._add(functools.partial(question.heard, embeddings))
                self._reader.catch_up(self._history)

    def attach(self, part: Part) -> None:
        """Add a picture, a video, a clip or text to the question, behind what is in it. Otherwise as `listen`.

        Raises `AudioError` or `ImageError` for a part that cannot be used, and `ContextLimitError`.
        """
        if not isinstance(part, Part):
            raise InputError(f"a question holds Text, Audio, Image and Video, found {type(part).__name__}")
        with self._lock:
            question = self._open_question()
            question.attach(part)
            self._add(question.settled)
            self._reader.catch_up(self._history)

    def respond(self) -> Iterator[Event]:
        """Answer the question. Work begins at once; the events are to be taken as they come.

        Raises `InputError` when nothing was asked, and `ContextLimitError`. Taking an event raises what went wrong.
        """
        with self._lock:
            question = self._open_question()
            if question.empty:
                raise InputError("nothing was asked: listen() or attach() something, then respond()")
            self._make_room(question.remaining_positions())
            answer = self._answer = _Answer(len(self._history))

            def read(check: Callable[[], None]) -> History:
                for piece in question.rest(self._history.next_position):
                    self._history.append(piece)
                self._reader.catch_up(self._history, check)
                answer.opened = len(self._history) - answer.asked
                return self._history

            (seed,) = self._seeds.spawn(1)
            self._reply = Reply(self._parts, self._settings, self._manner, seed, read, self._clock)
            return self._events(self._reply, answer)

    def interrupt(self, played_samples: int) -> str:
        """End the reply and forget what was not heard of it; returns what was, in whole words.

        `played_samples` are those of the reply's sound that came out of the speaker. When no word was heard, the
        question is open again: what is said next belongs to it. Of a silent reply all that was written counts. Without
        a reply nothing happens.
        """
        check_whole_number("played_samples", played_samples, 0)
        with self._lock:
            self._check_open()
            self._settle_down(at_once=True)
            return self._interrupt(played_samples)

    def use_voice(self, voice: LoadedVoice) -> None:
        """Speak in another voice from the next reply on. Raises `InputError` in a conversation that is not spoken."""
        if self._manner.voice is None:
            raise InputError("this conversation is silent: begin one with speak=True to choose its voice")
        self._manner = replace(self._manner, voice=voice)

    def transcript(self, instruction: str = TRANSCRIBE, max_tokens: int = 256) -> str:
        """What the model heard in the last question, by its own account; "" of a question without sound.

        Call it when the reply was made to its end or interrupted, and before the next question: the caches are cut to
        the question, the instruction is read behind it, and what is written then is forgotten again. The reply is read
        anew in the background, so the next turn waits for no more than that.
        Raises `InputError` when no question was answered, and `ContextLimitError`.
        """
        check_whole_number("max_tokens", max_tokens, 1)
        with self._lock:
            self._check_open()
            answer = self._answer
            if self._reply is None or answer.kept is None or answer.opened is None:
                raise InputError("transcript() tells what was heard in a question that was answered; there is none yet")
            if not self._question.has_sound:
                return ""
            self._settle_down(at_once=True)
            asked = len(self._history) - answer.kept - answer.opened
            branch = self._history.until(asked)
            for piece in self._question.asking(instruction).rest(branch.next_position):
                branch.append(piece)
            try:
                self._reader.cut(asked)
                self._reader.catch_up(branch)
                return self._parts.tokenizer.decode(self._parts.thinker.write(max_tokens)).strip()
            finally:
                self._reader.cut(asked)
                self._read_in_the_background()

    def close(self) -> None:
        """End the conversation: what is being made stops, and no method works any more."""
        with self._lock:
            self._settle_down(at_once=True)
            if self._reply is not None:
                self._reply.stop()
            self._closed = True

    def _events(self, reply: Reply, answer: _Answer) -> Iterator[Event]:
        """The reply's events; whoever stops taking them stops the reply."""
        try:
            for event in reply:
                if isinstance(event, AudioChunk):
                    answer.taken_samples += len(event.samples)
                if isinstance(event, TurnEnd):
                    self._finish(reply, event)
                yield event
        finally:
            if not reply.complete:
                reply.stop()

    def _finish(self, reply: Reply, end: TurnEnd) -> None:
        """Remember a reply that was made to its end, as long as nobody interrupted it; then make room for more."""
        with self._lock:
            if self._reply is not reply or self._answer.kept is not None or not reply.complete or self._closed:
                return
            self._keep(reply, len(reply.tokens))
            units = spoken_units(end.text)
            if end.speech_stop_reason == "end" and units >= _ENOUGH_UNITS:
                self._units_per_second = units / end.timing.audio_seconds
            if len(self._history) > _TIDY_ABOVE * self._context:
                self._forget_down_to(int(_TIDY_TO * self._context))
            self._read_in_the_background()

    def _read_in_the_background(self) -> None:
        """Feed the caches what they lack of the history, but for a last token that was never read back."""
        if self._reader.length < len(self._history) - 1 < self._context:
            self._tidying = Pipeline(self._parts.workers)
            check = self._tidying.check
            self._tidying.start(lambda: self._reader.catch_up(self._history, check))

    def _settle_down(self, *, at_once: bool = False) -> None:
        """Wait until nothing is read any more; `at_once` leaves the rest for later."""
        tidying, self._tidying = self._tidying, None
        if tidying is not None:
            tidying.stop() if at_once else tidying.join()
            tidying.raise_error()

    def _open_question(self) -> Question:
        """The question that is being asked; after a reply, a new one."""
        self._check_open()
        self._settle_down()
        reply, answer = self._reply, self._answer
        if reply is not None and answer.kept is None:
            if reply.complete:
                self._keep(reply, len(reply.tokens))
            else:
                self._interrupt(answer.taken_samples)
        if self._reply is not None:
            turn = self._question.turn
            closing = self._senses.turns.closing_ids
            self._history.append(Piece.of_text(closing, self._history.next_position, turn))
            self._question, self._reply = Question(self._senses, turn + 1), None
            self._make_room(0)
        return self._question

    def _interrupt(self, played_samples: int) -> str:
        reply, answer = self._reply, self._answer
        if reply is None:
            return ""
        reply.stop()
        heard = 0 if answer.opened is None else self._tokens_heard(reply, played_samples)
        if heard:
            self._keep(reply, heard)
            return "".join(reply.texts[:heard])
        self._cut(len(self._history) - (answer.kept or 0) - answer.opened if answer.opened else answer.asked)
        self._reply = None
        return ""

    def _tokens_heard(self, reply: Reply, played_samples: int) -> int:
        """How many of a reply's tokens were heard; of one spoken to its end the speed is known."""
        if self._manner.voice is None:
            return len(reply.tokens)
        rate = self._settings.token2wav.sample_rate_hz
        units_per_second = self._units_per_second
        if reply.complete:
            if played_samples >= reply.samples:
                return len(reply.tokens)
            units_per_second = spoken_units("".join(reply.texts)) / (reply.samples / rate)
        return tokens_heard(reply.texts, played_samples / rate, units_per_second)

    def _keep(self, reply: Reply, count: int) -> None:
        """Remember the first `count` tokens of a reply; fewer than before, if it was remembered already."""
        answer = self._answer
        start = len(self._history) - (answer.kept or 0)
        self._history.cut(start)
        self._reader.cut(start + count)
        if answer.kept is None:
            self._reader.wrote(reply.rows[:count], self._history.next_position)
        position = self._history.next_position
        self._history.append(Piece.of_text(reply.tokens[:count], position, self._question.turn))
        answer.kept = count

    def _cut(self, length: int) -> None:
        self._history.cut(length)
        self._reader.cut(length)

    def _add(self, pieces: Callable[[int], Iterable[Piece]]) -> None:
        """Add to the history what `pieces` makes from a position on."""
        made = list(pieces(self._history.next_position))
        moved = self._make_room(sum(map(len, made)))
        for piece in made:
            self._history.append(piece.moved(moved))

    def _make_room(self, count: int) -> int:
        """Let turns leave until `count` positions and a reply fit; returns by how far position ids fell.

        Raises `ContextLimitError` when they do not fit even then, and drops the question.
        """
        before = self._history.next_position
        if len(self._history) + count > (1 - _REPLY_SHARE) * self._context:
            self._forget_down_to(int((1 - _REPLY_SHARE) * self._context) - count)
        if (needed := len(self._history) + count + 1) > self._context:
            self._drop_question()
            raise ContextLimitError(
                f"the instructions and this question alone take {needed} positions, the context holds {self._context}; "
                "the question was dropped: ask a shorter one (sound, image sizes, video), or load the bundle with a "
                "larger context"
            )
        return before - self._history.next_position

    def _forget_down_to(self, length: int) -> None:
        """Let the oldest turns leave, never the current one, until at most `length` positions are left."""
        current = self._question.turn
        for turn in self._history.turns:
            if len(self._history) <= length or turn == current:
                break
            self._reader.cut(self._history.forget(turn))

    def _drop_question(self) -> None:
        turn = self._question.turn
        if turn in self._history.turns:
            self._cut(self._history.forget(turn))
        self._question = Question(self._senses, turn)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("this conversation is over: another was begun with the same bundle, or it was closed")


def _check_sound(samples: object) -> None:
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
        found = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples).__name__
        raise AudioError(f"listen takes float32 (n,) at 16 kHz, found {found}; audio.from_array converts it")
    if not np.isfinite(samples).all():
        raise AudioError("the sound holds values that are not finite (NaN or infinity); check the microphone")
