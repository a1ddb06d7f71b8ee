"""A quantized weight, and the byte layouts in which operators of a graph take it (those of files: `formats.py`).

A weight `(N, K)` (outputs, inputs) is cut along K into groups of `group_size`; each group of each row has a scale and a
zero point, and `weight ≈ (code − zero) · scale`. The last group may be ragged: K need not be a multiple of the group
size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int32]

_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128


@dataclass(frozen=True)
class QuantizedWeight:
    """An unpacked weight of 4 or 8 bits: `codes (N, K)`, `scales (N, G)`, `zeros (N, G)`, `G = ceil(K / group_size)`.

    Codes and zero points are below `2 ** bits`.
    """

    codes: Codes
    scales: Floats
    zeros: Codes
    group_size: int
    bits: int = 4
    group_index: Indices | None = None
    """`(K)`: the group each input belongs to, where that is not its place divided by the group size (GPTQ's `g_idx`
    after act-order)."""

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle code, `2 ** (bits − 1)`."""
        return bool((self.zeros == 1 << (self.bits - 1)).all())

    def column_groups(self) -> Indices:
        """Return the group of each input `(K)`."""
        if self.group_index is not None:
            return self.group_index
        return np.arange(self.codes.shape[1], dtype=np.int32) // np.int32(self.group_size)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the float32 weight `(N, K)` these codes stand for."""
        groups = self.column_groups()
        weight = self.codes.astype(np.float32)
        weight -= self.zeros[:, groups]  # in place: a vocabulary's head is gigabytes
        weight *= self.scales.astype(np.float32)[:, groups]
        return weight

    def in_group_order(self) -> tuple[QuantizedWeight, Indices | None]:
        """Return the weight with the inputs of each group side by side, and the order that does it.

        `order (K)` is None when they already are; else `x[..., order] · sortedᵀ = x · weightᵀ`. Raises
        `QuantizationError` when a group other than the last does not have `group_size` inputs.
        """
        if self.group_index is None:
            return self, None
        order = np.argsort(self.group_index, kind="stable").astype(np.int32)
        expected = np.arange(len(order), dtype=np.int32) // np.int32(self.group_size)
        if not np.array_equal(self.group_index[order], expected):
            raise QuantizationError(
                f"the group index does not divide {len(order)} inputs into groups of {self.group_size}"
            )
        return replace(self, codes=self.codes[:, order], group_index=None), order

    def of_rows(self, rows: npt.NDArray[np.integer[Any]] | slice) -> QuantizedWeight:
        """Return the weight of these outputs, in this order."""
        return replace(self, codes=self.codes[rows], scales=self.scales[rows], zeros=self.zeros[rows])

    def in_blocks(self, size: int) -> QuantizedWeight:
        """Return the same weight in groups of `size`, which divides the group size (or the group is a whole row)."""
        if size == self.group_size:
            return self
        _check_order(self)
        groups = np.arange(-(-self.codes.shape[1] // size)) * size // self.group_size
        return replace(self, scales=self.scales[:, groups], zeros=self.zeros[:, groups], group_size=size)


def block_size(group_size: int, columns: int) -> int:
    """Return the size of a block in a graph, for a weight in groups of `group_size`.

    Operators want powers of two from 16 on (MatMulNBits), and all providers know 128: a larger group is several blocks
    with one scale. Raises `QuantizationError` where no such block divides the group.
    """
    size = group_size & -group_size  # the largest power of two that divides it
    if size >= _SMALLEST_BLOCK:
        return min(size, _LARGEST_BLOCK)
    if group_size >= columns:
        return _LARGEST_BLOCK
    raise QuantizationError(
        f"groups of {group_size} inputs have no place in a graph; {_SMALLEST_BLOCK} or a multiple of it has"
    )


def pack_matmul_nbits(weight: QuantizedWeight) -> tuple[Codes, Floats, Codes]:
    """Pack for the contrib operator MatMulNBits; the inputs must be in group order.

    Returns, for 4 bits, `B (N, G, group_size / 2)`, `scales (N, G)`, `zero_points (N, ceil(G / 2))`, low nibble first;
    for 8 bits `B (N, G, group_size)` and `zero_points (N, G)`. A ragged last group is padded with its zero point (so
    that padding stands for 0).
    """
    _check_order(weight)
    rows, columns = weight.codes.shape
    groups = weight.scales.shape[1]
    padding = groups * weight.group_size - columns
    codes = weight.codes
    if padding:
        codes = np.concatenate([codes, np.repeat(weight.zeros[:, -1:], padding, axis=1)], axis=1)
    if weight.bits == 8:
        return codes.reshape(rows, groups, weight.group_size), weight.scales, weight.zeros
    packed = pack_nibbles(codes).reshape(rows, groups, weight.group_size // 2)
    return packed, weight.scales, pack_nibbles(weight.zeros)


def pack_dequantize_linear(weight: QuantizedWeight) -> tuple[Codes, Floats, Codes]:
    """Pack for the standard operator DequantizeLinear with `axis=0`, `block_size=group_size`, type uint4 or uint8.

    Returns `codes (K, N)`, `scales (G, N)`, `zeros (G, N)`; with 4 bits, codes and zeros are the raw bytes of those
    shapes, two values a byte. The inputs must be in group order.
    """
    _check_order(weight)
    return _transposed(weight, weight.codes), np.ascontiguousarray(weight.scales.T), _transposed(weight, weight.zeros)


def pack_dequantize_linear_symmetric(weight: QuantizedWeight) -> tuple[npt.NDArray[np.int8] | Codes, Floats]:
    """Pack for DequantizeLinear without zero points, type int4 or int8: what TensorRT takes.

    Returns `codes (K, N)` less the middle code (raw bytes with 4 bits, as above) and `scales (G, N)`. Raises
    `QuantizationError` unless the weight is symmetric and its scales are strictly positive, as TensorRT demands.
    """
    _check_order(weight)
    if not weight.symmetric:
        raise QuantizationError(
            f"a weight with zero points other than {1 << (weight.bits - 1)} cannot be stored without them; "
            "quantize symmetrically"
        )
    if not (weight.scales > 0).all():
        raise QuantizationError(f"a symmetric weight has a scale of {weight.scales.min()}; TensorRT takes only above 0")
    # Less the middle code, in two's complement: its highest bit the other way.
    codes = _transposed(weight, weight.codes ^ np.uint8(1 << (weight.bits - 1)))
    return codes.view(np.int8) if weight.bits == 8 else codes, np.ascontiguousarray(weight.scales.T)


def pack_nibbles(codes: Codes) -> Codes:
    """Pack 4-bit values two a byte along the last axis, low nibble first; an odd count is padded with 0."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack_nibbles(packed: Codes, count: int) -> Codes:
    """Undo `pack_nibbles`: the first `count` values of the last axis."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    np.bitwise_and(packed, 0xF, out=codes[..., 0::2])
    np.right_shift(packed, 4, out=codes[..., 1::2])
    return codes[..., :count]


def _transposed(weight: QuantizedWeight, codes: Codes) -> Codes:
    """`codes` with inputs first, as uint8 or as the raw bytes of 4-bit values."""
    codes = np.ascontiguousarray(codes.T)
    return codes if weight.bits == 8 else pack_nibbles(codes.reshape(1, -1))[0]


def _check_order(weight: QuantizedWeight) -> None:
    if weight.group_index is not None:
        raise QuantizationError("the inputs of a group are not side by side; take `in_group_order()` first")
