"""Does the turn sound complete? Smart Turn v3, an option: its graph is not part of Nearfield.

Inputs: a turn so far, float32 `(n,)`, 16 kHz, with the pause it has come to → output: probability that the person is
done, 0 … 1. The graph takes Whisper's log-mel of the last 8 s, `input_features float32 (1, 80, 800)`.

The file is smart-turn-v3.2-cpu.onnx (8.7 MB, BSD-2 licence), by Daily: https://huggingface.co/pipecat-ai/smart-turn-v3,
and inside the wheel of the package pipecat-ai.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import AudioError, BundleError, InputError
from ...runtime.manifest import Audio
from ...runtime.mel import log_mel
from ...runtime.session import SessionSettings, open_session
from .frames import RATE_HZ

SECONDS = 8
_SAMPLES = SECONDS * RATE_HZ
_MEL = Audio(
    sample_rate_hz=RATE_HZ, n_fft=400, hop_samples=160, mel_bins=80, block_frames=200, max_frames=_SAMPLES // 160
)
_QUIETEST_VARIANCE = 1e-7


def features(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-mel `(80, 800)` float32 of the last 8 s of `(n,)`, behind silence if they are fewer, at variance 1.

    Raises `AudioError` when `samples` is not a float32 array of one axis, at least one.
    """
    if samples.ndim != 1 or not samples.size or samples.dtype != np.float32:
        raise AudioError(f"a turn is float32 (n,), at least one, found {samples.dtype} {samples.shape}")
    heard = samples[-_SAMPLES:]
    padded = np.pad(heard, (_SAMPLES - len(heard), 0))
    normal = (padded - padded.mean()) / np.sqrt(padded.var() + np.float32(_QUIETEST_VARIANCE))
    return log_mel(normal, _MEL)


class SmartTurn:
    """The judge; an instance is what `TurnTaking` takes as `complete`."""

    def __init__(self, graph: Path) -> None:
        """Raises `InputError` when `graph` is not there, cannot be loaded or is another kind of graph."""
        if not graph.is_file():
            raise InputError(
                f"{graph} is not a file; expected smart-turn-v3.2-cpu.onnx, as it is in the wheel of the package "
                "pipecat-ai (pip download --no-deps pipecat-ai, and open it as a ZIP archive)"
            )
        try:
            self._session = open_session(graph, SessionSettings(threads=1))
        except BundleError as error:
            raise InputError(f"{graph} is no graph ONNX Runtime can load: {error.__cause__}; get it anew") from error
        if self._session.input_names != ("input_features",) or len(self._session.output_names) != 1:
            raise InputError(
                f"{graph} is not Smart Turn v3: expected the input input_features and one output, found "
                f"{', '.join(self._session.input_names)} → {', '.join(self._session.output_names)}"
            )

    def __call__(self, samples: npt.NDArray[np.float32]) -> float:
        """How likely the person is done. Raises `AudioError` as `features` does."""
        (output,) = self._session.run({"input_features": features(samples)[None]}).values()  # (1, 1)
        return float(output.item())
