"""Quantizing one decoder layer: its weights and what its Linears were given → codes, and the norms that took scales.

AWQ's scales are taken back by what precedes a group of Linears: q, k and v by the norm before attention, gate and up by
the norm before the MLP, o by the rows of v, down by the rows of up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from ..export.decoder import DecoderConfig
from ..quantize.awq import (
    clip_and_round,
    divide_outputs,
    multiply_columns,
    scales_for_gptq,
    scales_for_rounding,
)
from ..quantize.gptq import gptq
from ..quantize.grid import Grid
from ..quantize.hessian import Factor, Hessian, relative_error
from ..quantize.packing import QuantizedWeight
from ..quantize.rtn import round_to_nearest

Float32 = npt.NDArray[np.float32]
Method = Literal["awq", "gptq", "awq-gptq", "rtn"]
METHODS: tuple[Method, ...] = get_args(Method)

_TOKENS = 2048
"""Inputs kept of all calibration tokens, for AWQ and for the report."""
_PRECEDING = {
    "self_attn.q_proj": ("input_layernorm.weight",),
    "self_attn.o_proj": ("self_attn.v_proj.weight", "self_attn.v_proj.bias"),
    "mlp.gate_proj": ("post_attention_layernorm.weight",),
    "mlp.down_proj": ("mlp.up_proj.weight",),
}
"""By the first Linear of a group, the parameters that its scales are divided out of."""
_IN_ORDER = ("self_attn.o_proj", "mlp.down_proj", "self_attn.q_proj", "mlp.gate_proj")
"""Those that change another group's weights come before it."""


class Seen:
    """What a group of Linears was given: second moments of all of it, and evenly spaced tokens of it."""

    def __init__(self, columns: int, tokens: int, *, moments: bool) -> None:
        """`tokens` is how many there will be in all."""
        self.hessian = Hessian(columns) if moments else None
        self._stride, self._passed = max(1, tokens // _TOKENS), 0
        self._kept: list[Float32] = []

    def add(self, inputs: Float32) -> None:
        """Take in the inputs `(S, K)` of a sequence."""
        if self.hessian is not None:
            self.hessian.add(inputs)
        first = -self._passed % self._stride
        self._kept.append(inputs[first :: self._stride].copy())
        self._passed += len(inputs)

    @property
    def tokens(self) -> Float32:
        """`(T, K)`, about two thousand."""
        return np.concatenate(self._kept)

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
    """Norms, and biases of v, that took scales; in float32, but of values that the checkpoint's type holds."""
    errors: dict[str, float] = field(default_factory=dict)
    """Share of the output's energy that quantization changes, on the calibration tokens."""


Rounding = Callable[[str, Float32], Float32]
"""A parameter's values → the nearest that the type it is stored in holds."""


def quantize_layer(
    parameters: Mapping[str, Float32],
    groups: Sequence[Sequence[str]],
    seen: Mapping[str, Seen],
    config: DecoderConfig,
    method: Method,
    grid: Grid,
    rounding: Rounding,
) -> QuantizedLayer:
    """Quantize the Linears of `groups`; `parameters` are by name, `seen` by a group's first Linear.

    Raises `QuantizationError` naming the Linears, for what the engine cannot do with them.
    """
    result, now = QuantizedLayer(), dict(parameters)
    by_first = {names[0]: names for names in groups}
    data = {}
    for first, its in seen.items():
        with _named(by_first[first]):
            data[first] = its.data()
    scales: dict[str, Float32] = {}
    if method in ("awq", "awq-gptq"):
        for first in _IN_ORDER:
            scales[first] = _scale(now, by_first[first], data[first], config, grid, rounding)
        changed = {name for names in _PRECEDING.values() for name in names if not name.endswith("_proj.weight")}
        result.changed = {name: now[name] for name in sorted(changed & now.keys())}
    taken = _taken_by_rows(scales, config)
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
    now: dict[str, Float32], names: Sequence[str], data: Factor | Float32, config: DecoderConfig, grid: Grid,
    rounding: Rounding,
) -> Float32:  # fmt: skip
    """Find the scales of a group, divide what precedes it by them, and multiply its columns."""
    first = names[0]
    sources = _value_channels(config) if first == "self_attn.o_proj" else None
    stacked = np.concatenate([now[f"{name}.weight"] for name in names])
    if isinstance(data, Factor):
        scales = scales_for_gptq(stacked, data, grid, sources)
    else:
        scales = scales_for_rounding(stacked, data, grid, sources)
    for name in _PRECEDING[first]:
        if name not in now:
            continue  # a v without bias
        before, now[name] = now[name], divide_outputs(now[name], scales, sources)
        if not name.endswith("_proj.weight"):  # stored as floats of few bits: the codes make up for the rounding
            now[name] = rounding(name, now[name])
        if name.endswith("layernorm.weight"):
            exact = (before != 0) & (now[name] != 0)
            scales = np.where(exact, before / np.where(exact, now[name], 1), scales)
    for name in names:
        now[f"{name}.weight"] = multiply_columns(now[f"{name}.weight"], scales)
    return scales


def _taken_by_rows(scales: Mapping[str, Float32], config: DecoderConfig) -> dict[str, Float32]:
    """Scales that were divided out of the rows of a Linear, by its name."""
    taken = {}
    if "self_attn.o_proj" in scales:
        _, first = np.unique(_value_channels(config), return_index=True)
        taken["self_attn.v_proj"] = scales["self_attn.o_proj"][first]
    if "mlp.down_proj" in scales:
        taken["mlp.up_proj"] = scales["mlp.down_proj"]
    return taken


def _value_channels(config: DecoderConfig) -> npt.NDArray[np.int64]:
    """For each input of o, the output of v it is a mixture of: heads of a group share their values."""
    heads = np.arange(config.heads) // (config.heads // config.kv_heads)
    return (heads[:, None] * config.head_dim + np.arange(config.head_dim)).ravel()
