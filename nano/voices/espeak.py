"""espeak-ng through its library: text → speech at 22.05 kHz with the exact time of every word.

A voice is an accent and a variant, "en-us+f3". espeak-ng answers an unknown variant with its default voice, silently,
so both parts are looked up in its data folder first.
"""

import ctypes
import ctypes.util
import functools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .speech import Line, Speech, SynthesizerError, Word, spoken_words

ACCENTS = {  # as in a voice's key → espeak-ng's own identifier
    "en-us": "gmw/en-US",
    "en-us-nyc": "gmw/en-US-nyc",
    "en-gb": "gmw/en",
    "en-gb-x-rp": "gmw/en-GB-x-rp",
    "en-gb-scotland": "gmw/en-GB-scotland",
    "en-gb-x-gbclan": "gmw/en-GB-x-gbclan",
    "en-gb-x-gbcwmd": "gmw/en-GB-x-gbcwmd",
    "en-029": "gmw/en-029",
}
NOT_SPEECHLIKE = {
    "Demonic",
    "Tweaky",
    "UniRobot",
    "anikaRobot",
    "croak",
    "whisper",
    "whisperf",
    "fast",
    "Nguyen",
    "zac",
}

_SYNCHRONOUS, _UTF8, _BY_CHARACTER, _IPA = 2, 1, 1, 2
_RATE, _PITCH, _RANGE = 1, 3, 4  # parameters
_TERMINATED, _WORD, _END = 0, 1, 5  # events
_WORDS_A_MINUTE = 175  # the library's default


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters, from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("languages", ctypes.c_char_p), ("identifier", ctypes.c_char_p)]


class Espeak:
    """The library, loaded once a process; it keeps one voice and one set of parameters at a time."""

    def __init__(self) -> None:
        found = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        try:
            self._library = ctypes.CDLL(found)
        except OSError as error:
            raise SynthesizerError(f"espeak-ng's library is missing ({error}): apt-get install espeak-ng") from error
        self._library.espeak_Info.restype = ctypes.c_char_p
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._library.espeak_GetCurrentVoice.restype = ctypes.POINTER(_Voice)
        self._rate_hz = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, None, 0))
        if self._rate_hz <= 0:
            raise SynthesizerError("espeak-ng found no data folder: apt-get install espeak-ng-data")
        path = ctypes.c_char_p()
        self._library.espeak_Info(ctypes.byref(path))
        self._data = Path((path.value or b"").decode())
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[int, int, int]] = []  # type, text position, sample
        self._callback = _Callback(self._receive)  # kept: the library holds only its address
        self._library.espeak_SetSynthCallback(self._callback)

    def variants(self) -> list[str]:
        """Names of the variants that sound like a person, sorted."""
        names = (file.name for file in (self._data / "voices" / "!v").iterdir())
        return sorted(name for name in names if name not in NOT_SPEECHLIKE)

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order."""
        self._choose(key)
        for line in lines:
            yield self._speak(line)

    def phonemes(self, text: str, accent: str = "en-us") -> str:
        """The text in the International Phonetic Alphabet, its marks kept, as neural voices want it."""
        self._choose(accent)
        clauses = []
        for words, mark in re.findall(r"([^,.?!;]+)([,.?!;]?)", text):
            rest = ctypes.c_char_p(words.strip().encode())
            spoken = self._library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA)
            clauses.append(spoken.decode().strip() + mark)
        return " ".join(clauses)

    def _choose(self, key: str) -> None:
        accent, _, variant = key.partition("+")
        if accent not in ACCENTS or not (self._data / "lang" / ACCENTS[accent]).is_file():
            raise SynthesizerError(f"espeak-ng has no accent {accent!r}; there are {', '.join(ACCENTS)}")
        if variant and not (self._data / "voices" / "!v" / variant).is_file():
            raise SynthesizerError(f"espeak-ng has no variant {variant!r} in {self._data}")
        wanted = ACCENTS[accent] + (f"+{variant}" if variant else "")
        status = self._library.espeak_SetVoiceByName(wanted.encode())
        chosen = self._library.espeak_GetCurrentVoice().contents.identifier.decode()
        if status != 0 or chosen != wanted:
            raise SynthesizerError(f"espeak-ng was asked for voice {wanted!r} and chose {chosen!r} (status {status})")

    def _speak(self, line: Line) -> Speech:
        self._chunks, self._events = [], []
        pitch = round(50 + 50 * math.log2(line.pitch))  # the library's scale: 0 an octave down, 100 one up
        for parameter, value in (
            (_RATE, round(_WORDS_A_MINUTE * line.rate)),
            (_PITCH, min(max(pitch, 0), 99)),
            (_RANGE, min(max(round(50 * line.intonation), 0), 99)),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        text = line.text.encode()
        status = self._library.espeak_Synth(text, len(text) + 1, 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if status != 0 or not self._chunks:
            raise SynthesizerError(f"espeak-ng gave no speech for {line.text!r} (status {status})")
        samples = np.concatenate(self._chunks).astype(np.float32) / np.float32(32768)
        return Speech(samples, self._rate_hz, self._words(line.text, len(samples)))

    def _receive(
        self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]"
    ) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _TERMINATED:
            event = events[index]
            self._events.append((event.type, event.text_position, event.sample))
            index += 1
        return 0

    def _words(self, text: str, total_samples: int) -> list[Word] | None:
        """Times of the words; words that the library runs together ("in the") share their time by letters."""
        starts = {position - 1: sample for kind, position, sample in self._events if kind == _WORD}
        ends = [*sorted(sample for kind, _, sample in self._events if kind in (_WORD, _END)), total_samples]
        groups: list[tuple[int, list[str]]] = []  # start, words that begin there
        for word, character in spoken_words(text):
            if character in starts:
                groups.append((starts[character], [word]))
            elif groups:
                groups[-1][1].append(word)
            else:
                return None
        words: list[Word] = []
        for start, group in groups:
            end = next((sample for sample in ends if sample > start), total_samples)
            letters = np.cumsum([0, *(len(word) for word in group)])
            times = (start + (end - start) * letters / letters[-1]) / self._rate_hz
            words += [(word, float(times[i]), float(times[i + 1])) for i, word in enumerate(group)]
        return words


@functools.cache
def engine() -> Espeak:
    """The one engine of this process: the library cannot be initialised twice."""
    return Espeak()
