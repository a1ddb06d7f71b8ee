"""What may never happen, whatever is said and pressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearfield.apps.voice.frames import whole_frames
from nearfield.apps.voice.patience import Eagerness, Patience
from nearfield.apps.voice.turn_taking import (
    Action,
    Answer,
    Changed,
    Float32,
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
from nearfield.errors import AudioError
from talk_frames import PATIENCE, Talk, given_frames

# -- whatever happens ----------------------------------------------------------------------------------------------


class Listener:
    """Carries out actions as the assistant would, and complains about one that has no place."""

    def __init__(self, turns: TurnTaking) -> None:
        self._turns, self._state = turns, turns.state
        self.asked = self.replying = self.spoken = self.held = False
        self._last = 0  # frame given
        self._follows = False  # whether the next must follow it without a gap

    def take(self, actions: list[Action]) -> None:
        changes = [action for action in actions if isinstance(action, Changed)]
        assert changes in ([], actions[-1:]), "a change comes once, and last"
        for action in actions:
            self._take(action)
        assert self._turns.state is self._state
        assert self.replying == (self._state not in (State.IDLE, State.LISTENING))
        assert self.held == (self._state is State.DOUBTFUL)
        assert self.spoken == (self._state in (State.THINKING, State.SPEAKING, State.DOUBTFUL))

    def _take(self, action: Action) -> None:
        match action:
            case Hear():
                assert not self.replying, "a question is closed while it is answered"
                for number in given_frames([action]):
                    if number:  # those that were silenced have lost their numbers
                        assert number > self._last, "given twice, or out of order"
                        assert not self._follows or number == self._last + 1, "a gap within a turn"
                        self._last = number
                    self._follows = number > 0
                self.asked = True
            case Answer():
                assert self.asked and not self.replying, "nothing to answer"
                self.replying = True
            case Speak():
                assert self.replying and not self.spoken
                self.spoken = True
            case TakeBack():
                assert self.replying and self._state in (State.PAUSED, State.THINKING), "it was heard already"
                self.replying = self.spoken = False
            case Hold():
                assert self._state is State.SPEAKING and not self.held
                self.held = True
            case Resume():
                assert self.held
                self.held = False
            case Interrupt():
                assert self.replying
                self.replying = self.spoken = self.held = self.asked = self._follows = False
            case Changed():
                assert action.state is not self._state
                self._state = action.state
                if action.state is State.IDLE:
                    self.replying = self.spoken = self.asked = self._follows = False

    def key(self) -> None:
        """Nothing from before a press of the key belongs to the turn."""
        self._follows = False


RUN = st.tuples(st.integers(1, 45), st.sampled_from([0.0, 0.0, 0.2, 0.4, 0.6, 1.0, 1.0]))
REPLY = st.sampled_from(["sounds", "sounds", "played", "failed", "interrupt", "reset"])
KEYS = st.one_of(st.booleans(), st.sampled_from([*get_args(PushToTalk), "mute", "unmute"]))


def happen(talk: Talk, listener: Listener, event: object) -> None:
    """Something that is not sound."""
    turns = talk.turns
    news: dict[object, Callable[[], list[Action]]] = {
        "sounds": turns.reply_sounds, "played": turns.reply_played, "failed": turns.reply_failed,
        "interrupt": turns.interrupt, "reset": turns.reset,
        "mute": lambda: turns.mute(True), "unmute": lambda: turns.mute(False),
    }  # fmt: skip
    match event:
        case bool():
            actions = turns.talk_key(event)
            if Changed(State.LISTENING) in actions:
                listener.key()
        case "off" | "hold" | "toggle":
            actions = turns.push_to_talk(event)
        case _:
            actions = news[event]()
    listener.take(talk.did(actions))


def followed(talk: Talk, events: Iterable[object]) -> Listener:
    """Runs of frames and what happens between them, and then silence; returns who followed all of it."""
    listener = Listener(talk.turns)
    for event in events:
        if not isinstance(event, tuple):
            happen(talk, listener, event)
            continue
        count, probability = event
        for _ in range(count):
            listener.take(talk.frame(probability))
    for _ in range(whole_frames(2500)):
        listener.take(talk.frame(0.0))
    return listener


@settings(max_examples=200)
@given(st.lists(st.one_of(RUN, RUN, REPLY), max_size=30), st.sampled_from(get_args(Eagerness)), st.booleans())
def test_without_a_key_every_turn_is_one_uninterrupted_piece_of_sound(
    events: list[tuple[int, float] | str], eagerness: Eagerness, judged: bool
) -> None:
    def judge(samples: Float32) -> float:
        return float(samples[-1] % 2)

    talk = Talk(TurnTaking(Patience.of(eagerness), judge if judged else None))
    listener = followed(talk, events)
    assert talk.turns.state in (State.IDLE, State.THINKING, State.SPEAKING), "in silence nothing is left undecided"
    assert listener.replying == (talk.turns.state is not State.IDLE)


@settings(max_examples=200)
@given(st.lists(st.one_of(RUN, REPLY, KEYS), max_size=40))
def test_with_keys_actions_keep_their_order_and_no_sample_is_given_twice(
    events: list[tuple[int, float] | str | bool],
) -> None:
    talk = Talk()
    followed(talk, [*events, "off"])
    assert talk.turns.state in (State.IDLE, State.THINKING, State.SPEAKING)


@settings(max_examples=100)
@given(st.lists(RUN, max_size=20))
def test_all_that_is_said_between_onset_and_end_is_given(runs: list[tuple[int, float]]) -> None:
    talk = Talk()
    voiced: list[int] = []
    for count, probability in runs:
        for _ in range(count):
            actions = talk.frame(probability)
            if probability > PATIENCE.voice_on:
                voiced.append(talk.frames)
            if Changed(State.THINKING) in actions:
                talk.did(talk.turns.reply_played())
                given = given_frames(talk.actions)
                assert not [number for number in voiced if given[0] <= number <= given[-1] and number not in given]
                assert given[-1] >= voiced[-1], "the last word"
                talk.actions.clear()
                voiced.clear()


@pytest.mark.parametrize(
    ("samples", "probability"),
    [
        (np.zeros(511, np.float32), 0.5),
        (np.zeros(512), 0.5),
        (np.zeros((1, 512), np.float32), 0.5),
        (np.zeros(512, np.float32), float("nan")),
        (np.zeros(512, np.float32), 1.5),
    ],
)
def test_what_is_no_frame_is_refused(samples: Float32, probability: float) -> None:
    with pytest.raises(AudioError, match="a frame is"):
        TurnTaking(PATIENCE).heard(samples, probability)
