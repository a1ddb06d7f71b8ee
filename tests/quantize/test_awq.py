"""AWQ: scales that help, scales that vanish into what precedes the layer, and what is refused."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import QuantizationError
from nearfield.quantize.awq import (
    clip_and_round,
    divide_outputs,
    multiply_columns,
    scales_for_gptq,
    scales_for_rounding,
)
from nearfield.quantize.gptq import gptq
from nearfield.quantize.grid import Grid
from nearfield.quantize.hessian import Factor, Hessian, relative_error
from nearfield.quantize.rtn import round_to_nearest
from tolerances import FOLDED
from tolerances import relative_error as difference

Array = npt.NDArray[np.float32]


def _layer(rows: int, columns: int, samples: int, seed: int = 0) -> tuple[Array, Array]:
    """A weight with heavy tails, and inputs of which a few are far larger than all others, as in language models."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(5, (rows, columns))
    sizes = np.exp(rng.standard_normal(columns) / 2)
    sizes[rng.choice(columns, columns // 20, replace=False)] *= 20
    mixed = rng.standard_normal((samples, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    mixed += rng.standard_normal((samples, columns))
    return weight.astype(np.float32), (mixed * sizes).astype(np.float32)


def _factor(x: Array) -> Factor:
    hessian = Hessian(x.shape[1])
    hessian.add(x)
    return Factor(hessian)


# What scales do


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scales_and_clipping_lower_the_error_of_inputs_not_seen(seed: int, symmetric: bool) -> None:
    weight, x = _layer(32, 160, 800, seed)
    seen, held_out = x[:400], x[400:]
    grid = Grid(group_size=32, symmetric=symmetric, scale_dtype=np.float16)
    nearest = relative_error(weight, round_to_nearest(weight, grid).dequantize(), held_out)
    scales = scales_for_rounding(weight, seen, grid)
    assert scales.dtype == np.float32
    assert (scales > 0).all()
    only_scaled = round_to_nearest(multiply_columns(weight, scales), grid).dequantize() / scales
    clipped = clip_and_round(multiply_columns(weight, scales), seen / scales, grid).dequantize() / scales
    assert relative_error(weight, only_scaled, held_out) < 0.75 * nearest
    assert relative_error(weight, clipped, held_out) < relative_error(weight, only_scaled, held_out)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptq_does_better_with_scales_of_its_own(seed: int, symmetric: bool) -> None:
    weight, x = _layer(32, 160, 1600, seed)
    seen, held_out = x[:800], x[800:]
    grid = Grid(group_size=32, symmetric=symmetric, scale_dtype=np.float16)
    factor = _factor(seen)
    plain = relative_error(weight, gptq(weight, factor, grid).dequantize(), held_out)
    scales = scales_for_gptq(weight, factor, grid)
    factor.divide(scales)
    scaled = gptq(multiply_columns(weight, scales), factor, grid).dequantize() / scales
    assert relative_error(weight, scaled, held_out) < plain


def test_clipping_costs_no_more_than_the_whole_range_in_one_group() -> None:
    weight, x = _layer(20, 64, 300)
    grid = Grid(group_size=64)
    nearest = relative_error(weight, round_to_nearest(weight, grid).dequantize(), x)
    assert relative_error(weight, clip_and_round(weight, x, grid).dequantize(), x) < nearest


@pytest.mark.parametrize("columns", [31, 32, 50])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_ragged_last_group_is_rounded_like_any_other(columns: int, bits: int) -> None:
    weight, x = _layer(5, columns, 100)
    quantized = clip_and_round(weight, x, Grid(bits, 32))
    assert quantized.codes.shape == weight.shape
    assert quantized.scales.shape == (5, -(-columns // 32))
    assert int(quantized.codes.max()) < 2**bits
    assert quantized.bits == bits
    assert relative_error(weight, quantized.dequantize(), x) < 0.1


def test_inputs_that_are_never_active_get_usable_scales() -> None:
    weight, x = _layer(8, 40, 100)
    x[:, [3, 17]] = 0
    grid = Grid(group_size=8, scale_dtype=np.float16)
    for scales in (scales_for_rounding(weight, x, grid), scales_for_gptq(weight, _factor(x), grid)):
        assert np.isfinite(scales).all()
        assert (scales > 0).all()
    scales = scales_for_rounding(weight, np.zeros_like(x), grid)
    assert (scales > 0).all()


def test_the_search_is_the_same_each_time() -> None:
    weight, x = _layer(300, 40, 1100)  # more rows and tokens than it judges by
    grid = Grid(group_size=8)
    np.testing.assert_array_equal(scales_for_rounding(weight, x, grid), scales_for_rounding(weight, x, grid))


# Folding


@given(seed=st.integers(0, 2**32 - 1))
def test_scales_taken_by_a_norm_leave_the_function_as_it_was(seed: int) -> None:
    rng = np.random.default_rng(seed)
    norm, bias, scales = (np.exp(rng.uniform(-2, 2, 24)).astype(np.float32) for _ in range(3))
    weight, x = rng.standard_normal((10, 24)).astype(np.float32), rng.standard_normal((5, 24))
    before = (x * norm + bias) @ weight.astype(np.float64).T
    taken = x * divide_outputs(norm, scales) + divide_outputs(bias, scales)
    assert difference(taken @ multiply_columns(weight, scales).astype(np.float64).T, before) < FOLDED


@given(seed=st.integers(0, 2**32 - 1))
def test_scales_taken_by_up_leave_the_function_as_it_was(seed: int) -> None:
    rng = np.random.default_rng(seed)
    up, gate, down = (rng.standard_normal(shape).astype(np.float32) for shape in ((24, 8), (24, 8), (6, 24)))
    scales = np.exp(rng.uniform(-2, 2, 24)).astype(np.float32)
    x = rng.standard_normal((5, 8))

    def forward(up: Array, down: Array) -> npt.NDArray[np.float64]:
        gated = x @ gate.astype(np.float64).T
        y: npt.NDArray[np.float64] = (gated / (1 + np.exp(-gated)) * (x @ up.astype(np.float64).T)) @ down.T
        return y

    after = forward(divide_outputs(up, scales), multiply_columns(down, scales))
    assert difference(after, forward(up, down)) < FOLDED


@given(seed=st.integers(0, 2**32 - 1))
def test_scales_taken_by_shared_values_leave_the_function_as_it_was(seed: int) -> None:
    """Grouped-query attention: two key heads of size 4, each read by three query heads."""
    rng = np.random.default_rng(seed)
    values, bias = rng.standard_normal((8, 16)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    output = rng.standard_normal((16, 24)).astype(np.float32)
    sources = (np.arange(6)[:, None] // 3 * 4 + np.arange(4)).ravel()
    x, mixing = rng.standard_normal((5, 16)), rng.uniform(0, 1, (6, 5, 5))
    grid = Grid(group_size=8)
    activations = rng.standard_normal((50, 24)).astype(np.float32) * np.exp(rng.uniform(-3, 3, 24)).astype(np.float32)
    scales = scales_for_rounding(output, activations, grid, sources)
    np.testing.assert_array_equal(scales.reshape(2, 3, 4), np.repeat(scales.reshape(2, 3, 4)[:, :1], 3, axis=1))

    def forward(values: Array, bias: Array, output: Array) -> npt.NDArray[np.float64]:
        v = (x @ values.T + bias).reshape(5, 2, 4)[:, np.arange(6) // 3]  # (tokens, query heads, 4)
        mixed = np.einsum("hst,thd->shd", mixing, v).reshape(5, 24)
        y: npt.NDArray[np.float64] = mixed @ output.T
        return y

    after = forward(
        divide_outputs(values, scales, sources), divide_outputs(bias, scales, sources), multiply_columns(output, scales)
    )
    assert difference(after, forward(values, bias, output)) < FOLDED


# Bad input


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    weight, x = _layer(4, 40, 50)
    damaged = x.copy()
    damaged[7, 3] = value
    for call in (scales_for_rounding, clip_and_round):
        with pytest.raises(QuantizationError, match="activations of a layer of 40 inputs hold NaN or infinity"):
            call(weight, damaged, Grid())
    damaged = weight.copy()
    damaged[0, 0] = value
    with pytest.raises(QuantizationError, match="a weight of 40 inputs holds NaN or infinity"):
        scales_for_rounding(damaged, x, Grid())


def test_shapes_that_do_not_agree_are_refused() -> None:
    weight, x = _layer(4, 40, 50)
    with pytest.raises(QuantizationError, match=r"activations of shape \(50, 39\) for a layer of 40 inputs"):
        scales_for_rounding(weight, x[:, :39], Grid())
    with pytest.raises(QuantizationError, match="no activations for a layer of 40 inputs"):
        scales_for_rounding(weight, x[:0], Grid())
    with pytest.raises(QuantizationError, match="39 sources for 40 inputs"):
        scales_for_rounding(weight, x, Grid(), np.arange(39))
    with pytest.raises(QuantizationError, match="second moments of 39 inputs for a weight of 40"):
        scales_for_gptq(weight, _factor(x[:, :39]), Grid())
    scales = np.ones(40, np.float32)
    with pytest.raises(QuantizationError, match="40 scales for 39 channels: expected one a channel"):
        divide_outputs(np.ones(39, np.float32), scales)
    with pytest.raises(QuantizationError, match=r"sources of 40 inputs up to channel 9, for 40 scales and 11 channels"):
        divide_outputs(np.ones((11, 3), np.float32), scales, np.arange(40) % 10)
