"""Round-to-nearest: the plainest 4-bit quantization, with no calibration data.

Inputs: a weight `(N, K)`, float32 → outputs: its codes, scales and zero points (`packing.QuantizedWeight`). No weight
is off by more than half the scale of its group.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .packing import QuantizedWeight

_LEVELS = 15  # 4 bits: codes 0 … 15
_ROWS_AT_ONCE = 512  # temporaries of a block, 512 × 18944 × 4 bytes = 39 MB each


def round_to_nearest(
    weight: npt.NDArray[np.float32], group_size: int, scale_dtype: npt.DTypeLike = np.float32
) -> QuantizedWeight:
    """Quantize `weight (N, K)` to 4 bits, asymmetric, a scale and a zero point for each group of `group_size` inputs.

    Scales are rounded to `scale_dtype` before codes are chosen, so that the codes fit the scales that are stored.
    Raises `QuantizationError` when the weight is not finite, the group size is not a positive even number, or a scale
    is too large for `scale_dtype`.
    """
    if group_size < 2 or group_size % 2:
        raise QuantizationError(f"group size {group_size}: expected a positive even number; 128 is usual")
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, groups), scale_dtype)
    zeros = np.empty((rows, groups), np.uint8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        codes[block], scales[block], zeros[block] = _quantize_rows(weight[block], group_size, scale_dtype)
    return QuantizedWeight(codes, scales, zeros, group_size)


def _quantize_rows(
    weight: npt.NDArray[np.float32], group_size: int, scale_dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.floating], npt.NDArray[np.float32]]:
    """Codes `(n, K)`, scales `(n, G)` and zero points `(n, G)` of some rows; codes and zero points still as floats."""
    if not np.isfinite(weight).all():
        raise QuantizationError(
            f"a weight of {weight.shape[1]} inputs holds NaN or infinity; the checkpoint is damaged: download it again"
        )
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % group_size)))
    groups = padded.reshape(rows, -1, group_size)  # (n, G, group_size)
    low = np.minimum(groups.min(axis=2), 0.0)  # 0 is always in range: it is the padding, and must be exact
    high = np.maximum(groups.max(axis=2), 0.0)
    stored = _stored_scales(high / _LEVELS - low / _LEVELS, scale_dtype)  # (n, G)
    scales = stored.astype(np.float32)
    zeros = np.rint(-low / scales)
    codes = np.rint(groups / scales[:, :, None])
    codes += zeros[:, :, None]
    # Where both ends of a range fall half-way between codes, both round outwards: one code too many.
    np.clip(codes, 0, _LEVELS, out=codes)
    return codes.reshape(rows, -1)[:, :columns], stored, zeros


def _stored_scales(scales: npt.NDArray[np.float32], dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """Round up to the stored type, so that 15 steps cover the range; a group of zeros gets 1, and no scale vanishes."""
    floor = np.finfo(np.dtype(dtype)).tiny
    wanted = np.where(scales > 0, np.maximum(scales, floor), np.float32(1))
    with np.errstate(over="ignore"):  # found below
        stored: npt.NDArray[np.floating] = wanted.astype(dtype)
    stored = np.where(stored < wanted, np.nextafter(stored, stored.dtype.type(np.inf)), stored)
    if not np.isfinite(stored).all():
        raise QuantizationError(
            f"a scale of {float(wanted.max()):.3g} does not fit {stored.dtype}; export with 32-bit floats"
        )
    return stored
