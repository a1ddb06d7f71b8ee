"""SVOX Pico through py-nanotts, which carries the voices: text → speech at 16 kHz, without word times."""

import ctypes
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from .speech import Line, Speech, SynthesizerError

KEYS = ("en-US", "en-GB")
SAMPLE_RATE_HZ = 16000
_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 18
_VOLUME = 0.5  # at 1 the loudest vowels are clipped


class Pico:
    """The library."""

    def __init__(self) -> None:
        try:
            from py_nanotts import NanoTTS
        except ImportError as error:
            raise SynthesizerError("SVOX Pico is missing: pip install py-nanotts") from error
        # Pico reads memory it never wrote, and its pauses depend on what is there. Large blocks straight from the
        # system are zero; left to itself the C library would soon hand out used ones.
        if not ctypes.CDLL("libc.so.6").mallopt(_MMAP_THRESHOLD, _LARGE_BYTES):
            raise SynthesizerError("the C library refused mallopt: Pico's pauses would differ from run to run")
        self._synthesizer = NanoTTS()

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order; Pico has no say over intonation."""
        if key not in KEYS:
            raise SynthesizerError(f"Pico has no English voice {key!r}; there are {', '.join(KEYS)}")
        for line in lines:
            sound = self._synthesizer.speak(line.text, key, line.rate, line.pitch, _VOLUME)
            samples = np.frombuffer(sound, np.int16).astype(np.float32) / np.float32(32768)
            if len(samples) == 0:
                raise SynthesizerError(f"Pico gave no speech for {line.text!r}")
            yield Speech(samples, SAMPLE_RATE_HZ, None)


@functools.cache
def engine() -> Pico:
    """The one engine of this process."""
    return Pico()
