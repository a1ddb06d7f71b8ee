"""Attention and rotary embedding, each in both dialects; the cache that attention keeps, and in which type.

Queries, keys and values are `(B, S, heads · head_dim)`; so are the results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..runtime.manifest import CacheType
from .graph import CONTRIB, FLOAT16, FLOAT32, INT8, INT32, INT64, Array, Op, Port, Style, Value

_CACHE_TYPES: dict[CacheType, ir.DataType] = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8}


@dataclass(frozen=True)
class CacheScales:
    """What the codes −127 … 127 of an int8 cache stand for: `code · scale`, a scale for each channel of each head.

    They are part of the graph: found once, from calibration data (`calibrate/kv_scales.py`).
    """

    key: Array
    """float32 (layers, kv_heads, head_dim)."""
    value: Array
    """The same for values."""


@dataclass(frozen=True)
class CacheShape:
    """Geometry of a decoder's key/value cache, and the type it is kept in."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: CacheType | None = None
    """None: the style's float type. Another is for dialect `ort` alone."""
    scales: CacheScales | None = None
    """Of an int8 cache."""

    def input_ports(self, style: Style) -> list[Port]:
        """Past keys and values of every layer; in `ort` also the lengths that say how much of a buffer is filled."""
        shape = (1, self.kv_heads, "past_positions", self.head_dim)
        ports = [
            Port(f"past_key_values.{layer}.{kind}", self._port_type(style), shape)
            for layer in range(self.layers)
            for kind in ("key", "value")
        ]
        if style.contrib:
            ports += [Port("seqlens_k", INT32, (1,)), Port("total_sequence_length", INT32, ())]
        return ports

    def output_ports(self, style: Style) -> list[Port]:
        """Present keys and values of every layer."""
        shape = (1, self.kv_heads, "present_positions", self.head_dim)
        return [
            Port(f"present.{layer}.{kind}", self._port_type(style), shape)
            for layer in range(self.layers)
            for kind in ("key", "value")
        ]

    def _port_type(self, style: Style) -> ir.DataType:
        return style.dtype if self.dtype is None else _CACHE_TYPES[self.dtype]


@dataclass(frozen=True)
class Cache:
    """The cache as graph values: past of one layer, and in `ort` the lengths all layers share."""

    key: Value
    value: Value
    seqlens_k: Value | None
    total_sequence_length: Value | None
    scales: tuple[Array, Array] | None = None
    """Of an int8 cache, this layer's: keys' and values', float32 (kv_heads, head_dim)."""


def split_cache_inputs(
    style: Style, layers: int, values: tuple[Value, ...], scales: CacheScales | None = None
) -> list[Cache]:
    """Sort the values of `CacheShape.input_ports` by layer."""
    seqlens_k, total = (values[-2], values[-1]) if style.contrib else (None, None)
    by_layer = [None] * layers if scales is None else list(zip(scales.key, scales.value, strict=True))
    return [Cache(values[2 * i], values[2 * i + 1], seqlens_k, total, by_layer[i]) for i in range(layers)]


def cached_attention(
    op: Op, style: Style, query: Value, key: Value, value: Value, cache: Cache, heads: int, kv_heads: int
) -> tuple[Value, Value, Value]:
    """Causal grouped-query attention over the past and the new positions; returns the result and the present cache.

    `ort`: GroupQueryAttention writes into the past buffer when past and present are bound to the same memory.
    `standard`: Attention returns past and new concatenated.
    """
    if not style.contrib:
        out, present_key, present_value = op.Attention(
            query, key, value, None, cache.key, cache.value,
            q_num_heads=heads, kv_num_heads=kv_heads, is_causal=1, _outputs=3,
        )  # fmt: skip
        return out, present_key, present_value
    if style.dtype == FLOAT32 and cache.key.dtype == FLOAT16:
        # The operator reads what is new to an empty cache before it rounds it: what a prompt says would depend on how
        # it is cut into pieces. (It reads int8 as it is stored, always.)
        key, value = (op.Cast(op.Cast(new, to=FLOAT16), to=FLOAT32) for new in (key, value))
    inputs = [query, key, value, cache.key, cache.value, cache.seqlens_k, cache.total_sequence_length]
    attributes: dict[str, int | str] = {"num_heads": heads, "kv_num_heads": kv_heads}
    if cache.scales is not None:
        shape = (1, kv_heads, 1, -1)
        scales = [op.Constant(value=ir.tensor(it.astype(np.float32).reshape(shape))) for it in cache.scales]
        inputs += [None, None, None, None, None, *scales]  # it has five other options in between
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    out, present_key, present_value = op.GroupQueryAttention(*inputs, **attributes, _domain=CONTRIB, _outputs=3)
    return out, present_key, present_value


MASKED = -65504.0
"""Added to the score of a key that is not seen: the lowest half float. Every query sees at least one key."""


def full_attention(
    op: Op, style: Style, query: Value, key: Value, value: Value, heads: int, mask: Value | None = None
) -> Value:
    """Attention of every query to every key of its batch row.

    `mask` is added to the scores: `(B or 1, 1, Sq, Sk)`, in the style's float type, 0 where a key is seen.
    """
    if style.contrib:
        return op.MultiHeadAttention(query, key, value, None, None, mask, num_heads=heads, _domain=CONTRIB)
    return op.Attention(query, key, value, mask, q_num_heads=heads, kv_num_heads=heads)


def rotary(op: Op, style: Style, x: Value, cos: Value, sin: Value, heads: int) -> Value:
    """Rotate the two halves of every head of `x (B, S, heads · head_dim)` by `cos, sin (S, head_dim / 2)`."""
    if style.contrib:
        first = op.Constant(value=ir.tensor(np.zeros(1, np.int64)))  # row 0 of the table belongs to the first position
        return op.RotaryEmbedding(x, first, cos, sin, num_heads=heads, _domain=CONTRIB)
    per_row = op.Concat(op.Shape(x, start=0, end=1), [1, 1], axis=0)  # this operator wants a table for every batch row
    return op.RotaryEmbedding(x, op.Expand(cos, per_row), op.Expand(sin, per_row), num_heads=heads)


def mrope_tables(op: Op, style: Style, position_ids: Value, theta: float, sections: list[int]) -> tuple[Value, Value]:
    """Cosine and sine `(S, head_dim / 2)` of TMRoPE for `position_ids (3, S)` (time, height, width).

    Frequency `i` turns with the time, height or width id, by the section it lies in (arXiv 2503.20215, section 2.1).
    Angles are computed in float32 whatever the style: a half float cannot tell positions above 2048 apart.
    """
    half = sum(sections)
    exponents = np.arange(0, 2 * half, 2, dtype=np.float32) / np.float32(2 * half)
    frequencies = (1.0 / theta**exponents).astype(np.float32)
    per_axis = np.zeros((3, 1, half), np.float32)  # one-hot over axes, so that a sum selects each frequency's axis
    start = 0
    for index, width in enumerate(sections):
        per_axis[index % 3, 0, start : start + width] = frequencies[start : start + width]
        start += width
    positions = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), [2])  # (3, S, 1)
    angles = op.ReduceSum(op.Mul(positions, op.Constant(value=ir.tensor(per_axis))), [0], keepdims=0)
    return op.Cast(op.Cos(angles), to=style.dtype), op.Cast(op.Sin(angles), to=style.dtype)


POSITION_IDS = Port("position_ids", INT64, (3, "positions"))
"""Input of both decoders: TMRoPE ids, rows time, height, width."""
