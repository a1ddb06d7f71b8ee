"""Quantizing one layer: its weights and what its Linears were given → codes, and the parameters that took scales.

AWQ's scales are taken back by what precedes a group of Linears (`Fold`): q, k and v by the norm before attention, gate
and up by the norm before the MLP, o by the rows of v, down by the rows of up. A group behind something that is not
linear, like a GELU, gets none: there `awq` is clipping and rounding, and `awq-gptq` is `gptq`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from ..quantize.awq import (
    clip_and_round,
    divide_outputs,
    multiply_columns,
    scales_for_gptq,
    scales_for_rounding,
)
from ..quantize.gptq import gptq
from ..quantize.grid import Grid
from ..quantize.hessian import Factor, Hessian, checked_activations, relative_error
from ..quantize.packing import QuantizedWeight
from ..quantize.rtn import round_to_nearest

Float32 = npt.NDArray[np.float32]
Method = Literal["awq", "gptq", "awq-gptq", "rtn"]
METHODS: tuple[Method, ...] = get_args(Method)

_TOKENS = 2048
"""Inputs kept of all calibration tokens, for AWQ and for the report."""


@dataclass(frozen=True)
class Fold:
    """Where the scales of a group of Linears are taken back."""

    first: str
    """The group's first Linear, whose inputs are divided."""
    preceding: str
    """What puts those inputs out, with its weight and bias: a norm, or a Linear of the same layer."""
    sources: npt.NDArray[np.int64] | None = None
    """For each input the output of `preceding` it comes from, where that is not the one in its place."""


class Seen:
    """What a group of Linears was given: second moments of all of it, and evenly spaced tokens of it."""

    def __init__(self, columns: int, tokens: int, *, moments: bool) -> None:
        """`tokens` is how many there will be in all."""
        self.hessian = Hessian(columns) if moments else None
        self._stride, self._passed = max(1, tokens // _TOKENS), 0
        self._kept: list[Float32] = []

    def add(self, inputs: Float32) -> None:
        """Take in inputs `(S, K)`; raises `QuantizationError` when they are not finite."""
        checked_activations(inputs, inputs.shape[1])
        if self.hessian is not None:
            self.hessian.add(inputs)
        first = -self._passed % self._stride
        self._kept.append(inputs[first :: self._stride].copy())
        self._passed += len(inputs)

    @property
    def tokens(self) -> Float32:
        """`(T, K)`, about two thousand."""
        return np.concatenate(self._kept)

    def check_enough(self) -> None:
        """Raise `QuantizationError` for fewer inputs than `Factor` wants: AWQ works without, but not well."""
        columns = self._kept[0].shape[1]
        least = -(-columns // 8)
        if self._passed < least:
            raise QuantizationError(
                f"{self._passed} tokens of calibration data for a layer of {columns} inputs: expected at least "
                f"{least}; calibrate with more data"
            )

    def data(self) -> Factor | Float32:
        """What a method goes by; the second moments are used up. Raises `QuantizationError` for too few tokens."""
        if self.hessian is None:
            return self.tokens
        return Factor(self.hessian, overwrite=True)


@dataclass
class QuantizedLayer:
    """The result: codes by Linear, changed parameters by name, and the error each Linear's output has."""

    codes: dict[str, QuantizedWeight] = field(default_factory=dict)
    changed: dict[str, Float32] = field(default_factory=dict)
    """Norms and biases that took scales; in float32, but of values that the checkpoint's type holds."""
    errors: dict[str, float] = field(default_factory=dict)
    """Share of the output's energy that quantization changes, on the calibration tokens."""


Rounding = Callable[[str, Float32], Float32]
"""A parameter's values → the nearest that the type it is stored in holds."""


def quantize_layer(
    parameters: Mapping[str, Float32],
    groups: Sequence[Sequence[str]],
    seen: Mapping[str, Seen],
    folds: Sequence[Fold],
    method: Method,
    grid: Grid,
    rounding: Rounding,
) -> QuantizedLayer:
    """Quantize the Linears of `groups`; `parameters` are by name, `seen` by a group's first Linear.

    `folds` come in such an order that scales which change another group's weights are found before that group's.
    Raises `QuantizationError` naming the Linears, for what the engine cannot do with them.
    """
    result, now = QuantizedLayer(), dict(parameters)
    by_first = {names[0]: names for names in groups}
    data = {}
    for first, its in seen.items():
        with _named(by_first[first]):
            if method == "awq":
                its.check_enough()
            data[first] = its.data()
    scales: dict[str, Float32] = {}
    quantized = {f"{name}.weight" for names in groups for name in names}
    if method in ("awq", "awq-gptq"):
        for fold in folds:
            scales[fold.first] = _scale(now, by_first[fold.first], data[fold.first], fold, grid, rounding, quantized)
        preceding = {f"{fold.preceding}.{kind}" for fold in folds for kind in ("weight", "bias")}
        result.changed = {name: now[name] for name in sorted((preceding - quantized) & now.keys())}
    taken = _taken_by_rows(scales, folds)
    for first, names in by_first.items():
        tokens, scale = seen[first].tokens, scales.get(first)
        stacked = np.concatenate([now[f"{name}.weight"] for name in names])
        with _named(names):
            codes = _quantized(stacked, data[first], scale, method, grid)
        ends = np.cumsum([len(now[f"{name}.weight"]) for name in names])
        for name, end in zip(names, ends, strict=True):
            weight = parameters[f"{name}.weight"]
            own = result.codes[name] = codes.of_rows(slice(int(end) - len(weight), int(end)))
            effective = own.dequantize()
            if name in taken:
                effective *= taken[name][:, None]
            if scale is not None:
                effective /= scale
            result.errors[name] = relative_error(weight, effective, tokens)
    return result


@contextlib.contextmanager
def _named(names: Sequence[str]) -> Iterator[None]:
    """Say of which Linears an error is."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"{', '.join(names)}: {error}") from error


def _quantized(
    weight: Float32, data: Factor | Float32, scale: Float32 | None, method: Method, grid: Grid
) -> QuantizedWeight:
    """Codes of a weight whose columns were multiplied by `scale`."""
    if method == "rtn":
        return round_to_nearest(weight, grid)
    if isinstance(data, Factor):
        if scale is not None:
            data.divide(scale)
        return gptq(weight, data, grid)
    return clip_and_round(weight, data if scale is None else data / scale, grid)


def _scale(
    now: dict[str, Float32], names: Sequence[str], data: Factor | Float32, fold: Fold, grid: Grid,
    rounding: Rounding, quantized: Collection[str],
) -> Float32:  # fmt: skip
    """Find the scales of a group, divide what precedes it by them, and multiply its columns."""
    stacked = np.concatenate([now[f"{name}.weight"] for name in names])
    if isinstance(data, Factor):
        scales = scales_for_gptq(stacked, data, grid, fold.sources)
    else:
        scales = scales_for_rounding(stacked, data, grid, fold.sources)
    for name in (f"{fold.preceding}.weight", f"{fold.preceding}.bias"):
        if name not in now:
            continue
        before, now[name] = now[name], divide_outputs(now[name], scales, fold.sources)
        if name in quantized:
            continue
        now[name] = rounding(name, now[name])  # stored as floats of few bits
        if name.endswith(".weight"):  # a norm's: the columns are multiplied by what it was divided by in the end
            exact = (before != 0) & (now[name] != 0)
            scales = np.where(exact, before / np.where(exact, now[name], 1), scales)
    for name in names:
        now[f"{name}.weight"] = multiply_columns(now[f"{name}.weight"], scales)
    return scales


def _taken_by_rows(scales: Mapping[str, Float32], folds: Sequence[Fold]) -> dict[str, Float32]:
    """Scales that were divided out of what precedes, by its name, an output each."""
    taken = {}
    for fold in folds:
        if (own := scales.get(fold.first)) is not None:
            first = slice(None) if fold.sources is None else np.unique(fold.sources, return_index=True)[1]
            taken[fold.preceding] = own[first]
    return taken
