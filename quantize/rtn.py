"""Round-to-nearest: the plainest 4-bit quantization, with no calibration data."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .packing import QuantizedWeight

_LEVELS = 15  # 4 bits: codes 0 … 15


def round_to_nearest(
    weight: npt.NDArray[np.float32], group_size: int, scale_dtype: npt.DTypeLike = np.float32
) -> QuantizedWeight:
    """Quantize `weight (N, K)` to 4 bits, asymmetric, a scale and a zero point for each group of `group_size` inputs.

    Scales are rounded to `scale_dtype` before codes are chosen, so that the codes fit the scales that are stored.
    Raises `QuantizationError` when the weight is not finite or the group size is not a positive even number.
    """
    if group_size < 2 or group_size % 2:
        raise QuantizationError(f"group size {group_size}: expected a positive even number; 128 is usual")
    if not np.isfinite(weight).all():
        raise QuantizationError(
            f"weight of shape {weight.shape} holds NaN or infinity; the checkpoint is damaged: download it again"
        )
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :columns] = weight
    blocks = padded.reshape(rows, groups, group_size)  # (N, G, group_size)

    low = np.minimum(blocks.min(axis=2), 0.0)
    high = np.maximum(blocks.max(axis=2), 0.0)
    scales = _positive_scales((high - low) / _LEVELS, scale_dtype)  # (N, G)
    zeros = np.clip(np.rint(-low / scales), 0, _LEVELS)
    codes = np.clip(np.rint(blocks / scales[:, :, None]) + zeros[:, :, None], 0, _LEVELS)
    return QuantizedWeight(
        codes=codes.astype(np.uint8).reshape(rows, -1)[:, :columns],
        scales=scales.astype(scale_dtype),
        zeros=zeros.astype(np.uint8),
        group_size=group_size,
    )


def _positive_scales(scales: npt.NDArray[np.float32], dtype: npt.DTypeLike) -> npt.NDArray[np.float32]:
    """Round to the stored type; a group of zeros gets scale 1, and no scale may vanish in the rounding."""
    info = np.finfo(np.dtype(dtype))
    smallest: Any = info.tiny
    stored = np.where(scales > 0, np.maximum(scales, smallest), 1.0).astype(dtype)
    return stored.astype(np.float32)
