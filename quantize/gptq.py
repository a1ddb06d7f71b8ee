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
- Afterwards every code is chosen again, given all others (coordinate descent; QuantEase, arXiv 2309.01885), and each
  group's scale, given the codes: a least-squares fit. No such step can make the error on the calibration data larger.
- `awq.scales_for_gptq` finds scales beforehand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .clipping import FINE, WHOLE, fit_groups
from .grid import Array, Grid, Stored, checked
from .hessian import Factor
from .packing import Codes, QuantizedWeight

_BLOCK = 128  # columns whose errors are gathered before they reach the columns behind
_TINY = np.float32(1e-30)
_ROWS_AT_ONCE = 2048  # rows are independent: this many at a time, 2048 × 18944 × 4 bytes = 155 MB an array


def gptq(
    weight: npt.NDArray[np.floating[Any]], factor: Factor, grid: Grid, *, clip: bool = True, sweeps: int = 2
) -> QuantizedWeight:
    """Quantize `weight (N, K)`; linears that share their input share the factor, which is left as it is.

    `sweeps` of coordinate descent follow. Time is about `(0.5 + sweeps) · N · K²` multiply-adds; memory, beside the
    factor's `K² · 4` bytes, the weight and its codes, is about `30 · K` KB.

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
        fitted, zeros[some] = fit_groups(weight[some], grid, by_group, FINE if clip else WHOLE)
        at_work = _Rows(weight[some], fitted, zeros[some], factor.order, grid)
        at_work.visit(factor.matrix)
        for _ in range(sweeps):
            at_work.descend(factor.matrix, factor.diagonal)
        codes[some, factor.order] = at_work.codes.T
        scales[some] = at_work.scales.T
    return QuantizedWeight(codes, scales, zeros, grid.group_size, grid.bits)


class _Rows:
    """Some rows of a weight at work, a column of it a row here: `(K, n)`, columns in the order they are visited."""

    def __init__(self, weight: Array, scales: Stored, zeros: Codes, order: npt.NDArray[np.intp], grid: Grid) -> None:
        self.weight = np.ascontiguousarray(weight[:, order].T)
        self.scales = np.ascontiguousarray(scales.T.astype(np.float32))  # (G, n), values of the stored type
        self.zeros = np.ascontiguousarray(zeros.T.astype(np.float32))
        self.order, self.groups, self.grid = order, order // grid.group_size, grid
        self.codes: Codes = np.empty(self.weight.shape, np.uint8)
        self.errors: Array = np.empty(self.weight.shape, np.float32)

    def visit(self, factor: Array) -> None:
        """Choose every code once, in order."""
        columns = len(self.weight)
        for start in range(0, columns, _BLOCK):
            before, block = slice(0, start), slice(start, min(start + _BLOCK, columns))
            carried = factor[before, block].T @ self.errors[before]  # (block, n): Σ e_i · R_ij of earlier blocks
            corner = np.ascontiguousarray(factor[block, block].T)  # a row of it: R_ij of one j
            for j, column in enumerate(range(block.start, block.stop)):
                carried[j] += corner[j, :j] @ self.errors[block.start : column]
                carried[j] /= corner[j, j]
                self.errors[column] = self._choose(column, self.weight[column] + carried[j])

    def descend(self, lower: Array, diagonal: Array) -> None:
        """Choose every code again, given all others, group by group; and the scales of these groups, given their codes.

        `lower` has H below its diagonal.
        """
        places = np.argsort(self.order)
        neighbours = max(1, _BLOCK // self.grid.group_size) * self.grid.group_size  # whole groups
        for start in range(0, len(places), neighbours):
            columns = np.sort(places[start : start + neighbours])
            for first in range(0, len(columns), _BLOCK):
                self._descend(columns[first : first + _BLOCK], lower, diagonal)

    def _descend(self, columns: npt.NDArray[np.intp], lower: Array, diagonal: Array) -> None:
        moments = _rows_of(lower, diagonal, columns)  # (block, K)
        square = moments[:, columns]
        slope = moments @ self.errors  # (block, n): e · H
        change = np.empty_like(slope)
        for j, column in enumerate(columns):
            descent = (slope[j] + square[j, :j] @ change[:j]) / square[j, j]
            error = self._choose(column, self.weight[column] - self.errors[column] + descent)
            change[j] = error - self.errors[column]
        self.errors[columns] += change
        slope += square @ change
        for group in np.unique(self.groups[columns]):
            own = np.flatnonzero(self.groups[columns] == group)
            if len(own) == np.count_nonzero(self.groups == group):  # of larger groups there is only a part
                slope -= square[:, own] @ self._fit_scales(group, columns[own], slope[own], square[np.ix_(own, own)])

    def _fit_scales(self, group: int, columns: npt.NDArray[np.intp], slope: Array, square: Array) -> Array:
        """Take the scales `(n)` of a group that leave the least error; returns by how much errors `(g, n)` fell."""
        steps = self.codes[columns] - self.zeros[group]
        gain = (steps * slope).sum(0)
        curvature = (steps * (square @ steps)).sum(0)
        scales = self.scales[group]
        with np.errstate(over="ignore"):  # such a one is not taken
            fitted = (scales + gain / np.maximum(curvature, _TINY)).astype(self.grid.scale_dtype).astype(np.float32)
        change = np.where((fitted > 0) & np.isfinite(fitted), fitted - scales, 0)
        change[change * change * curvature >= 2 * change * gain] = 0  # rounded to the stored type, it was no better
        self.scales[group] += change
        taken: Array = steps * change
        self.errors[columns] -= taken
        return taken

    def _choose(self, column: int, target: Array) -> Array:
        """Take the codes nearest to `target (n)` and return the errors that leaves."""
        scales, zeros = self.scales[self.groups[column]], self.zeros[self.groups[column]]
        codes = self.grid.codes(target, scales, zeros)
        self.codes[column] = codes
        errors: Array = self.weight[column] - (codes - zeros) * scales
        return errors


def _rows_of(lower: Array, diagonal: Array, rows: npt.NDArray[np.intp]) -> Array:
    """Some rows `(n, K)` of a symmetric matrix of which there is only what is below the diagonal, and the diagonal."""
    found = np.where(np.arange(len(diagonal)) < rows[:, None], lower[rows], lower[:, rows].T)
    found[np.arange(len(rows)), rows] = diagonal[rows]
    return found
