"""What a synthesizer is asked for and what it gives back: lines of text → float32 speech at the engine's own rate."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import NearfieldError

EngineName = Literal["espeak", "flite", "festival", "pico", "piper", "kokoro"]
Word = tuple[str, float, float]  # the word in lower case, start and end in seconds


@dataclass(frozen=True)
class Voice:
    """One voice of one synthesizer; `name` is "engine/key", `key` is what the engine calls it."""

    engine: EngineName
    key: str

    @property
    def name(self) -> str:
        """The voice's name in corpora and reports, like "flite/slt"."""
        return f"{self.engine}/{self.key}"


@dataclass(frozen=True)
class Line:
    """One thing to say; rate, pitch and intonation (the span of the pitch) are factors of the voice's own.

    `size` scales the speaker: at 0.9 the vocal tract is a tenth shorter, so that all formants lie higher.
    """

    text: str
    rate: float = 1.0
    pitch: float = 1.0
    intonation: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Speech:
    """What was said: (samples,) float32 in −1…1, and when each word was said, where the engine tells."""

    samples: npt.NDArray[np.float32]
    sample_rate_hz: float
    words: list[Word] | None


class SynthesizerError(NearfieldError):
    """A synthesizer is missing, lacks a voice, or gave no speech."""


class Engine(Protocol):
    """A synthesizer."""

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order; an unknown voice raises SynthesizerError, never another voice."""


def spoken_words(text: str) -> list[tuple[str, int]]:
    """Words of a text in lower case without punctuation, with the character each starts at."""
    return [(found.group().lower(), found.start()) for found in re.finditer(r"[^\W_]+(?:'[^\W_]+)*", text)]
