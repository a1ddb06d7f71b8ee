"""How long is waited for what, by how eager somebody is to answer. Nothing here is in frames but multiples of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import InputError

Eagerness = Literal["low", "medium", "high"]


@dataclass(frozen=True)
class Voiced:
    """So much voice within so long a span, up to now."""

    voice_ms: int
    within_ms: int


@dataclass(frozen=True)
class Patience:
    """How long is waited for what. Times are rounded up to whole frames."""

    pause_ms: int
    """A pause this long ends a turn."""
    complete_pause_ms: int
    """The same, where the turn sounds complete; only asked where there is a judge of that."""
    incomplete_pause_ms: int = 992
    """The same, where the turn sounds incomplete."""
    answer_pause_ms: int = 192
    """At a pause this long the answer is begun."""
    preroll_ms: int = 320
    """Sound from before the first voice that belongs to a turn: soft first consonants."""
    go_on: Voiced = Voiced(64, 96)
    """Goes on after a pause."""
    begin: Voiced = Voiced(160, 320)
    """Begins a turn, or goes on when the turn already counted as over."""
    hold: Voiced = Voiced(96, 160)
    """Makes a reply fall silent."""
    interrupt: Voiced = Voiced(448, 800)
    """Ends a reply. No span may be longer than this one."""
    resume_after_ms: int = 480
    """A held reply goes on after so much silence,"""
    doubt_ms: int = 1504
    """and in any case after this long."""
    voice_on: float = 0.5
    """Probability of speech from which on a frame is voice,"""
    voice_off: float = 0.35
    """and below which it no longer is."""

    @classmethod
    def of(cls, eagerness: Eagerness) -> Patience:
        """How patient somebody is who is that eager to answer. Raises `InputError` for another word."""
        match eagerness:
            case "low":
                return cls(pause_ms=992, complete_pause_ms=480)
            case "medium":
                return cls(pause_ms=640, complete_pause_ms=320)
            case "high":
                return cls(pause_ms=416, complete_pause_ms=224)
        raise InputError(f"there is no eagerness {eagerness!r}; expected one of {', '.join(get_args(Eagerness))}")
