"""Round-to-nearest: the error bound, the stored scales, and the weights that need care."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from nearfield.errors import QuantizationError
from nearfield.quantize.grid import Grid
from nearfield.quantize.packing import QuantizedWeight
from nearfield.quantize.rtn import round_to_nearest

ROUNDING = 1e-5
"""Of a scale: float32 division and multiplication around an exact half."""

SCALE_TYPES: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float16)]


@st.composite
def weights(draw: st.DrawFn) -> npt.NDArray[np.float32]:
    """Weights `(N, K)` of any magnitude a checkpoint could hold, with zeros and repeated values among them."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 70)))
    magnitude = draw(st.sampled_from([1e-7, 1e-4, 0.02, 1.0, 1e3]))
    unit = st.floats(-1, 1, width=32)
    return draw(npst.arrays(np.float32, shape, elements=unit)) * np.float32(magnitude)


def _scale_of_each_weight(weight: QuantizedWeight) -> npt.NDArray[np.float32]:
    scales = np.repeat(weight.scales.astype(np.float32), weight.group_size, axis=1)
    return scales[:, : weight.codes.shape[1]]


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    bits, symmetric = draw(st.sampled_from([4, 8])), draw(st.booleans())
    return Grid(bits, draw(st.sampled_from([2, 16, 32, 128])), symmetric, draw(st.sampled_from(SCALE_TYPES)))


@given(weights(), grids())
def test_no_weight_is_off_by_more_than_half_a_scale(weight: npt.NDArray[np.float32], grid: Grid) -> None:
    quantized = round_to_nearest(weight, grid)
    groups = -(-weight.shape[1] // grid.group_size)
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.dtype == quantized.zeros.dtype == np.uint8
    assert quantized.scales.shape == quantized.zeros.shape == (weight.shape[0], groups)
    assert quantized.scales.dtype == grid.scale_dtype
    assert (quantized.bits, quantized.group_size) == (grid.bits, grid.group_size)
    assert (quantized.scales > 0).all()  # what TensorRT asks for
    assert quantized.codes.max() < 2**grid.bits
    if grid.symmetric:
        assert (quantized.zeros == 2 ** (grid.bits - 1)).all()
    else:
        assert quantized.zeros.max() < 2**grid.bits
    error = np.abs(quantized.dequantize() - weight)
    assert (error <= (0.5 + ROUNDING) * _scale_of_each_weight(quantized)).all()


@given(weights(), grids())
def test_zero_stays_zero(weight: npt.NDArray[np.float32], grid: Grid) -> None:
    dequantized = round_to_nearest(weight, grid).dequantize()
    assert (dequantized[weight == 0] == 0).all()


def test_codes_are_chosen_for_the_scale_that_is_stored() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)
    quantized = round_to_nearest(weight, Grid(group_size=32, scale_dtype=np.float16))
    stored = _scale_of_each_weight(quantized)
    zeros = np.repeat(quantized.zeros, 32, axis=1).astype(np.float32)
    np.testing.assert_array_equal(quantized.codes, np.clip(np.rint(weight / stored) + zeros, 0, 15))


def test_a_half_precision_scale_covers_the_range() -> None:
    weight = np.random.default_rng(1).standard_normal((64, 128), dtype=np.float32)
    quantized = round_to_nearest(weight, Grid(scale_dtype=np.float16))
    span = np.maximum(weight.max(axis=1), 0) - np.minimum(weight.min(axis=1), 0)
    assert (quantized.scales[:, 0].astype(np.float32) * 15 >= span * (1 - ROUNDING)).all()


@pytest.mark.parametrize("value", [0.37, -0.37, 2.0, -1e-3])
def test_a_constant_row_is_exact(value: float) -> None:
    weight = np.full((2, 40), value, np.float32)
    np.testing.assert_allclose(round_to_nearest(weight, Grid(group_size=16)).dequantize(), weight, rtol=1e-6)


def test_both_ends_half_way_between_codes_stay_within_four_bits() -> None:
    quantized = round_to_nearest(np.array([[-7.5, 7.5]], np.float32), Grid(group_size=2))
    np.testing.assert_array_equal(quantized.codes, [[0, 15]])
    np.testing.assert_array_equal(quantized.dequantize(), [[-8.0, 7.0]])


@pytest.mark.parametrize("scale_type", SCALE_TYPES)
def test_a_group_of_zeros_has_scale_one(scale_type: np.dtype[np.floating]) -> None:
    weight = np.zeros((2, 40), np.float32)
    weight[:, 16:32] = 1.0
    quantized = round_to_nearest(weight, Grid(group_size=16, scale_dtype=scale_type))
    np.testing.assert_array_equal(quantized.scales[:, [0, 2]], 1)
    assert (quantized.dequantize()[:, [*range(16), *range(32, 40)]] == 0).all()


def test_a_scale_too_small_for_half_precision_becomes_its_smallest_normal() -> None:
    weight = np.linspace(-1e-6, 1e-6, 32, dtype=np.float32)[None]
    quantized = round_to_nearest(weight, Grid(group_size=32, scale_dtype=np.float16))
    assert quantized.scales.item() == np.finfo(np.float16).tiny
    assert (quantized.dequantize() == 0).all()


def test_many_rows_are_quantized_each_for_itself() -> None:
    weight = np.random.default_rng(2).standard_normal((1100, 24), dtype=np.float32)
    whole = round_to_nearest(weight, Grid(group_size=16))
    for row in (0, 511, 512, 1024, 1099):  # on both sides of the blocks it works in
        alone = round_to_nearest(weight[row : row + 1], Grid(group_size=16))
        np.testing.assert_array_equal(whole.codes[row], alone.codes[0])
        np.testing.assert_array_equal(whole.scales[row], alone.scales[0])
        np.testing.assert_array_equal(whole.zeros[row], alone.zeros[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(value: float) -> None:
    weight = np.ones((600, 16), np.float32)
    weight[599, 3] = value
    with pytest.raises(QuantizationError, match="holds NaN or infinity; the checkpoint is damaged"):
        round_to_nearest(weight, Grid(group_size=16))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match=re.escape(f"a weight of shape {shape}: expected a matrix")):
        round_to_nearest(np.ones(shape, np.float32), Grid())


def test_a_scale_too_large_for_half_precision_is_refused() -> None:
    weight = np.array([[-1e6, 1e6]], np.float32)
    with pytest.raises(QuantizationError, match=r"scale of 1\.33e\+05 does not fit float16; export with 32-bit floats"):
        round_to_nearest(weight, Grid(group_size=2, scale_dtype=np.float16))
    assert np.isfinite(round_to_nearest(weight, Grid(group_size=2)).scales).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_largest_float32_is_quantized(symmetric: bool) -> None:
    largest = np.finfo(np.float32).max
    weight = np.array([[-largest, largest]], np.float32)
    assert np.isfinite(round_to_nearest(weight, Grid(group_size=2, symmetric=symmetric)).scales).all()
