"""GPTQ: columns are rounded one after another, and those still to come make up for the error (arXiv 2210.17323).

Inputs: a weight `(N, K)`, the second moments of its inputs (`hessian.Factor`) → outputs: its codes, scales and
zero points (`packing.QuantizedWeight`).

The paper updates all weights to come with rows of the inverse Hessian's factor. Here no inverse is formed: with
`H = R · Rᵀ`, R upper triangular, errors e of a row cost `‖e · R‖²`, and component j of `e · R` is
`e_j · R_jj + Σ_{i<j} e_i · R_ij`. Once the errors before j are known, the column's best target is
`w_j + Σ_{i<j} e_i · R_ij / R_jj`: the same number as the paper's, from the factor alone.

Beyond the paper:

- Columns are visited by falling diagonal of H, but groups, scales and zero points are those of the columns in their
  own places ("static act-order"): no reordering is left for run time.
- Ranges are clipped where that pays (`clipping.py`), an error in column j costing `R_jj²`.
- Afterwards every code is chosen again, given all others (coordinate descent; QuantEase, arXiv 2309.01885). No such
  step can make the error on the calibration data larger.
- `awq.scales_for_gptq` finds scales beforehand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .clipping import FINE, WHOLE, fit_groups
from .grid import Array, Grid, checked
from .hessian import Factor
from .packing import Codes, QuantizedWeight

_BLOCK = 128  # columns whose errors are gathered before they reach the columns behind
_ROWS_AT_ONCE = 512  # rows are independent: this many at a time, 512 × 18944 × 4 bytes = 39 MB an array


def gptq(
    weight: npt.NDArray[np.floating[Any]], factor: Factor, grid: Grid, *, clip: bool = True, sweeps: int = 1
) -> QuantizedWeight:
    """Quantize `weight (N, K)`; linears that share their input share the factor, which is left as it is.

    `sweeps` of coordinate descent follow. Time is about `(0.5 + sweeps) · N · K²` multiply-adds; memory, beside the
    factor's `K² · 4` bytes, the weight and its codes, is about `10 · K` KB.

    Raises `QuantizationError` when shapes do not agree, the weight is not finite, or a scale does not fit the stored
    type.
    """
    weight = checked(weight)
    rows, columns = weight.shape
    if factor.columns != columns:
        raise QuantizationError(
            f"second moments of {factor.columns} inputs for a weight of {columns}: expected those of the same layer"
        )
    importance = factor.importance()
    by_group = [importance[inputs] for _, inputs in grid.groups(columns)]
    scales = np.empty((rows, len(by_group)), grid.scale_dtype)
    zeros = np.empty(scales.shape, np.uint8)
    codes = np.empty((rows, columns), np.uint8)
    for start in range(0, rows, _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        scales[some], found = fit_groups(weight[some], grid, by_group, FINE if clip else WHOLE)
        zeros[some] = found
        at_work = _Rows(weight[some, factor.order].T, scales[some], found, factor.order // grid.group_size, grid)
        at_work.visit(factor.matrix)
        for _ in range(sweeps):
            at_work.descend(factor.matrix, factor.diagonal)
        codes[some, factor.order] = at_work.codes.T
    return QuantizedWeight(codes, scales, zeros, grid.group_size, grid.bits)


class _Rows:
    """Some rows of a weight at work, a column of it a row here: `(K, n)`, columns in the order they are visited."""

    def __init__(
        self, weight: Array, scales: npt.NDArray[Any], zeros: Array, groups: npt.NDArray[np.intp], grid: Grid
    ) -> None:
        self.weight = np.ascontiguousarray(weight)
        self.scales = np.ascontiguousarray(scales.T.astype(np.float32))  # (G, n)
        self.zeros = np.ascontiguousarray(zeros.T)
        self.groups, self.grid = groups, grid
        self.codes: Codes = np.empty(weight.shape, np.uint8)
        self.errors: Array = np.empty(weight.shape, np.float32)

    def visit(self, factor: Array) -> None:
        """Choose every code once, in order."""
        for block in self._blocks():
            before = slice(0, block.start)
            carried = factor[before, block].T @ self.errors[before]  # (block, n): Σ e_i · R_ij of earlier blocks
            corner = np.ascontiguousarray(factor[block, block].T)  # a row of it: R_ij of one j
            for j, column in enumerate(range(block.start, block.stop)):
                carried[j] += corner[j, :j] @ self.errors[block.start : column]
                carried[j] /= corner[j, j]
                self.errors[column] = self._choose(column, self.weight[column] + carried[j])

    def descend(self, lower: Array, diagonal: Array) -> None:
        """Choose every code again, given all others; `lower` has H below its diagonal."""
        for block in self._blocks():
            before, behind = slice(0, block.start), slice(block.stop, None)
            square = np.tril(lower[block, block], -1)
            square += square.T
            np.fill_diagonal(square, diagonal[block])
            slope = lower[block, before] @ self.errors[before]  # (block, n): e · H
            slope += square @ self.errors[block]
            slope += lower[behind, block].T @ self.errors[behind]
            change = np.empty_like(slope)
            for j, column in enumerate(range(block.start, block.stop)):
                slope[j] += square[j, :j] @ change[:j]
                slope[j] /= square[j, j]
                error = self._choose(column, self.weight[column] - self.errors[column] + slope[j])
                change[j] = error - self.errors[column]
            self.errors[block] += change

    def _choose(self, column: int, target: Array) -> Array:
        """Take the codes nearest to `target (n)` and return the errors that leaves."""
        scales, zeros = self.scales[self.groups[column]], self.zeros[self.groups[column]]
        codes = self.grid.codes(target, scales, zeros)
        self.codes[column] = codes
        errors: Array = self.weight[column] - (codes - zeros) * scales
        return errors

    def _blocks(self) -> list[slice]:
        columns = len(self.weight)
        return [slice(start, min(start + _BLOCK, columns)) for start in range(0, columns, _BLOCK)]
