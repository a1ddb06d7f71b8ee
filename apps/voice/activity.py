"""Is somebody speaking? Silero VAD, frame by frame.

Inputs: frames float32 `(512,)`, 16 kHz (32 ms) → output: probability of speech in the frame, 0 … 1.

The network sees a frame behind the last 64 samples of the frame before it, `input float32 (1, 576)`, and keeps the
state of an LSTM, `state float32 (2, 1, 128)`. `data/silero_vad.onnx` is silero_vad_openvino_16k.onnx of the package
silero-vad 6.2.3 (MIT licence beside it): half the size of silero_vad.onnx there, which also hears 8 kHz, and the same
output to the last bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import AudioError
from ...runtime.session import SessionSettings, open_session
from .frames import FRAME_SAMPLES

GRAPH = Path(__file__).parent / "data" / "silero_vad.onnx"

_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 1, 128)


class VoiceActivity:
    """The detector and what it remembers of one stream of sound."""

    def __init__(self) -> None:
        self._session = open_session(GRAPH, SessionSettings(threads=1))
        self.reset()

    def reset(self) -> None:
        """Forget what was heard: what comes next does not follow it without a gap."""
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._state = np.zeros(_STATE_SHAPE, np.float32)

    def probability(self, samples: npt.NDArray[np.float32]) -> float:
        """How likely it is that somebody speaks in the next frame. Raises `AudioError` for another kind of array."""
        if samples.shape != (FRAME_SAMPLES,) or samples.dtype != np.float32:
            raise AudioError(f"a frame is float32 ({FRAME_SAMPLES},), found {samples.dtype} {samples.shape}")
        seen = np.concatenate([self._context, samples])
        outputs = self._session.run({"input": seen[None], "state": self._state})
        self._context, self._state = samples[-_CONTEXT_SAMPLES:].copy(), outputs["stateN"]
        return float(outputs["output"].item())
