"""flite through its libraries: text → speech at the voice's rate (16 kHz; kal 8 kHz) with the time of every word."""

import ctypes
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from .speech import Line, Speech, SynthesizerError, Word, spoken_words

OWN_PITCH_HZ = {  # mean and standard deviation in each voice's model; setting the features to 0 would make it whisper
    "slt": (172.0, 27.0),
    "awb": (132.0, 25.0),
    "rms": (98.0, 24.0),
    "kal16": (95.0, 11.0),
    "kal": (95.0, 11.0),
}


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


_POINTERS = ("utt_relation", "relation_head", "item_next", "flite_synth_text")


class Flite:
    """The library and the voices it has loaded."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libflite.so.1", mode=ctypes.RTLD_GLOBAL)
            for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
                ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise SynthesizerError(f"flite's libraries are missing ({error}): apt-get install libflite1") from error
        self._c = ctypes.CDLL("libc.so.6")
        library = self._library
        for name in _POINTERS:
            getattr(library, name).restype = ctypes.c_void_p
        library.utt_wave.restype = ctypes.POINTER(_Wave)
        library.ffeature_string.restype = ctypes.c_char_p
        library.ffeature_float.restype = ctypes.c_float
        library.get_param_float.restype = ctypes.c_float
        library.get_param_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        library.feat_set_float.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float]
        library.flite_init()
        self._voices: dict[str, tuple[int, int, float]] = {}  # key → voice, its features, its own stretch of time

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order."""
        voice, features, stretch = self._voice(key)
        mean_hz, deviation_hz = OWN_PITCH_HZ[key]
        for line in lines:
            for name, value in (
                (b"duration_stretch", stretch / line.rate),
                (b"int_f0_target_mean", mean_hz * line.pitch),
                (b"int_f0_target_stddev", deviation_hz * line.pitch * line.intonation),
            ):
                self._library.feat_set_float(features, name, value)
            yield self._speak(voice, line)

    def _voice(self, key: str) -> tuple[int, int, float]:
        if key not in OWN_PITCH_HZ:
            raise SynthesizerError(f"flite has no voice {key!r}; there are {', '.join(OWN_PITCH_HZ)}")
        if key not in self._voices:
            register = getattr(ctypes.CDLL(f"libflite_cmu_us_{key}.so.1"), f"register_cmu_us_{key}")
            register.restype = ctypes.POINTER(_Voice)
            voice = register(None)
            features = voice.contents.features
            address = ctypes.cast(voice, ctypes.c_void_p).value
            name = voice.contents.name.decode()
            if address is None or name not in (key, f"cmu_us_{key}"):
                raise SynthesizerError(f"flite was asked for voice {key!r} and loaded {name!r}")
            stretch = self._library.get_param_float(features, b"duration_stretch", 1.0)
            self._voices[key] = (address, features, float(stretch))
        return self._voices[key]

    def _speak(self, voice: int, line: Line) -> Speech:
        library = self._library
        self._c.srand(1)  # its noise is C's rand(): the same line always sounds the same
        utterance = ctypes.c_void_p(library.flite_synth_text(line.text.encode(), ctypes.c_void_p(voice)))
        if not utterance:
            raise SynthesizerError(f"flite gave no speech for {line.text!r}")
        try:
            wave = library.utt_wave(utterance).contents
            samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(32768)
            return Speech(samples, wave.sample_rate, self._words(utterance, line.text))
        finally:
            library.delete_utterance(utterance)

    def _words(self, utterance: ctypes.c_void_p, text: str) -> list[Word] | None:
        """Times of the words; None where flite said other words than the text has."""
        library = self._library
        relation = ctypes.c_void_p(library.utt_relation(utterance, b"Word"))
        item = library.relation_head(relation)
        said: list[Word] = []
        while item:
            here = ctypes.c_void_p(item)
            first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            start = library.ffeature_float(here, first)
            end = library.ffeature_float(here, b"R:SylStructure.daughtern.daughtern.R:Segment.end")
            name = library.ffeature_string(here, b"name").decode().lower()
            if name.startswith("'") and said:  # "what" "'s"
                said[-1] = (said[-1][0] + name, said[-1][1], end)
            else:
                said.append((name, start, end))
            item = library.item_next(here)
        wanted = [word for word, _ in spoken_words(text)]
        return said if [word for word, _, _ in said] == wanted else None


@functools.cache
def engine() -> Flite:
    """The one engine of this process."""
    return Flite()
