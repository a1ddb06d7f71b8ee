"""Who has the word: frames of sound and how likely each is speech → what is to be done.

Inputs: frames float32 `(512,)`, 16 kHz (32 ms), each with its probability of speech (activity.py); what becomes of the
reply; keys → outputs: lists of actions, to be carried out in order. Time is counted in frames, so nothing here knows a
clock, a thread or a device.

                 voice            pause             turn over          first sound
        IDLE ───────────▶ LISTENING ─────▶ PAUSED ─────────▶ THINKING ────────────▶ SPEAKING ──▶ IDLE
                              ▲  ▲          │ voice            │ voice            voice │  ▲
                              │  └─TakeBack─┴──────────────────┘                   Hold ▼  │ Resume
                              └────────────────────────── Interrupt ───────────────── DOUBTFUL

**A cough, or a sentence?** An onset alone does not tell them apart, so what counts everywhere is voiced time within a
short span (`Voiced`), each question with its own. While the reply plays, the first 96 ms of voice only hold it: that is
what makes an interruption feel immediate. Then it must go on: 448 ms of voice within 800 ms are a sentence, and the
reply is dropped. A cough, a door, a single short word stay below; most noises are no voice to the detector at all.

**How long does a held reply wait?** Until nobody has spoken for 480 ms, which is longer than the gaps between the words
of somebody who interrupts, and at most 1.5 s. Then it goes on where it was, and what was heard is forgotten.

**And "mm-hm"?** It makes the reply stop for a moment and go on, and the model never hears of it, since it would answer;
one that is drawn out interrupts. Length cannot tell a short "no" from a short "yeah": both are taken for a nod, while
most of "stop" and all of "wait a minute" interrupt (docs/measurements/turn_taking.txt). Whoever meant it notices by the
short stop, and says more, or presses the key.

**Answering early.** An answer is begun at a pause of a fifth of a second and kept silent. When the turn is over
it is ready; when the person goes on it is taken back and the pause is given to the model with the rest, so that the
question it hears is one uninterrupted piece of sound. Before enough voice was heard the model is given nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ...errors import AudioError, InputError
from .frames import FRAME_MS, FRAME_SAMPLES, whole_frames
from .patience import Patience, Voiced

Float32 = npt.NDArray[np.float32]
PushToTalk = Literal["off", "hold", "toggle"]

COMPLETE_FRAMES = 8000 // FRAME_MS
"""How much of a turn `complete` is given at most: 8 s."""


class State(Enum):
    """Who has the word."""

    IDLE = "idle"
    """Nobody."""
    LISTENING = "listening"
    """Somebody speaks."""
    PAUSED = "paused"
    """Somebody paused; an answer is being prepared."""
    THINKING = "thinking"
    """The turn is over; the answer has no sound yet."""
    SPEAKING = "speaking"
    """The answer is being played."""
    DOUBTFUL = "doubtful"
    """The answer is held: was that a cough, or the beginning of a sentence?"""


@dataclass(frozen=True, eq=False)
class Hear:
    """Give the model this sound."""

    samples: Float32
    """`(n,)`, whole frames; follows without a gap what was given since the turn began."""


@dataclass(frozen=True)
class Answer:
    """Begin the reply, and do not play it yet."""


@dataclass(frozen=True)
class Speak:
    """The turn is over: play the reply that was begun."""

    silence_ms: int
    """How long nobody had spoken when that was decided: waiting, not work."""


@dataclass(frozen=True)
class TakeBack:
    """They go on: the reply, of which nothing was heard, is void, and the question is open again."""


@dataclass(frozen=True)
class Hold:
    """Fall silent at once and keep the rest of the reply. Followed by one `Resume` or `Interrupt`."""


@dataclass(frozen=True)
class Resume:
    """Go on with what was held."""


@dataclass(frozen=True)
class Interrupt:
    """Drop the reply: its sound at once, held or not, and from the model's memory what was not heard of it."""


@dataclass(frozen=True)
class Changed:
    """The state is another now; the last action of those that come together."""

    state: State


Action = Hear | Answer | Speak | TakeBack | Hold | Resume | Interrupt | Changed


class TurnTaking:
    """The state machine. Its methods are for one thread; each returns what is to be done, in order."""

    def __init__(self, patience: Patience, complete: Callable[[Float32], float] | None = None) -> None:
        """`complete` is given up to the last 8 s of a turn, with the pause it has just come to, and says how likely it
        is that the person is done, 0 … 1 (smart_turn.py). It is asked once a pause, within `heard`.
        """
        self._patience, self._complete = patience, complete
        self._state = State.IDLE
        self._muted = False
        self._push_to_talk: PushToTalk = "off"
        self._key_down = False
        self._kept = deque[Float32]()  # the latest frames, none of which was given to the model
        self._voiced = deque[bool](maxlen=whole_frames(patience.interrupt.within_ms))  # of the latest frames
        self._said = deque[Float32](maxlen=COMPLETE_FRAMES)  # the latest frames given, if somebody asks for them
        self._asked = False  # whether the model was given any of the turn
        self._pause_frames = 0  # since the last speech of the turn
        self._end_frames = 0  # the pause that ends it
        self._held_frames = self._quiet_frames = 0  # since the reply was held; without voice

    @property
    def state(self) -> State:
        """Who has the word."""
        return self._state

    def heard(self, samples: Float32, speech_probability: float) -> list[Action]:
        """The next frame `(512,)` of the microphone and its probability of speech. Raises `AudioError` for others."""
        if samples.shape != (FRAME_SAMPLES,) or samples.dtype != np.float32 or not 0 <= speech_probability <= 1:
            raise AudioError(
                f"a frame is float32 ({FRAME_SAMPLES},) with a probability from 0 to 1, found "
                f"{samples.dtype} {samples.shape} with {speech_probability}"
            )
        if self._muted or (self._push_to_talk != "off" and not self._key_down):
            samples, speech_probability = np.zeros_like(samples), 0.0
        was_voice = bool(self._voiced) and self._voiced[-1]
        threshold = self._patience.voice_off if was_voice else self._patience.voice_on
        self._voiced.append(speech_probability >= threshold)
        self._kept.append(samples)
        match self._state:
            case State.IDLE:
                return self._while_idle()
            case State.LISTENING:
                return self._while_listening()
            case State.PAUSED:
                return self._while_paused()
            case State.THINKING:
                return self._take_back() if self._enough(self._patience.begin) else []
            case State.SPEAKING:
                return self._while_speaking()
            case State.DOUBTFUL:
                return self._while_doubtful()

    def reply_sounds(self) -> list[Action]:
        """The reply's first sound was handed to the speaker. Only counts after `Speak`."""
        return self._become(State.SPEAKING) if self._state is State.THINKING else []

    def reply_played(self) -> list[Action]:
        """All of the reply was played, or it has no sound. Only counts after `Speak`."""
        if self._state in (State.THINKING, State.SPEAKING, State.DOUBTFUL):
            return self._end_reply()
        return []

    def reply_failed(self) -> list[Action]:
        """There will be no more of the reply. Only counts after `Answer`, before it was taken back or interrupted."""
        return self._end_reply() if self._replying else []

    def interrupt(self) -> list[Action]:
        """Somebody wants no reply, or no more of it, and says nothing instead. Without a reply nothing happens."""
        return [Interrupt(), *self._become(State.IDLE)] if self._replying else []

    def mute(self, on: bool) -> list[Action]:
        """While muted everything counts as silence, and is: a turn in progress ends as by a pause."""
        self._muted = on
        return []

    def push_to_talk(self, mode: PushToTalk) -> list[Action]:
        """Only what is said while the key is down ("hold"), or between two presses ("toggle"), counts; or "off".

        A turn in progress ends: at once if it was the key's, otherwise as by a pause. Raises `InputError`.
        """
        if mode not in get_args(PushToTalk):
            raise InputError(f"push-to-talk is one of {', '.join(get_args(PushToTalk))}, found {mode!r}")
        if mode == self._push_to_talk:
            return []
        actions = self._release() if self._key_down else []
        self._push_to_talk = mode
        return actions

    def talk_key(self, down: bool) -> list[Action]:
        """The key of push-to-talk went down or up; going down again when it is down, as by repetition, is nothing to
        "hold" and a press to "toggle".

        Going down it interrupts or takes back a reply and a turn begins; nothing from before it belongs to the turn. At
        its end the turn is over, without waiting; if no voice was heard there was no turn.
        """
        if self._push_to_talk == "off" or (self._push_to_talk == "toggle" and not down):
            return []
        if self._push_to_talk == "toggle":
            down = not self._key_down
        if down == self._key_down:
            return []
        return self._press() if down else self._release()

    def reset(self) -> list[Action]:
        """Forget the turn: the question could not be kept, or sound is missing. Mute and push-to-talk stay as set."""
        actions: list[Action] = [Interrupt()] if self._replying else []
        self._key_down = False
        self._kept.clear()
        self._voiced.clear()
        return actions + self._become(State.IDLE)

    @property
    def _replying(self) -> bool:
        """Whether there is a reply, heard or not."""
        return self._state not in (State.IDLE, State.LISTENING)

    def _while_idle(self) -> list[Action]:
        if self._enough(self._patience.begin):
            return self._begin()
        self._forget()
        return []

    def _while_listening(self) -> list[Action]:
        if not self._asked:  # the key is down and nothing was said yet
            if self._enough(self._patience.go_on):
                return [self._give_from_onset()]
            self._forget()
            return []
        self._pause_frames = 0 if self._voiced[-1] else self._pause_frames + 1
        actions: list[Action] = [self._give()]
        if self._key_down or self._pause_frames < whole_frames(self._patience.answer_pause_ms):
            return actions
        self._voiced.clear()
        self._end_frames = whole_frames(self._pause_ms())
        actions.append(Answer())
        return actions + (self._end_turn() if self._pause_frames >= self._end_frames else self._become(State.PAUSED))

    def _pause_ms(self) -> int:
        """How long a pause ends this turn."""
        if self._complete is None:
            return self._patience.pause_ms
        complete = self._complete(np.concatenate(self._said)) >= 0.5
        return self._patience.complete_pause_ms if complete else self._patience.incomplete_pause_ms

    def _while_paused(self) -> list[Action]:
        self._pause_frames += 1  # a click does not make the pause begin anew
        if self._enough(self._patience.go_on):
            return self._take_back()
        if self._pause_frames >= self._end_frames and not self._voiced[-1]:
            return self._end_turn()
        return []

    def _while_speaking(self) -> list[Action]:
        self._forget()
        if not self._enough(self._patience.hold):
            return []
        self._held_frames = self._quiet_frames = 0
        return [Hold(), *self._become(State.DOUBTFUL)]

    def _while_doubtful(self) -> list[Action]:
        self._forget()
        self._held_frames += 1
        self._quiet_frames = 0 if self._voiced[-1] else self._quiet_frames + 1
        if self._enough(self._patience.interrupt):
            return [Interrupt(), *self._begin()]
        quiet = self._quiet_frames >= whole_frames(self._patience.resume_after_ms)
        if not quiet and self._held_frames < whole_frames(self._patience.doubt_ms):
            return []
        return [Resume(), *self._become(State.SPEAKING)]

    def _begin(self) -> list[Action]:
        """A turn begins, some of which was already said."""
        self._said.clear()
        return [self._give_from_onset(), *self._become(State.LISTENING)]

    def _take_back(self) -> list[Action]:
        self._pause_frames = 0
        return [TakeBack(), self._give(), *self._become(State.LISTENING)]

    def _end_turn(self) -> list[Action]:
        return [Speak(self._pause_frames * FRAME_MS), *self._become(State.THINKING)]

    def _end_reply(self) -> list[Action]:
        resume: list[Action] = [Resume()] if self._state is State.DOUBTFUL else []
        return resume + self._become(State.IDLE)

    def _press(self) -> list[Action]:
        self._key_down = True
        actions: list[Action] = []
        match self._state:
            case State.PAUSED | State.THINKING:
                actions = [TakeBack()]
            case State.SPEAKING | State.DOUBTFUL:
                actions = [Interrupt()]
        if self._state not in (State.LISTENING, State.PAUSED, State.THINKING):
            self._asked = False
            self._said.clear()
        self._pause_frames = 0
        self._kept.clear()
        self._voiced.clear()
        return actions + self._become(State.LISTENING)

    def _release(self) -> list[Action]:
        self._key_down = False
        if self._state is not State.LISTENING:
            return []
        self._voiced.clear()
        return [Answer(), *self._end_turn()] if self._asked else self._become(State.IDLE)

    def _become(self, state: State) -> list[Action]:
        if state is self._state:
            return []
        self._state = state
        return [Changed(state)]

    def _enough(self, needed: Voiced) -> bool:
        """Whether there was so much voice, and still is: a silent frame never tips the balance."""
        if not self._voiced or not self._voiced[-1]:
            return False
        span = whole_frames(needed.within_ms)
        return sum(list(self._voiced)[-span:]) >= whole_frames(needed.voice_ms)

    def _forget(self) -> None:
        """Keep no more than a turn could begin with."""
        needed = whole_frames(self._patience.interrupt.within_ms) + whole_frames(self._patience.preroll_ms)
        while len(self._kept) > needed:
            self._kept.popleft()

    def _give_from_onset(self) -> Hear:
        """Give what was kept since the first voice that could belong to this, and the sound just before it."""
        since_onset = len(self._voiced) - list(self._voiced).index(True)
        while len(self._kept) > since_onset + whole_frames(self._patience.preroll_ms):
            self._kept.popleft()
        self._asked, self._pause_frames = True, 0
        return self._give()

    def _give(self) -> Hear:
        """Give all that was kept."""
        frames = list(self._kept)
        self._kept.clear()
        if self._complete is not None:
            self._said.extend(frames)
        return Hear(np.concatenate(frames))
