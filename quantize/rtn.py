"""Round-to-nearest: the plainest quantization, with no calibration data.

Inputs: a weight `(N, K)` → outputs: its codes, scales and zero points (`packing.QuantizedWeight`). No weight is off by
more than half the scale of its group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .grid import Array, Grid, Stored, checked, checked_shape, extremes
from .packing import QuantizedWeight

_ROWS_AT_ONCE = 512  # temporaries of a block, 512 × 18944 × 4 bytes = 39 MB each


def round_to_nearest(weight: npt.NDArray[np.floating[Any]], grid: Grid) -> QuantizedWeight:
    """Quantize `weight (N, K)`, each group over its whole range.

    Works in blocks of rows: beside the weight and its codes it holds little. Raises `QuantizationError` when the weight
    is not finite or a scale is too large for the stored type.
    """
    rows, columns = checked_shape(weight)
    groups = grid.group_count(columns)
    codes = np.empty((rows, columns), np.uint8)
    scales = np.empty((rows, groups), grid.scale_dtype)
    zeros = np.empty((rows, groups), np.uint8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        codes[block], scales[block], zeros[block] = _quantize_rows(checked(weight[block]), grid)
    return QuantizedWeight(codes, scales, zeros, grid.group_size, grid.bits)


def _quantize_rows(weight: Array, grid: Grid) -> tuple[Array, Stored, Array]:
    """Codes `(n, K)`, scales `(n, G)` and zero points `(n, G)` of some rows; codes and zero points still as floats."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % grid.group_size)))
    groups = padded.reshape(rows, -1, grid.group_size)  # (n, G, group_size)
    scales, zeros = grid.fit(*extremes(groups))  # (n, G)
    codes = grid.codes(groups, scales.astype(np.float32)[:, :, None], zeros[:, :, None])
    return codes.reshape(rows, -1)[:, :columns], scales, zeros
