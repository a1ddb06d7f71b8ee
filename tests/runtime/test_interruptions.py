"""A thousand interruptions, at any moment, of any kind, with anything after: nothing hangs, leaks or is made up."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.runtime.conversation import Conversation
from nearfield.runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from nearfield.runtime.history import History
from nearfield.runtime.mel import audio_tokens
from nearfield.runtime.messages import Text
from nearfield.runtime.ode import Solver
from nearfield.runtime.omni import Omni
from nearfield.runtime.reading import Reader
from nearfield.runtime.tokenizer import Entry
from nearfield.runtime.turns import Turns
from sounds import sound
from tolerances import CONVERSATION, relative_error

SPOKEN: npt.NDArray[np.float32] = sound("noise", 40_000, 3)
CONTEXT = 400
SYSTEM = "Be brief."
STAGES = 3
"""Of a reply, and so the threads that a bundle keeps."""


class Model:
    """What the conversation ought to remember, kept by hand."""

    def __init__(self, omni: Omni) -> None:
        self._turns = Turns(omni.parts.tokenizer, SYSTEM)
        self._audio = omni.bundle.manifest.tokens.audio
        self.turns: list[list[int]] = []  # token ids of each that is over
        self._entries: list[Entry] = []
        self._samples = 0

    def listen(self, samples: int) -> None:
        if not self._samples:
            self._entries.append({"type": "audio"})
        self._samples += samples

    def attach(self, text: str) -> None:
        self._entries.append({"type": "text", "text": text})

    def question(self) -> list[int]:
        ids: list[int] = []
        for token in self._turns.user_ids(self._entries):
            count = audio_tokens(-(-self._samples // 160)) if token == self._audio else 1
            ids += [token] * count
        return ids

    def answered(self, reply: list[int]) -> None:
        self.turns.append(self.question() + reply)
        self._entries, self._samples = [], 0

    def check(self, history: History) -> None:
        """The instructions, and the last turns, each whole."""
        found = history.token_ids.tolist()
        closed = [ids + self._turns.closing_ids for ids in self.turns[-30:-1]] + self.turns[-1:]
        for first in range(len(closed) + 1):
            if found == sum(closed[first:], list(self._turns.system_ids)):
                return
        raise AssertionError(f"the history is none of what was said: {found}")


def ask(conversation: Conversation, model: Model, rng: random.Random) -> None:
    """Say something, of any length, by voice or in writing."""
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.6:
            samples = SPOKEN[: rng.choice([1_000, 5_000, 31_000, 36_000])]
            model.listen(len(samples))
            for piece in np.array_split(samples, rng.randint(1, 3)):
                conversation.listen(piece)
        else:
            text = rng.choice(["Well?", "And now, tell me more.", "No."])
            model.attach(text)
            conversation.attach(Text(text))


def interrupted(conversation: Conversation, rng: random.Random) -> tuple[str, list[str], list[int]]:
    """Answer, and be interrupted: what was heard of it, and the reply's texts and tokens as far as they came."""
    events = conversation.respond()
    reply = conversation._reply
    assert reply is not None
    played = rng.choice([0, 0, 500, 8_000, 20_000, 100_000])
    heard: list[str] = []

    def interrupt() -> None:
        heard.append(conversation.interrupt(played))

    if rng.random() < 0.3:  # by another thread, at any moment
        timer = threading.Timer(rng.random() * 0.03, interrupt)
        timer.start()
        taken = list(events)
        timer.join()
    else:  # after so many events; after the last, it is over and was still being played
        most, taken = rng.choice([0, 1, 3, 8, 1000]), list[Event]()
        while len(taken) < most and (event := next(events, None)) is not None:
            taken.append(event)
        interrupt()
        taken += events
    assert isinstance(taken[-1], TurnEnd)
    assert all(isinstance(event, TextDelta | AudioChunk) for event in taken[:-1])
    return heard[0], reply.texts, reply.tokens


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_interrupted_is_remembered_as_it_was_heard(bundle_3b: Path, seed: int) -> None:
    rng = random.Random(seed)
    omni, other = (Omni.load(bundle_3b, context=CONTEXT, threads=1) for _ in range(2))
    omni.parts.token2wav._solver = Solver("euler", 3)  # what the sound is like plays no part here
    conversation = omni.conversation(system=SYSTEM, seed=seed, max_tokens=10, max_codes=40)
    model, threads, taken_back = Model(omni), threading.active_count(), 0
    for turn in range(250):
        ask(conversation, model, rng)
        heard, texts, tokens = interrupted(conversation, rng)
        if not heard:
            taken_back += 1
            if len(model.question()) < 120:  # the question goes on
                continue
            last = conversation.respond()
            end = list(last)[-1]
            assert isinstance(end, TurnEnd)
            reply = conversation._reply
            assert reply is not None
            heard, texts, tokens = "".join(reply.texts), reply.texts, reply.tokens
            assert conversation._answer.kept == len(tokens)
        kept = conversation._answer.kept
        assert kept is not None
        assert "".join(texts[:kept]) == heard
        model.answered(tokens[:kept])
        model.check(conversation.history)
        if turn % 25 == 0:
            read_afresh(omni, other, conversation)
        assert threading.active_count() <= threads + STAGES
    assert 20 < taken_back < 230
    assert len(model.turns) > 20
    conversation.close()
    assert threading.active_count() <= threads + STAGES


def read_afresh(omni: Omni, other: Omni, conversation: Conversation) -> None:
    """What the caches hold is what they would hold if the history had been read at once."""
    conversation._settle_down()
    conversation._reader.catch_up(conversation.history)
    last = conversation.history.token_ids[-1]
    Reader(other.parts.thinker, other.parts.talker).catch_up(conversation.history)
    assert omni.parts.thinker.decoder.length == other.parts.thinker.decoder.length == len(conversation.history)
    assert omni.parts.talker.prompt_length == other.parts.talker.prompt_length
    omni.parts.thinker.truncate(len(conversation.history) - 1)
    other.parts.thinker.truncate(len(conversation.history) - 1)
    rows = [
        each.parts.thinker.prefill(
            each.parts.thinker.embed([last]), np.full((3, 1), conversation.history.next_position - 1)
        )
        for each in (omni, other)
    ]
    assert relative_error(*rows) <= CONVERSATION
    assert relative_error(omni.parts.thinker.logits, other.parts.thinker.logits) <= CONVERSATION
