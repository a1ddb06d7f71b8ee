"""What a spoken conversation tells whoever shows it, in order: plain values, nothing that has to be asked for again."""

from __future__ import annotations

from dataclasses import dataclass

from .sound_device import DeviceState
from .turn_taking import State


@dataclass(frozen=True)
class Latency:
    """What a turn took, in milliseconds; None for what did not come about."""

    silence_wait_ms: float | None
    """From the last sound of speech until it was clear that the turn was over: waiting, not work."""
    first_token_ms: float | None
    """From the call of `respond` until the first token."""
    first_audio_ms: float | None
    """From the call of `respond`, which may come before the turn is over, until the first sound was made."""
    first_sound_ms: float | None
    """From the last sound of speech until the answer's first sample left the speaker: what a person notices."""

    def in_words(self) -> str:
        """From the last sound of speech to the first of the answer, the wait for silence apart; "" when unknown."""
        total, wait = self.first_sound_ms, self.silence_wait_ms
        if total is None:
            return "" if wait is None else f"waited {wait:.0f} ms for silence"
        if wait is None:
            return f"answered in {total:.0f} ms"
        return f"answered in {total:.0f} ms: {wait:.0f} ms waiting for silence + {total - wait:.0f} ms"


@dataclass(frozen=True)
class StateChanged:
    """Who has the word."""

    state: State


@dataclass(frozen=True)
class Level:
    """How loud it is, RMS from 0 to 1, several times a second."""

    microphone: float


@dataclass(frozen=True)
class ReplyText:
    """The reply so far; of an interrupted one, in the end, what was heard of it."""

    turn: int
    text: str


@dataclass(frozen=True)
class HeardText:
    """What the model says it heard, if it is asked for that."""

    turn: int
    text: str


@dataclass(frozen=True)
class TurnDone:
    """A turn is over: everything was played, or somebody interrupted."""

    turn: int
    question_s: float
    """How long the question was."""
    reply_text: str
    """What was heard of the reply."""
    interrupted: bool
    latency: Latency


@dataclass(frozen=True)
class DeviceNotice:
    """Microphone or speaker came, went, or do not do what they should."""

    device: DeviceState


@dataclass(frozen=True)
class Trouble:
    """Something went wrong; the conversation goes on. In plain words."""

    text: str


Notice = StateChanged | Level | ReplyText | HeardText | TurnDone | DeviceNotice | Trouble
