"""Which values a quantized weight can take, and the scale and zero point of a group.

A grid of `bits` has the codes 0 … 2^bits − 1; a group of weights that share a scale and a zero point stands for
`(code − zero) · scale`. Asymmetric, the zero point is where 0 falls in the group's range; symmetric, it is the middle
code, 2^(bits − 1). Scales are strictly positive either way, as TensorRT asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError

Array = npt.NDArray[np.float32]
Stored = npt.NDArray[np.floating[Any]]
"""Scales in the type they are stored in."""


@dataclass(frozen=True)
class Grid:
    """The form of quantized weights: bits to a code, inputs to a group, zero points, the type of stored scales.

    Raises `QuantizationError` when the bits are not 4 or 8, the group size is not a positive even number, or the scales
    are not float16 or float32.
    """

    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    scale_dtype: npt.DTypeLike = np.float32

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise QuantizationError(f"{self.bits} bits: expected 4 or 8")
        if self.group_size < 2 or self.group_size % 2:
            raise QuantizationError(f"group size {self.group_size}: expected a positive even number; 128 is usual")
        if np.dtype(self.scale_dtype) not in (np.float16, np.float32):
            raise QuantizationError(f"scales of type {np.dtype(self.scale_dtype)}: expected float16 or float32")

    @property
    def highest(self) -> int:
        """The highest code."""
        return (1 << self.bits) - 1

    def group_count(self, columns: int) -> int:
        """Groups in a row of `columns` inputs; the last may be ragged."""
        return -(-columns // self.group_size)

    def groups(self, columns: int) -> Iterator[tuple[int, slice]]:
        """Yield each group's number and its columns."""
        for number in range(self.group_count(columns)):
            start = number * self.group_size
            yield number, slice(start, min(start + self.group_size, columns))

    def fit(self, low: Array, high: Array) -> tuple[Stored, Array]:
        """Return scales and zero points that cover `low … high` within half a scale; all arrays are of one shape.

        `low ≤ 0 ≤ high`: 0 must be a value of the grid, because padding and pruned weights are 0. Scales are rounded to
        the stored type here, before anybody chooses codes, so that the codes fit what is stored; they are rounded up,
        because a code beyond the last cannot be stored. Zero points come as float32. Raises `QuantizationError` when a
        scale does not fit the stored type.
        """
        if self.symmetric:
            middle = (self.highest + 1) // 2
            # Half a scale more than the codes reach: the outermost weight is then off by half a scale, like any other.
            wanted = np.maximum(high / np.float32(self.highest - middle + 0.5), -low / np.float32(middle + 0.5))
            return self._stored(wanted), np.full(low.shape, middle, np.float32)
        scales = self._stored(high / np.float32(self.highest) - low / np.float32(self.highest))
        return scales, np.rint(-low / scales.astype(np.float32))

    def codes(self, weight: Array, scales: Array, zeros: Array) -> Array:
        """Return the nearest codes, as float32; the three broadcast against each other."""
        codes: Array = np.rint(weight / scales)
        codes += zeros
        # Where both ends of a range fall half-way between codes, both round outwards: one code too many.
        np.clip(codes, 0, self.highest, out=codes)
        return codes

    def nearest(self, weight: Array, scales: Array, zeros: Array) -> Array:
        """Return the nearest values of the grid."""
        values = self.codes(weight, scales, zeros)
        values -= zeros
        values *= scales
        return values

    def _stored(self, wanted: Array) -> Stored:
        """Round up to the stored type; a group of zeros gets scale 1, and no scale vanishes."""
        dtype = np.dtype(self.scale_dtype)
        wanted = np.where(wanted > 0, np.maximum(wanted, np.finfo(dtype).tiny), np.float32(1))
        with np.errstate(over="ignore"):  # found below
            stored: Stored = wanted.astype(dtype)
        stored = np.where(stored < wanted, np.nextafter(stored, np.array(np.inf, dtype)), stored)
        if not np.isfinite(stored).all():
            raise QuantizationError(
                f"a scale of {float(wanted.max()):.3g} does not fit {dtype}; export with 32-bit floats"
            )
        return stored


def extremes(weight: Array) -> tuple[Array, Array]:
    """Return the lowest and the highest of `weight (…, columns)` along its last axis, 0 counted among them."""
    return np.minimum(weight.min(axis=-1), 0), np.maximum(weight.max(axis=-1), 0)


def checked_shape(weight: npt.NDArray[Any]) -> tuple[int, int]:
    """Return the shape `(N, K)` of a weight; raises `QuantizationError` when it is no matrix."""
    if weight.ndim != 2 or not weight.size:
        raise QuantizationError(f"a weight of shape {weight.shape}: expected a matrix (outputs, inputs)")
    return weight.shape[0], weight.shape[1]


def checked(weight: npt.NDArray[Any]) -> Array:
    """Return `weight (N, K)` as float32; raises `QuantizationError` when it is no matrix of finite numbers."""
    _, columns = checked_shape(weight)
    if not np.isfinite(weight).all():
        raise QuantizationError(
            f"a weight of {columns} inputs holds NaN or infinity; the checkpoint is damaged: download it again"
        )
    return weight.astype(np.float32, copy=False)
