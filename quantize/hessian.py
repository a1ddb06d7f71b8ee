"""What calibration data says of a linear layer: the second moments of its inputs, and their triangular factor.

Inputs: activations `(T, K)` → outputs: `H = Σ x · xᵀ (K, K)`, float32; its factor R, upper triangular, `H = R · Rᵀ`. An
error e `(K)` in a row of the weight costs `e · H · eᵀ = ‖e · R‖²` at the layer's output. The scale of H plays no part.

H of a layer of 18944 inputs (the widest of 7B) takes 1.4 GB, so everything here works in place and in blocks: beside
the matrix it needs some `K × 256 × 4` bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .grid import Array

_BLOCK = 256
_DAMPING = 0.03
_NORMAL_KURTOSIS = 3.0


class Hessian:
    """Sum of `x · xᵀ` over the inputs x of a layer of K inputs, batch by batch."""

    def __init__(self, columns: int) -> None:
        self.columns, self.samples = columns, 0
        self._sum = np.zeros((columns, columns), np.float32)  # only the lower triangle is kept up to date
        self._fourth = np.zeros(columns)

    def add(self, activations: npt.NDArray[np.floating[Any]]) -> None:
        """Take in a batch `(T, K)`; raises `QuantizationError` when it is of another width or not finite."""
        x = checked_activations(activations, self.columns)
        for block in _blocks(self.columns):
            self._sum[block, : block.stop] += x[:, block].T @ x[:, : block.stop]
            self._fourth[block] += np.square(np.square(x[:, block], dtype=np.float64)).sum(0)
        self.samples += len(x)

    def kurtosis(self) -> npt.NDArray[np.float64]:
        """How heavy the tails of each input `(K)` are, `T · Σx⁴ / (Σx²)²`; 0 of one that was always 0.

        It is 3 of a normally distributed one, and around 100 behind a gated activation, where a few samples make up
        most of the moments.
        """
        squares = np.diagonal(self._sum).astype(np.float64)
        return np.divide(self.samples * self._fourth, squares**2, out=np.zeros(self.columns), where=squares > 0)

    def matrix(self) -> Array:
        """Return H `(K, K)`, symmetric: this object's own memory, not a copy."""
        for block in _blocks(self.columns):
            self._sum[: block.start, block] = self._sum[block, : block.start].T
            square = self._sum[block, block]
            square[:] = np.tril(square) + np.tril(square, -1).T
        return self._sum

    def take(self) -> Array:
        """Return H as `matrix` does, to be overwritten; this object is then empty."""
        matrix = self.matrix()
        self._sum, self.columns, self.samples = np.zeros((0, 0), np.float32), 0, 0
        return matrix


def checked_activations(activations: npt.NDArray[np.floating[Any]], columns: int) -> Array:
    """Return activations `(T, K)` as float32; raises `QuantizationError` when of another width or not finite."""
    if activations.ndim != 2 or activations.shape[1] != columns:
        raise QuantizationError(
            f"activations of shape {activations.shape} for a layer of {columns} inputs: expected (tokens, {columns})"
        )
    if not np.isfinite(activations).all():
        raise QuantizationError(
            f"activations of a layer of {columns} inputs hold NaN or infinity; the model is damaged or overflows in "
            "16 bits: calibrate with 32-bit floats"
        )
    return activations.astype(np.float32, copy=False)


class Factor:
    """H of a layer, damped, with its columns in the order they are visited, and its factor R, `H = R · Rᵀ`.

    Both share one matrix `(K, K)`: R in its upper triangle and diagonal, H below. Damping adds to each diagonal element
    a share of itself and of the median element. (GPTQ's paper adds a share of the mean, which a few inputs of large
    values raise until all others drown in it.) An element found from T samples is off by about `√(kurtosis / T)` of
    itself; in proportion to that it is damped.
    """

    def __init__(
        self, hessian: Hessian, *, act_order: bool = True, damping: float | None = None, overwrite: bool = False
    ) -> None:
        """Factorize H, in `K³ / 3` multiply-adds; with `overwrite` in its own memory, which leaves `hessian` empty.

        `act_order` visits columns by falling diagonal. `damping` is the share that is added, by default `0.03 ·
        √(K / T · kurtosis / 3)` of each input. Raises `QuantizationError` when there are fewer samples than an eighth
        of the inputs, all activations are 0, or the damping is too small for H.
        """
        _check_samples(hessian)
        if damping is None:
            shares = _DAMPING * np.sqrt(hessian.kurtosis() / _NORMAL_KURTOSIS * hessian.columns / hessian.samples)
        else:
            shares = np.full(hessian.columns, damping)
        matrix = hessian.take() if overwrite else hessian.matrix().copy()
        diagonal = _damped_diagonal(matrix, shares)
        np.fill_diagonal(matrix, diagonal)
        self.order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(diagonal))
        _permute(matrix, self.order)
        _factorize(matrix)
        self.matrix, self.diagonal = matrix, diagonal[self.order]
        self.columns = len(diagonal)

    def importance(self) -> Array:
        """Return `R_jj²` of each input `(K)`, inputs in their own order.

        An error in column j costs `R_jj²` once all columns behind it have made up for what they can. Rounding errors
        that are chosen in order are about independent, so that they cost the sum of these.
        """
        importance = np.empty(len(self.order), np.float32)
        importance[self.order] = np.diagonal(self.matrix) ** 2
        return importance

    def divide(self, scales: Array) -> None:
        """Turn this into the factor for inputs divided by `scales (K)`; order and damping stay as they are."""
        ordered = scales[self.order]
        self.diagonal /= ordered * ordered
        for block in _blocks(len(ordered)):
            rows = self.matrix[block]
            rows /= ordered[block, None]
            rows[:, : block.start] /= ordered[: block.start]
            corner = np.tril(np.broadcast_to(ordered[block], (len(rows), len(rows))), -1)
            rows[:, block] /= np.where(corner > 0, corner, 1)


def _check_samples(hessian: Hessian) -> None:
    least = -(-hessian.columns // 8)
    if hessian.samples < least or not hessian.columns:
        raise QuantizationError(
            f"{hessian.samples} tokens of calibration data for a layer of {hessian.columns} inputs: expected at least "
            f"{least}, and {hessian.columns * 4} to do well; calibrate with more data"
        )


def _damped_diagonal(matrix: Array, shares: npt.NDArray[np.float64]) -> Array:
    """The diagonal with damping; an input that was always 0 gets the median, so that its weights are just rounded."""
    diagonal = np.diagonal(matrix).copy()
    active = diagonal > 0
    if not active.any():
        raise QuantizationError(
            f"all activations of a layer of {len(diagonal)} inputs are 0: calibrate with data that reaches it"
        )
    median = np.median(diagonal[active])
    diagonal[~active] = median
    damped: Array = diagonal + shares.astype(np.float32) * (diagonal + median)
    return damped


def _permute(matrix: Array, order: npt.NDArray[np.intp]) -> None:
    """Bring rows and columns of a square matrix into `order`, in place."""
    for block in _blocks(len(order)):
        matrix[block] = matrix[block][:, order]
    for block in _blocks(len(order)):
        matrix[:, block] = matrix[order, block]


def _factorize(matrix: Array) -> None:
    """Put R, `matrix = R · Rᵀ`, into the upper triangle of a symmetric matrix, diagonal included; leave the rest.

    A Cholesky decomposition that begins at the last column; an inverse is taken of blocks on the diagonal alone.
    """
    for block in reversed(list(_blocks(len(matrix)))):
        done = slice(block.stop, None)
        panel = matrix[: block.stop, block] - matrix[: block.stop, done] @ matrix[block, done].T
        square = panel[block].astype(np.float64)
        try:
            corner = np.linalg.cholesky(square[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError as error:
            raise QuantizationError(
                f"the second moments of {len(matrix)} inputs are not positive definite: raise the damping, or "
                "calibrate with more data"
            ) from error
        matrix[: block.start, block] = panel[: block.start] @ np.linalg.inv(corner).T.astype(np.float32)
        upper = np.triu_indices(len(corner))
        matrix[block, block][upper] = corner[upper]


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))


def relative_error(weight: Array, quantized: Array, activations: Array) -> float:
    """Return `‖X · (W − Q)ᵀ‖² / ‖X · Wᵀ‖²`: the share of the output's energy that quantization changes."""
    change = np.square(activations @ (weight - quantized).T).sum(dtype=np.float64)
    return float(change and change / np.square(activations @ weight.T).sum(dtype=np.float64))
