"""Mute, push-to-talk, and a judge of whether a turn is complete."""

from __future__ import annotations

import pytest
from nearfield.apps.voice.frames import FRAME_SAMPLES, whole_frames
from nearfield.apps.voice.turn_taking import (
    COMPLETE_FRAMES,
    Float32,
    Speak,
    State,
    TurnTaking,
)
from nearfield.errors import InputError
from talk_frames import PATIENCE, Talk, given_frames, kinds

# -- mute and push-to-talk -----------------------------------------------------------------------------------------


def test_while_muted_nothing_is_heard_and_a_turn_ends_as_by_a_pause() -> None:
    talk = Talk()
    talk.voice(600)
    spoken = talk.frames
    talk.turns.mute(True)
    assert kinds(talk.voice(2000)) == ["Answer", "paused", "Speak", "thinking"]
    assert set(given_frames(talk.actions)[spoken:]) == {0}
    talk.turns.reply_played()
    talk.turns.mute(False)
    talk.voice(600)
    assert 0 < len([number for number in given_frames(talk.actions) if number > spoken]) <= whole_frames(600)


def test_only_what_is_said_while_the_key_is_down_counts() -> None:
    talk = Talk()
    talk.turns.push_to_talk("hold")
    assert talk.voice(2000) == []
    before = talk.frames
    assert kinds(talk.did(talk.turns.talk_key(True))) == ["listening"]
    talk.voice(32)
    assert talk.turns.talk_key(True) == []  # keys repeat
    talk.voice(500)
    assert kinds(talk.silence(2000)) == []  # a pause is no end
    talk.voice(500)
    assert kinds(talk.did(talk.turns.talk_key(False))) == ["Answer", "Speak", "thinking"]
    assert given_frames(talk.actions) == list(range(before + 1, talk.frames + 1))
    assert talk.voice(2000) == []
    assert talk.turns.state is State.THINKING


def test_a_key_without_a_word_is_no_turn() -> None:
    talk = Talk()
    talk.turns.push_to_talk("hold")
    talk.turns.talk_key(True)
    assert talk.silence(3000) == []
    assert kinds(talk.turns.talk_key(False)) == ["idle"]


def test_the_key_interrupts() -> None:
    talk = Talk()
    talk.speaking()
    talk.turns.push_to_talk("hold")
    assert talk.voice(1000) == []
    assert kinds(talk.turns.talk_key(True)) == ["Interrupt", "listening"]
    assert kinds(talk.turns.talk_key(False)) == ["idle"]


def test_the_key_adds_to_a_question_whose_answer_cannot_be_heard_yet() -> None:
    talk = Talk()
    talk.turns.push_to_talk("hold")
    talk.turns.talk_key(True)
    talk.voice(500)
    talk.turns.talk_key(False)
    assert kinds(talk.turns.talk_key(True)) == ["TakeBack", "listening"]
    assert kinds(talk.turns.talk_key(False)) == ["Answer", "Speak", "thinking"], "pressed by mistake: still answered"


def test_each_press_toggles() -> None:
    talk = Talk()
    talk.turns.push_to_talk("toggle")
    assert kinds(talk.turns.talk_key(True)) == ["listening"]
    assert talk.turns.talk_key(False) == []
    talk.voice(500)
    assert kinds(talk.turns.talk_key(True)) == ["Answer", "Speak", "thinking"]
    assert talk.turns.talk_key(False) == []


def test_the_key_does_nothing_while_push_to_talk_is_off() -> None:
    talk = Talk()
    assert talk.turns.talk_key(True) == talk.turns.talk_key(False) == []
    with pytest.raises(InputError, match="off, hold, toggle, found 'on'"):
        talk.turns.push_to_talk("on")  # type: ignore[arg-type]


def test_a_turn_ends_when_the_way_of_talking_changes() -> None:
    by_voice = Talk()
    by_voice.voice(600)
    assert by_voice.turns.push_to_talk("hold") == []
    assert kinds(by_voice.voice(1000)) == ["Answer", "paused", "Speak", "thinking"]
    by_key = Talk()
    by_key.turns.push_to_talk("toggle")
    by_key.turns.talk_key(True)
    by_key.voice(600)
    assert kinds(by_key.turns.push_to_talk("off")) == ["Answer", "Speak", "thinking"]


# -- a judge of whether the turn is complete -----------------------------------------------------------------------


@pytest.mark.parametrize(("probability", "pause_ms"), [(0.9, PATIENCE.complete_pause_ms), (0.1, 992)])
def test_a_turn_that_sounds_complete_ends_sooner_and_another_later(probability: float, pause_ms: int) -> None:
    judged: list[Float32] = []

    def judge(samples: Float32) -> float:
        judged.append(samples)
        return probability

    talk = Talk(TurnTaking(PATIENCE, judge))
    talk.silence(1000)
    talk.voice(12_000)
    talk.silence(PATIENCE.answer_pause_ms)
    (samples,) = judged
    last = talk.frames
    assert list(samples[::FRAME_SAMPLES]) == list(range(last - COMPLETE_FRAMES + 1, last + 1))
    assert talk.until(Speak, 0.05) == pause_ms - PATIENCE.answer_pause_ms


def test_the_judge_hears_nothing_of_the_turn_before() -> None:
    judged: list[Float32] = []

    def judge(samples: Float32) -> float:
        judged.append(samples)
        return 1.0

    talk = Talk(TurnTaking(PATIENCE, judge))
    talk.speaking()
    first = talk.frames + 1
    talk.voice(600)
    talk.silence(500)
    assert judged[1][0] == first - whole_frames(PATIENCE.preroll_ms)
