"""What a turn yields, in order: text as it is written, sound as it is made, and one end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .talker import SpeechStop

TextStop = Literal["end", "max_tokens", "context", "interrupted"]
"""Why text ended: the model ended it, a limit was reached, the Thinker's context is full, or the reply was stopped."""


@dataclass(frozen=True)
class TextDelta:
    """One token of the reply. `text` is what it adds: empty while a character still lacks bytes."""

    text: str
    token_id: int | None
    """None for what is left at the end of a reply that breaks off inside a character."""


@dataclass(frozen=True)
class AudioChunk:
    """Sound of the reply: `samples float32 (n)`, mono, in −1 … 1, at `sample_rate_hz`. Chunks follow without a gap."""

    samples: npt.NDArray[np.float32]
    sample_rate_hz: int


@dataclass(frozen=True)
class Timing:
    """How long a turn took, from the call of `respond`, and how much was done."""

    prompt_tokens: int
    reply_tokens: int
    codes: int
    audio_seconds: float
    time_to_first_token_ms: float | None
    """None for an empty reply."""
    time_to_first_audio_ms: float | None
    """None for a silent turn."""
    text_ms: float
    """Until the text was complete."""
    speech_codes_ms: float
    """From the Talker's start until its last code; it may have waited for text."""
    speech_waveform_ms: float
    """Making the waveform, while codes were still being made."""
    total_ms: float


@dataclass(frozen=True)
class TurnEnd:
    """The last event of a turn: its whole text, why text and speech ended, and the timing."""

    text: str
    stop_reason: TextStop
    speech_stop_reason: SpeechStop | None
    """None when the turn was not to be spoken, or was stopped while it was."""
    timing: Timing


Event = TextDelta | AudioChunk | TurnEnd
