"""Who has the word: what is done when."""

from __future__ import annotations

from typing import get_args

import pytest
from nearfield.apps.voice.frames import FRAME_MS, whole_frames
from nearfield.apps.voice.patience import Eagerness, Patience
from nearfield.apps.voice.turn_taking import (
    Answer,
    Changed,
    Hold,
    Interrupt,
    Resume,
    Speak,
    State,
    TurnTaking,
)
from nearfield.errors import InputError
from talk_frames import PATIENCE, Talk, given_frames, kinds

# -- a turn --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eagerness", get_args(Eagerness))
def test_a_turn_is_answered_early_and_spoken_after_its_pause(eagerness: Eagerness) -> None:
    talk, patience = Talk(TurnTaking(Patience.of(eagerness))), Patience.of(eagerness)
    talk.silence(1000)
    assert kinds(talk.voice(800)) == ["listening"]
    assert talk.until(Answer, 0.05) == patience.answer_pause_ms
    assert talk.until(Speak, 0.05) == patience.pause_ms - patience.answer_pause_ms
    assert talk.actions[-2:] == [Speak(patience.pause_ms), Changed(State.THINKING)]
    assert kinds(talk.did(talk.turns.reply_sounds())) == ["speaking"]
    assert kinds(talk.did(talk.turns.reply_played())) == ["idle"]


def test_eagerness_is_in_order_and_another_word_is_an_error() -> None:
    low, medium, high = (Patience.of(eagerness) for eagerness in ("low", "medium", "high"))
    assert low.pause_ms > medium.pause_ms > high.pause_ms > high.answer_pause_ms
    for patience in (low, medium, high):
        assert patience.answer_pause_ms < patience.complete_pause_ms < patience.pause_ms <= patience.incomplete_pause_ms
        assert patience.incomplete_pause_ms == low.pause_ms
        assert patience.preroll_ms >= 300
    with pytest.raises(InputError, match=r"eagerness 'none'.*low, medium, high"):
        Patience.of("none")  # type: ignore[arg-type]


@pytest.mark.parametrize("clicks", [[96], [64, 64], [32, 32, 32, 32]])
def test_a_door_and_keys_are_no_turn(clicks: list[int]) -> None:
    talk = Talk()
    for click_ms in clicks:
        talk.silence(200)
        talk.voice(click_ms)
    talk.silence(2000)
    assert talk.actions == []


def test_no_first_syllable_is_lost() -> None:
    talk = Talk()
    talk.silence(2000)
    before = talk.frames
    talk.voice(400)
    assert given_frames(talk.actions) == list(range(before + 1 - whole_frames(PATIENCE.preroll_ms), talk.frames + 1))


def test_a_hesitant_beginning_belongs_to_the_turn() -> None:
    talk = Talk()
    talk.silence(2000)
    first = talk.frames + 1
    talk.voice(64)
    talk.silence(400)  # longer than the span in which the voice that begins a turn is counted
    talk.voice(400)
    assert given_frames(talk.actions)[0] == first - whole_frames(PATIENCE.preroll_ms)


def test_at_the_very_beginning_there_is_less_before_the_voice() -> None:
    talk = Talk()
    talk.voice(400)
    assert given_frames(talk.actions) == list(range(1, talk.frames + 1))


def test_voice_that_fades_is_voice_until_it_is_silent() -> None:
    talk = Talk()
    talk.voice(300)
    assert kinds(talk.voice(1000, 0.4)) == []  # between the thresholds
    assert talk.turns.state is State.LISTENING
    faint = Talk()
    assert faint.voice(1000, 0.4) == []
    assert faint.turns.state is State.IDLE


# -- going on ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pause_ms", [256, 320, 608])
def test_who_goes_on_after_a_pause_is_heard_without_a_gap(pause_ms: int) -> None:
    talk = Talk()
    talk.voice(800)
    assert kinds(talk.silence(pause_ms)) == ["Answer", "paused"]
    assert kinds(talk.voice(500)) == ["TakeBack", "listening"]
    assert given_frames(talk.actions) == list(range(1, talk.frames + 1))


def test_who_goes_on_while_the_answer_is_thought_about_takes_it_back() -> None:
    talk = Talk()
    talk.voice(800)
    assert kinds(talk.silence(1200)) == ["Answer", "paused", "Speak", "thinking"]
    assert kinds(talk.voice(500)) == ["TakeBack", "listening"]
    assert given_frames(talk.actions) == list(range(1, talk.frames + 1))


def test_a_click_neither_lengthens_a_pause_nor_takes_an_answer_back() -> None:
    talk = Talk()
    talk.voice(800)
    talk.silence(320)
    talk.voice(32)
    assert talk.until(Speak, 0.05) == PATIENCE.pause_ms - 320 - 32
    assert kinds(talk.voice(96)) == []
    assert talk.turns.state is State.THINKING


def test_a_turn_does_not_end_on_a_voice() -> None:
    talk = Talk()
    talk.voice(800)
    talk.silence(PATIENCE.pause_ms - FRAME_MS)
    assert kinds(talk.frame(0.9)) == []
    assert kinds(talk.frame(0.9)) == ["TakeBack", "listening"]


# -- being interrupted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cough_ms", [96, 200, 352])
def test_a_cough_only_makes_the_reply_stop_for_a_moment(cough_ms: int) -> None:
    talk = Talk()
    talk.speaking()
    given = given_frames(talk.actions)
    assert kinds(talk.voice(cough_ms)) == ["Hold", "doubtful"]
    assert talk.until(Resume, 0.05) == PATIENCE.resume_after_ms
    assert talk.turns.state is State.SPEAKING
    assert given_frames(talk.actions) == given, "and the model does not hear of it"


def test_a_sentence_interrupts_and_is_heard_from_its_beginning() -> None:
    talk = Talk()
    talk.speaking()
    given, before = len(given_frames(talk.actions)), talk.frames
    assert talk.until(Hold, 0.9) == PATIENCE.hold.voice_ms
    assert talk.until(Interrupt, 0.9) == PATIENCE.interrupt.voice_ms - PATIENCE.hold.voice_ms
    assert kinds(talk.actions[-3:]) == ["Interrupt", "listening"]
    talk.voice(500)
    first = before + 1 - whole_frames(PATIENCE.preroll_ms)
    assert given_frames(talk.actions)[given:] == list(range(first, talk.frames + 1))


def test_separate_words_are_a_sentence_and_separate_coughs_are_not() -> None:
    talk = Talk()
    talk.speaking()
    talk.voice(224)
    talk.silence(160)
    assert "Interrupt" in kinds(talk.voice(224))
    coughs = Talk()
    coughs.speaking()
    for _ in range(5):
        coughs.voice(224)
        coughs.silence(PATIENCE.resume_after_ms)
    assert kinds(coughs.actions).count("Resume") == 5
    assert "Interrupt" not in kinds(coughs.actions)


def test_what_is_said_after_a_cough_is_heard_without_the_cough() -> None:
    talk = Talk()
    talk.speaking()
    given = len(given_frames(talk.actions))
    talk.voice(96)
    talk.until(Resume, 0.05)
    first = talk.frames + 1 - whole_frames(PATIENCE.preroll_ms)
    talk.voice(600)
    assert given_frames(talk.actions)[given] == first


def test_a_noise_that_is_over_does_not_hold_the_reply_that_begins() -> None:
    talk = Talk()
    talk.voice(600)
    talk.silence(1000)
    talk.voice(96)
    talk.did(talk.turns.reply_sounds())
    assert kinds(talk.silence(500)) == []


def test_a_held_reply_does_not_wait_for_ever() -> None:
    talk = Talk()
    talk.speaking()
    talk.voice(96)
    waited_ms = 0
    while talk.turns.state is State.DOUBTFUL and waited_ms < 5000:
        talk.silence(288)  # a murmur: too little for a sentence, never silent for long
        talk.voice(32)
        waited_ms += 320
    assert kinds(talk.actions)[-2:] == ["Resume", "speaking"]
    assert PATIENCE.doubt_ms <= waited_ms <= PATIENCE.doubt_ms + 320


def test_a_reply_that_ends_while_it_is_held_lets_the_other_go_on() -> None:
    talk = Talk()
    talk.speaking()
    given, before = len(given_frames(talk.actions)), talk.frames
    talk.voice(256)
    assert kinds(talk.did(talk.turns.reply_played())) == ["Resume", "idle"]
    assert kinds(talk.voice(256)) == ["listening"]
    first = before + 1 - whole_frames(PATIENCE.preroll_ms)
    assert given_frames(talk.actions)[given:] == list(range(first, talk.frames + 1))


def test_a_reply_that_just_begins_can_be_interrupted_and_nothing_is_given_twice() -> None:
    talk = Talk()
    talk.voice(600)
    talk.until(Speak, 0.05)
    talk.did(talk.turns.reply_sounds())
    assert kinds(talk.voice(600)) == ["Hold", "doubtful", "Interrupt", "listening"]
    given = given_frames(talk.actions)
    assert len(given) == len(set(given))


# -- what becomes of a reply ---------------------------------------------------------------------------------------


def test_a_reply_without_sound_ends_the_turn() -> None:
    talk = Talk()
    talk.voice(600)
    talk.silence(1000)
    assert kinds(talk.turns.reply_played()) == ["idle"]


@pytest.mark.parametrize("silence_ms", [256, 1000])
def test_a_reply_that_fails_leaves_nobody_with_the_word(silence_ms: int) -> None:
    talk = Talk()
    talk.voice(600)
    talk.silence(silence_ms)
    assert kinds(talk.turns.reply_failed()) == ["idle"]
    assert kinds(talk.voice(600)) == ["listening"]


def test_late_news_of_a_reply_that_is_void_change_nothing() -> None:
    talk = Talk()
    for tell in (talk.turns.reply_sounds, talk.turns.reply_played, talk.turns.reply_failed, talk.turns.interrupt):
        assert tell() == []
    talk.voice(600)
    for tell in (talk.turns.reply_sounds, talk.turns.reply_played, talk.turns.reply_failed, talk.turns.interrupt):
        assert tell() == []
    talk.silence(256)
    assert talk.turns.state is State.PAUSED
    assert talk.turns.reply_sounds() == []
    assert talk.turns.reply_played() == []


@pytest.mark.parametrize("silence_ms", [256, 1000, 3000])
def test_interrupt_drops_the_reply_in_any_state(silence_ms: int) -> None:
    talk = Talk()
    talk.voice(600)
    talk.silence(silence_ms)
    if silence_ms == 3000:
        talk.turns.reply_sounds()
    assert kinds(talk.turns.interrupt()) == ["Interrupt", "idle"]


def test_reset_forgets_what_was_said() -> None:
    talk = Talk()
    talk.speaking()
    assert kinds(talk.turns.reset()) == ["Interrupt", "idle"]
    assert talk.turns.reset() == []
    first = talk.frames + 1
    given = len(given_frames(talk.actions))
    talk.voice(300)
    assert given_frames(talk.actions)[given:] == list(range(first, talk.frames + 1))
