"""Who has the word: what is done when, and what may never happen, whatever is said and pressed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nearfield.apps.voice.frames import FRAME_MS, FRAME_SAMPLES, whole_frames
from nearfield.apps.voice.patience import Eagerness, Patience
from nearfield.apps.voice.turn_taking import (
    COMPLETE_FRAMES,
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
from nearfield.errors import AudioError, InputError

PATIENCE = Patience.of("medium")


@dataclass
class Talk:
    """A conversation fed frame by frame; frame number n holds the value n, so that it shows what was given."""

    turns: TurnTaking = field(default_factory=lambda: TurnTaking(PATIENCE))
    frames: int = 0
    actions: list[Action] = field(default_factory=list)
    """All so far."""

    def frame(self, probability: float) -> list[Action]:
        self.frames += 1
        return self.did(self.turns.heard(np.full(FRAME_SAMPLES, self.frames, np.float32), probability))

    def did(self, actions: list[Action]) -> list[Action]:
        self.actions += actions
        return actions

    def voice(self, time_ms: int, probability: float = 0.9) -> list[Action]:
        """All that is done while somebody speaks so long."""
        return [action for _ in range(whole_frames(time_ms)) for action in self.frame(probability)]

    def silence(self, time_ms: int) -> list[Action]:
        return self.voice(time_ms, 0.05)

    def until(self, kind: type[Action], probability: float, limit_ms: int = 3000) -> int:
        """How long it takes until something is done, in milliseconds."""
        for count in range(1, whole_frames(limit_ms) + 1):
            if any(isinstance(action, kind) for action in self.frame(probability)):
                return count * FRAME_MS
        raise AssertionError(f"no {kind.__name__} within {limit_ms} ms")

    def speaking(self) -> None:
        """Bring about a reply that plays."""
        self.voice(600)
        self.silence(1500)
        self.did(self.turns.reply_sounds())
        self.silence(1500)
        assert self.turns.state is State.SPEAKING


def given_frames(actions: Iterable[Action]) -> list[int]:
    """The numbers of the frames the model was given; 0 for one that was silenced."""
    sounds = [action.samples for action in actions if isinstance(action, Hear)]
    assert all(len(samples) % FRAME_SAMPLES == 0 for samples in sounds)
    return [int(number) for samples in sounds for number in samples[::FRAME_SAMPLES]]


def kinds(actions: Iterable[Action]) -> list[str]:
    """Names of actions, `Hear` left out, states in place of `Changed`."""
    return [
        action.state.value if isinstance(action, Changed) else type(action).__name__
        for action in actions
        if not isinstance(action, Hear)
    ]


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


@settings(max_examples=200)
@given(st.lists(st.one_of(RUN, RUN, REPLY), max_size=30), st.sampled_from(get_args(Eagerness)), st.booleans())
def test_without_a_key_every_turn_is_one_uninterrupted_piece_of_sound(
    events: list[tuple[int, float] | str], eagerness: Eagerness, judged: bool
) -> None:
    def judge(samples: Float32) -> float:
        return float(samples[-1] % 2)

    talk = Talk(TurnTaking(Patience.of(eagerness), judge if judged else None))
    listener = Listener(talk.turns)
    for event in events:
        if isinstance(event, str):
            happen(talk, listener, event)
            continue
        count, probability = event
        for _ in range(count):
            listener.take(talk.frame(probability))
    for _ in range(whole_frames(2500)):
        listener.take(talk.frame(0.0))
    assert talk.turns.state in (State.IDLE, State.THINKING, State.SPEAKING), "in silence nothing is left undecided"
    assert listener.replying == (talk.turns.state is not State.IDLE)


@settings(max_examples=200)
@given(st.lists(st.one_of(RUN, REPLY, KEYS), max_size=40))
def test_with_keys_actions_keep_their_order_and_no_sample_is_given_twice(
    events: list[tuple[int, float] | str | bool],
) -> None:
    talk = Talk()
    listener = Listener(talk.turns)
    for event in [*events, "off"]:
        if not isinstance(event, tuple):
            happen(talk, listener, event)
            continue
        count, probability = event
        for _ in range(count):
            listener.take(talk.frame(probability))
    for _ in range(whole_frames(2500)):
        listener.take(talk.frame(0.0))
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
