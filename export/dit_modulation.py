"""The DiT's modulation as a table: at a fixed schedule of times it is made once, at export, in NumPy.

Inputs: the times at which the ODE solver evaluates the DiT → output: `float32 (times, 6·layers + 2, width)`. Checkpoint
tensors: `token2wav.code2wav_dit_model.time_embed.`, `….transformer_blocks.N.attn_norm.linear.`, `….norm_out.linear.`:
43 % of the DiT's weights, which stay out of its graph. Shift, scale and gate are those of DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .dit_config import DIT_PREFIX, DiTConfig
from .graph import TensorSource

Floats = npt.NDArray[np.float32]

_FREQUENCIES = 256  # width of the reference's time embedding; no configuration has it
_TIME_SCALE = 1000.0  # a time in 0 … 1 turns like a position in 0 … 1000


def rk4_times(points: int, sway: float) -> Floats:
    """Return the `3 · (points − 1) + 1` times at which the reference's solver evaluates the DiT, from 0 to 1.

    `points` are spread evenly, then moved by `sway` (F5-TTS's sway sampling, arXiv 2410.06885: −1 puts more of them
    near the noise). A step has its ends and two times a third and two thirds between. float32 as the reference.
    """
    even = np.linspace(0.0, 1.0, points, dtype=np.float32)
    ends = even + np.float32(sway) * (np.cos(np.float32(math.pi / 2) * even) - 1 + even)
    starts, steps = ends[:-1], np.diff(ends)
    thirds = [starts, starts + steps * np.float32(1 / 3), starts + steps * np.float32(2 / 3)]
    return np.append(np.stack(thirds, axis=1).reshape(-1), ends[-1])


def modulation_table(config: DiTConfig, source: TensorSource, times: Sequence[float] | Floats) -> Floats:
    """Return the modulation `(times, 6·layers + 2, width)` at each time, one checkpoint tensor in memory at a time.

    Rows of a layer: shift, scale and gate of its attention, then of its feed-forward. The last two rows belong to the
    final norm, in the other order: scale, shift. Raises `ExportError` for a missing or wrong tensor.
    """
    width = config.hidden_size
    embedded = _silu(_embed(config, source, np.asarray(times, np.float32)))
    table = np.empty((len(times), config.modulation_rows, width), np.float32)
    for layer in range(config.layers):
        name = f"{DIT_PREFIX}transformer_blocks.{layer}.attn_norm.linear."
        rows = _linear(source, name, embedded, 6 * width)
        table[:, 6 * layer : 6 * layer + 6] = rows.reshape(-1, 6, width)
    table[:, -2:] = _linear(source, f"{DIT_PREFIX}norm_out.linear.", embedded, 2 * width).reshape(-1, 2, width)
    return table


def _embed(config: DiTConfig, source: TensorSource, times: Floats) -> Floats:
    """Sines and cosines of the times through two Linear layers: `(times) → (times, width)`."""
    half = _FREQUENCIES // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / (half - 1))
    # NumPy's float32 exp is off by up to three units in the last place, which angles of up to 1000 would magnify.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.float32(_TIME_SCALE) * times[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    hidden = _silu(_linear(source, f"{DIT_PREFIX}time_embed.time_mlp.0.", waves, config.hidden_size))
    return _linear(source, f"{DIT_PREFIX}time_embed.time_mlp.2.", hidden, config.hidden_size)


def _linear(source: TensorSource, name: str, x: Floats, outputs: int) -> Floats:
    weight = source.read(f"{name}weight", (outputs, x.shape[1])).astype(np.float32, copy=False)
    bias = source.read(f"{name}bias", (outputs,)).astype(np.float32, copy=False)
    y: Floats = x @ weight.T + bias
    return y


def _silu(x: Floats) -> npt.NDArray[Any]:
    return x / (1 + np.exp(-x))
