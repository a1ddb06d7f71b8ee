"""A quantized weight and the byte layouts it is stored in.

A weight `(N, K)` (outputs, inputs) is cut along K into groups of `group_size`; each group of each row has a scale and a
zero point, and `weight ≈ (code − zero) · scale`. The last group may be ragged: K need not be a multiple of the group
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class QuantizedWeight:
    """An unpacked 4-bit weight: `codes (N, K)`, `scales (N, G)`, `zeros (N, G)`, with `G = ceil(K / group_size)`."""

    codes: Codes
    scales: Floats
    zeros: Codes
    group_size: int

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the float32 weight `(N, K)` these codes stand for."""
        columns = self.codes.shape[1]
        scales = np.repeat(self.scales.astype(np.float32), self.group_size, axis=1)[:, :columns]
        zeros = np.repeat(self.zeros.astype(np.float32), self.group_size, axis=1)[:, :columns]
        return (self.codes.astype(np.float32) - zeros) * scales


def pack_matmul_nbits(weight: QuantizedWeight) -> tuple[Codes, Floats, Codes]:
    """Pack for the contrib operator MatMulNBits.

    Returns `B (N, G, group_size / 2)`, `scales (N, G)`, `zero_points (N, ceil(G / 2))`; low nibble first, a ragged last
    group padded with its zero point (so that padding stands for 0).
    """
    rows, columns = weight.codes.shape
    groups = weight.scales.shape[1]
    padding = groups * weight.group_size - columns
    codes = weight.codes
    if padding:
        codes = np.concatenate([codes, np.repeat(weight.zeros[:, -1:], padding, axis=1)], axis=1)
    packed = pack_nibbles(codes).reshape(rows, groups, weight.group_size // 2)
    return packed, weight.scales, pack_nibbles(weight.zeros)


def pack_dequantize_linear(weight: QuantizedWeight) -> tuple[Codes, Floats, Codes]:
    """Pack for the standard operator DequantizeLinear with `axis=0`, `block_size=group_size`, type uint4.

    Returns the raw bytes of `codes (K, N)`, then `scales (G, N)`, then the raw bytes of `zeros (G, N)`.
    """
    codes = np.ascontiguousarray(weight.codes.T)
    zeros = np.ascontiguousarray(weight.zeros.T)
    return (
        pack_nibbles(codes.reshape(1, -1))[0],
        np.ascontiguousarray(weight.scales.T),
        pack_nibbles(zeros.reshape(1, -1))[0],
    )


def pack_nibbles(codes: Codes) -> Codes:
    """Pack 4-bit values two a byte along the last axis, low nibble first; an odd count is padded with 0."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
