"""Every tolerance of the tests, by what is compared. A miss is a bug, never a reason to loosen a number."""

from typing import Any

import numpy as np
import numpy.typing as npt

FP32_RELATIVE = 1e-4
"""A float32 graph against the float32 reference."""

FP16_RELATIVE = 5e-3
"""A float16 graph against the float32 reference."""

WHOLE_REPLY_RELATIVE = 1e-3
"""Mel and waveform of a whole reply, 36 DiT evaluations deep, given the same noise."""

FEATURES = 1e-4
"""Mel features and image patches against the reference processor's."""

CHUNKED_PREFILL = 1e-5
"""Logits of a prompt prefilled in chunks against the same in one piece."""

SPEAKER_ENCODING = 1e-5
"""The speaker encoder in NumPy against the reference."""

VOCODER_PIECES = 1e-5
"""A waveform made piece by piece against the same in one piece."""

WINDOWS_MEAN = 0.02
"""Mel made in windows against the whole reply's: a frame's distance, as a part of that between two seeds."""

WINDOWS_WORST_FRAME = 0.05
"""The same, of the worst frame."""

SHORT_SOLVER = 0.05
"""Mel of the short solver against that of the reference's, as a part of the distance between two seeds."""

INT4_MATMUL = 2e-5
"""An INT4 graph against the float32 product with its dequantized weights."""

CHUNKED_CACHE = {"float16": 1e-4, "int8": 1e-3}
"""The same where the cache is rounded: a number that lies between two codes may fall to either side."""

CACHE_LOSS = {"float16": 5e-4, "int8": 1.2e-2}
"""Hidden states of a trained Thinker with a cache of this type against those with one of float32."""

CONVERSATION = 1e-4
"""What was read as it came, cut and gone on with, against the same read at once: embeddings, logits, sound."""

FACTOR = 1e-6
"""Second moments of activations and their triangular factor, in float32, against float64."""

FOLDED = 1e-6
"""A layer whose AWQ scales were folded into what precedes it against the layer as it was."""


def relative_error(out: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """`‖out − reference‖ / ‖reference‖`; shapes must agree."""
    a: npt.NDArray[Any] = np.asarray(out, np.float64)
    b: npt.NDArray[Any] = np.asarray(reference, np.float64)
    assert a.shape == b.shape, f"shape {a.shape}, expected {b.shape}"
    assert np.isfinite(a).all(), "out holds NaN or infinity"
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
