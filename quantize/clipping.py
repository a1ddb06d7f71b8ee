"""Clipping: scales and zero points of ranges narrower than the weights, so that most lie closer to their codes.

Inputs: a weight `(N, K)`, how much an error in it matters → outputs: scales `(N, G)` and zero points `(N, G)`. For each
group of each row the range is shrunk step by step, then each of its sides alone, and the range whose rounding errors
matter least is kept.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from .grid import Array, Grid, Stored, extremes


def _shares(step: float) -> tuple[float, ...]:
    """Shares of a range from 9/8 to 1/2, less the whole range itself, which is always tried."""
    return tuple(share for share in np.arange(1.125, 0.49, -step).tolist() if share != 1)


FINEST, FINE, COARSE = _shares(1 / 64), _shares(1 / 32), _shares(1 / 8)
"""To round to nearest with; for GPTQ, which gains nothing from the finest; for a search that tries much else besides.

More than the whole range is among them: there the largest weight, often the one that matters most, is exact.
"""
WHOLE: tuple[float, ...] = ()
"""No clipping."""
_SIDES = (0.875, 0.75, 0.625, 0.5)
_ROWS_AT_ONCE = 2048  # 1 MB of a group of 128: what is computed stays in the cache of one core


def fit_groups(
    weight: Array, grid: Grid, importance: Sequence[Array], shares: Sequence[float] = FINE
) -> tuple[Stored, Array]:
    """Return `(scales, zeros)` of every group, both `(N, G)`; zero points as float32.

    `importance` holds an entry a group of g inputs: either a matrix `(g, g)`, and rounding errors e cost `e · matrix ·
    eᵀ`, or a vector `(g)` for a diagonal one. Raises `QuantizationError` when a scale does not fit the stored type.
    """
    rows, columns = weight.shape
    scales = np.empty((rows, grid.group_count(columns)), grid.scale_dtype)
    zeros = np.empty(scales.shape, np.float32)

    def fit(piece: tuple[int, slice, slice]) -> None:
        group, inputs, some = piece
        scales[some, group], zeros[some, group] = _fit_group(weight[some, inputs], grid, importance[group], shares)

    pieces = [
        (group, inputs, slice(start, start + _ROWS_AT_ONCE))
        for group, inputs in grid.groups(columns)
        for start in range(0, rows, _ROWS_AT_ONCE)
    ]
    # Little of the work is BLAS's: pieces have a core each, and BLAS that of the piece.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fit, pieces))
    return scales, zeros


def _fit_group(weight: Array, grid: Grid, importance: Array, shares: Sequence[float]) -> tuple[Stored, Array]:
    """Scales `(N)` and zero points `(N)` of one group `(N, g)`."""
    weight = np.ascontiguousarray(weight)
    low, high = extremes(weight)
    if not shares:
        return grid.fit(low, high)
    search = _Search(weight, grid, importance, low, high)
    for share in shares:
        search.attempt(low * np.float32(share), high * np.float32(share))
    if not grid.symmetric:  # outliers are often on one side
        low, high = search.low, search.high
        for share in _SIDES:
            search.attempt(low * np.float32(share), high)
            search.attempt(low, high * np.float32(share))
    return search.scales, search.zeros


class _Search:
    """The best ranges of a group so far, row by row, from the whole range on."""

    def __init__(self, weight: Array, grid: Grid, importance: Array, low: Array, high: Array) -> None:
        self._weight, self._grid, self._importance = weight, grid, importance
        self.low, self.high = low, high
        self.scales, self.zeros = grid.fit(low, high)
        self._least = _cost(weight, grid, importance, self.scales, self.zeros)

    def attempt(self, low: Array, high: Array) -> None:
        """Keep these ranges where they cost less."""
        scales, zeros = self._grid.fit(low, high)
        cost = _cost(self._weight, self._grid, self._importance, scales, zeros)
        better = cost < self._least
        self._least = np.where(better, cost, self._least)
        self.low, self.high = np.where(better, low, self.low), np.where(better, high, self.high)
        self.scales, self.zeros = np.where(better, scales, self.scales), np.where(better, zeros, self.zeros)


def _cost(weight: Array, grid: Grid, importance: Array, scales: Stored, zeros: Array) -> Array:
    error = grid.nearest(weight, scales.astype(np.float32)[:, None], zeros[:, None])
    error -= weight
    if importance.ndim == 1:
        error *= error
        cost: Array = error @ importance
    else:
        cost = np.einsum("nk,nk->n", error @ importance, error)
    return cost
