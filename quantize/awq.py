"""AWQ: inputs of large values get finer steps, by scales that what precedes the layer takes back (arXiv 2306.00978).

Inputs: a weight `(N, K)` (linears that share their input stacked along N), activations `(T, K)` → outputs: scales
`(K)`. The weight's columns are multiplied by them, and the inputs divided: in the norm's weight, or in the rows of the
linear that the inputs come from. Rounding errors of a column that was multiplied reach the output divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .clipping import COARSE, FINEST, fit_groups
from .grid import Array, Grid, checked
from .hessian import Factor, checked_activations
from .packing import QuantizedWeight

_TOKENS, _ROWS = 1024, 256  # of these the search judges; a scale is one number chosen by all of them together
_TENTHS = tuple(step / 10 for step in range(11))
_WEIGHT_POWERS = (0.0, 0.5)
_RANGE = 1e-4  # of the largest: an input that was never active does not get a scale of 0
_DAMPING = 0.01
_TINY = float(np.finfo(np.float32).tiny)


def scales_for_rounding(
    weight: npt.NDArray[np.floating[Any]],
    activations: npt.NDArray[np.floating[Any]],
    grid: Grid,
    sources: npt.NDArray[np.integer[Any]] | None = None,
) -> Array:
    """Return the scales `(K)`, float32 and positive, with which `clip_and_round` does best: 1 everywhere if none help.

    Candidates are `mean |x|^a / mean |w|^b`; each is judged by the output's error after clipping and rounding, on
    evenly spaced rows and tokens. `sources (K)` says which preceding channel each input comes from, where several
    come from one (the values of grouped-query attention): they get the same scale. Raises `QuantizationError` when
    shapes do not agree or something is not finite.
    """
    weight = checked(weight)
    x = checked_activations(activations, weight.shape[1])
    if not len(x):
        raise QuantizationError(f"no activations for a layer of {weight.shape[1]} inputs: calibrate with more data")
    candidates = _candidates(np.abs(x).mean(axis=0), weight, _TENTHS, sources)
    weight, x = _spread(weight, _ROWS), _spread(x, _TOKENS)
    blocks = _moments(x, grid)

    def cost(scales: Array) -> float:
        divided = [
            block / scales[inputs] / scales[inputs, None]
            for block, (_, inputs) in zip(blocks, grid.groups(len(scales)), strict=True)
        ]
        output = x @ _errors(weight, scales, divided, grid).T
        return float(np.vdot(output, output))

    return min(candidates, key=cost)


def scales_for_gptq(
    weight: npt.NDArray[np.floating[Any]],
    factor: Factor,
    grid: Grid,
    sources: npt.NDArray[np.integer[Any]] | None = None,
) -> Array:
    """Return the scales `(K)` with which `gptq` does best: of `weight · scales`, after `factor.divide(scales)`.

    As `scales_for_rounding`, with the square root of `Factor.importance` for `mean |x|`; candidates are judged by the
    rounding errors weighed with it, which needs no activations and foretells well what GPTQ will leave.
    """
    weight = checked(weight)
    if factor.columns != weight.shape[1]:
        raise QuantizationError(
            f"second moments of {factor.columns} inputs for a weight of {weight.shape[1]}: expected those of the same "
            "layer"
        )
    importance = factor.importance()
    candidates = _candidates(np.sqrt(importance), weight, _TENTHS[:6], sources)
    weight = _spread(weight, _ROWS)

    def cost(scales: Array) -> float:
        divided = importance / (scales * scales)
        errors = _errors(weight, scales, [divided[inputs] for _, inputs in grid.groups(len(scales))], grid)
        return float((errors * errors @ importance).sum())

    return min(candidates, key=cost)


def clip_and_round(
    weight: npt.NDArray[np.floating[Any]], activations: npt.NDArray[np.floating[Any]], grid: Grid
) -> QuantizedWeight:
    """Quantize `weight (N, K)` to nearest, each group over the range that suits the activations `(T, K)` best.

    Both are those after scaling: the columns multiplied, the activations divided. Raises as `scales_for_rounding`.
    """
    weight = checked(weight)
    blocks = _moments(checked_activations(activations, weight.shape[1]), grid)
    scales, zeros = fit_groups(weight, grid, blocks, FINEST)
    codes = np.empty(weight.shape, np.uint8)
    for group, inputs in grid.groups(weight.shape[1]):
        spread = scales[:, group, None].astype(np.float32)
        codes[:, inputs] = grid.codes(weight[:, inputs], spread, zeros[:, group, None])
    return QuantizedWeight(codes, scales, zeros.astype(np.uint8), grid.group_size, grid.bits)


def multiply_columns(weight: Array, scales: Array) -> Array:
    """Return `weight (N, K)` for inputs that were divided by `scales (K)`."""
    return weight * scales


def divide_outputs(parameter: Array, scales: Array, sources: npt.NDArray[np.integer[Any]] | None = None) -> Array:
    """Return a parameter of what precedes the layer, so that it puts out its values divided by `scales (K)`.

    `parameter` is a linear's weight `(M, J)`, its bias `(M)`, or a norm's weight or bias `(M)`; `M = K` without
    `sources`, else as `scales_for_rounding` takes them. Raises `QuantizationError` when the shapes do not agree.
    """
    if sources is not None:
        if len(sources) != len(scales) or sources.max() != len(parameter) - 1:
            raise QuantizationError(
                f"sources of {len(sources)} inputs up to channel {sources.max()}, for {len(scales)} scales and "
                f"{len(parameter)} channels: expected one an input, up to {len(parameter) - 1}"
            )
        first = np.unique(sources, return_index=True)[1]  # of the inputs that come from a channel; all have one scale
        scales = scales[first]
    if len(scales) != len(parameter):
        raise QuantizationError(f"{len(scales)} scales for {len(parameter)} channels: expected one a channel")
    divided: Array = parameter / scales.reshape(-1, *[1] * (parameter.ndim - 1))
    return divided


def _candidates(
    size: Array, weight: Array, powers: Sequence[float], sources: npt.NDArray[np.integer[Any]] | None
) -> list[Array]:
    """`size^a / mean |w|^b` for all a in `powers`, the largest as far above 1 as the smallest below."""
    weight_size = np.abs(weight).mean(axis=0)
    if sources is not None:
        size, weight_size = _tied(size, sources), _tied(weight_size, sources)
    candidates = [np.ones_like(size)]
    for weight_power in _WEIGHT_POWERS:
        for power in powers:
            scales = _power(size, power) / _power(weight_size, weight_power)
            candidates.append(scales / np.sqrt(scales.max() * scales.min()))
    return candidates


def _power(size: Array, power: float) -> Array:
    relative = size / max(float(size.max()), _TINY)
    powers: Array = np.maximum(relative, np.float32(_RANGE)) ** np.float32(power)
    return powers


def _errors(weight: Array, scales: Array, importance: Sequence[Array], grid: Grid) -> Array:
    """How far the weight is off after scaling, clipping, rounding and taking the scales back."""
    scaled = weight * scales
    steps, zeros = fit_groups(scaled, grid, importance, COARSE)
    columns = np.arange(len(scales)) // grid.group_size
    rounded: Array = grid.nearest(scaled, steps.astype(np.float32)[:, columns], zeros[:, columns])
    rounded /= scales
    rounded -= weight
    return rounded


def _moments(x: Array, grid: Grid) -> list[Array]:
    """Second moments `(g, g)` of the inputs of each group, the diagonal raised a little: no weight goes for nothing."""
    blocks = []
    for _, inputs in grid.groups(x.shape[1]):
        block = x[:, inputs].T @ x[:, inputs]
        diagonal = np.diagonal(block)
        np.fill_diagonal(block, diagonal + np.float32(_DAMPING * max(float(diagonal.mean()), _TINY)))
        blocks.append(block)
    return blocks


def _tied(values: Array, sources: npt.NDArray[np.integer[Any]]) -> Array:
    """The mean of `values (K)` over the inputs of each source, for each input."""
    if len(sources) != len(values):
        raise QuantizationError(f"{len(sources)} sources for {len(values)} inputs: expected one an input")
    means = np.bincount(sources, values) / np.maximum(np.bincount(sources), 1)
    tied: Array = means[sources].astype(np.float32)
    return tied


def _spread(array: Array, count: int) -> Array:
    """At most `count` rows of `array`, evenly spaced."""
    return array[np.linspace(0, len(array) - 1, min(count, len(array))).round().astype(np.intp)]
