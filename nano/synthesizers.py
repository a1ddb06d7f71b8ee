"""Every voice Nano is trained and tested on, and the one way to make them speak: text → float32 at the engine's rate.

Voices are split whole: a held-out voice is never heard in training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

from .voices import espeak, festival, flite, kokoro, pico, piper
from .voices.speech import Engine, EngineName, Line, Speech, SynthesizerError, Voice, Word

__all__ = ["Line", "Speech", "SynthesizerError", "Voice", "Word", "speak", "speak_many", "voices"]

Split = Literal["train", "heldout"]

HELD_OUT_VARIANTS = (
    "Andy",
    "Annie",
    "edward",
    "f4",
    "klatt3",
    "linda",
    "m7",
    "max",
    "shelby",
)  # of espeak-ng, in every accent
HELD_OUT = {"flite/rms", "festival/ked", "pico/en-GB"}
NATURAL: dict[EngineName, tuple[str, ...]] = {
    "flite": tuple(flite.OWN_PITCH_HZ),
    "festival": tuple(festival.VOICES),
    "pico": pico.KEYS,
    "piper": piper.KEYS,
    "kokoro": kokoro.KEYS,
}


def voices(split: Split) -> list[Voice]:
    """All voices of one split, espeak-ng's accent × variant pairs last."""
    natural = [Voice(engine, key) for engine, keys in NATURAL.items() for key in keys]
    chosen = [voice for voice in natural if (voice.name in HELD_OUT) == (split == "heldout")]
    for variant in espeak.engine().variants():
        if (variant in HELD_OUT_VARIANTS) == (split == "heldout"):
            chosen += [Voice("espeak", f"{accent}+{variant}") for accent in espeak.ACCENTS]
    return chosen


def speak_many(voice: Voice, lines: Sequence[Line]) -> Iterator[Speech]:
    """Speak several lines in one voice, in order; much faster than one at a time where the engine is a program."""
    # A smaller speaker is a slower, deeper utterance played faster.
    asked = [replace(line, rate=line.rate * line.size, pitch=line.pitch * line.size, size=1.0) for line in lines]
    for line, speech in zip(lines, _engine(voice.engine).speak_many(voice.key, asked), strict=True):
        yield speech if line.size == 1.0 else _faster(speech, 1 / line.size)


def speak(voice: Voice, text: str, *, rate: float = 1.0, pitch: float = 1.0) -> Speech:
    """Speak one text; `rate` and `pitch` are factors of the voice's own."""
    (speech,) = speak_many(voice, [Line(text, rate, pitch)])
    return speech


def _faster(speech: Speech, factor: float) -> Speech:
    words = speech.words and [(word, start / factor, end / factor) for word, start, end in speech.words]
    return Speech(speech.samples, speech.sample_rate_hz * factor, words)


def _engine(name: EngineName) -> Engine:
    match name:
        case "espeak":
            return espeak.engine()
        case "flite":
            return flite.engine()
        case "festival":
            return festival.engine()
        case "pico":
            return pico.engine()
        case "piper":
            return piper.engine()
        case "kokoro":
            return kokoro.engine()
