"""How far the stages of a reply run ahead of each other, and that the reply does not depend on it."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import nearfield.runtime.reply
import numpy as np
import pytest
from nearfield.runtime.decoder import Float32
from nearfield.runtime.events import AudioChunk, Event, TextDelta
from nearfield.runtime.messages import Message, Text
from nearfield.runtime.omni import Omni
from nearfield.runtime.reply import _ROWS
from nearfield.runtime.talker import Talker
from nearfield.runtime.thinker import Thinker

QUESTION = [Message("user", [Text("Well?")])]
LIMITS: dict[str, Any] = {"max_tokens": 40, "max_codes": 60, "seed": 1}
WAIT_S, LONGER_S = 10.0, 0.02
"""More than a step can take; and more than it takes, to see whether there is another."""


@pytest.fixture(scope="module")
def omni(bundle_3b: Path) -> Omni:
    return Omni.load(bundle_3b, context=256, threads=1)


class Counted(Thinker):
    """A Thinker that tells how many tokens it has read back."""

    def __init__(self, inner: Thinker) -> None:
        self.__dict__.update(inner.__dict__)
        self.changed, self.count = threading.Condition(), 0

    def step(self, token_id: int) -> Float32:
        row = super().step(token_id)
        with self.changed:
            self.count += 1
            self.changed.notify_all()
        return row


class Waiting(Talker):
    """A Talker that makes a code only when the Thinker has gone as far ahead as it will."""

    def __init__(self, inner: Talker, thinker: Counted, most: int) -> None:
        self.__dict__.update(inner.__dict__)
        self._thinker, self._most = thinker, most
        self.seen: list[int] = []

    def step(self) -> int | None:
        thinker, expected = self._thinker, min(len(self.seen) + 1 + _ROWS + 1, self._most)
        with thinker.changed:
            thinker.changed.wait_for(lambda: thinker.count >= expected, WAIT_S)
            thinker.changed.wait_for(lambda: thinker.count > expected, LONGER_S)
        self.seen.append(thinker.count)
        return super().step()


def test_the_thinker_runs_ahead_of_the_talker_by_so_many_tokens_and_no_more(omni: Omni) -> None:
    read_back = LIMITS["max_tokens"] - 1
    thinker = Counted(omni.parts.thinker)
    talker = Waiting(omni.parts.talker, thinker, read_back)
    list(Omni(omni.bundle, replace(omni.parts, thinker=thinker, talker=talker)).respond(QUESTION, **LIMITS))
    # Of the n-th code: its own row, those that wait, and one for which there is no room yet.
    assert talker.seen == [min(code + _ROWS + 1, read_back) for code in range(1, LIMITS["max_codes"] + 1)]


@pytest.mark.parametrize("rows", [1, 1000])
def test_a_reply_is_the_same_however_far_that_is(omni: Omni, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(omni.respond(QUESTION, **LIMITS))
    monkeypatch.setattr(nearfield.runtime.reply, "_ROWS", rows)
    found = list(omni.respond(QUESTION, **LIMITS))
    assert tokens_of(found) == tokens_of(expected)
    np.testing.assert_array_equal(samples_of(found), samples_of(expected))
    assert len(samples_of(found))


def tokens_of(events: list[Event]) -> list[int | None]:
    return [event.token_id for event in events if isinstance(event, TextDelta)]


def samples_of(events: list[Event]) -> Float32:
    return np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
