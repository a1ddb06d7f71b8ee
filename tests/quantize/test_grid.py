"""The grid: what it refuses, and the scales and zero points it gives to a range."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import QuantizationError
from nearfield.quantize.grid import Grid

ROUNDING = 1e-5
"""Of a scale: float32 arithmetic around an exact half."""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "3 bits: expected 4 or 8"),
        ({"bits": 16}, "16 bits: expected 4 or 8"),
        ({"group_size": -2}, "group size -2: expected a positive even number"),
        ({"group_size": 0}, "group size 0: expected a positive even number"),
        ({"group_size": 3}, "group size 3: expected a positive even number"),
        ({"scale_dtype": np.float64}, "scales of type float64: expected float16 or float32"),
        ({"scale_dtype": np.int32}, "scales of type int32: expected float16 or float32"),
    ],
)
def test_a_grid_that_cannot_be_stored_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        Grid(**settings)


def test_groups_cover_the_columns_and_the_last_may_be_ragged() -> None:
    grid = Grid(group_size=16)
    assert list(grid.groups(40)) == [(0, slice(0, 16)), (1, slice(16, 32)), (2, slice(32, 40))]
    assert [grid.group_count(columns) for columns in (1, 16, 17, 32)] == [1, 1, 2, 2]


@given(
    low=st.floats(-100, 0, width=32),
    high=st.floats(0, 100, width=32),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from([np.float16, np.float32]),
)
def test_a_range_is_covered_within_half_a_scale(
    low: float, high: float, bits: int, symmetric: bool, scale_dtype: type[np.floating[Any]]
) -> None:
    grid = Grid(bits, symmetric=symmetric, scale_dtype=scale_dtype)
    stored, zeros = grid.fit(np.array([low], np.float32), np.array([high], np.float32))
    assert stored.dtype == scale_dtype
    scale, zero = float(stored[0]), float(zeros[0])
    assert scale > 0
    assert zero == 2 ** (bits - 1) if symmetric else 0 <= zero < 2**bits
    assert (0 - zero - 0.5 - ROUNDING) * scale <= low
    assert (2**bits - 1 - zero + 0.5 + ROUNDING) * scale >= high


def test_codes_are_the_nearest_and_never_beyond_the_last() -> None:
    grid = Grid()
    weight = np.array([[-9.0, -0.6, 0.4, 0.0, 99.0]], np.float32)
    scales, zeros = np.ones((1, 1), np.float32), np.full((1, 1), 8, np.float32)
    np.testing.assert_array_equal(grid.codes(weight, scales, zeros), [[0, 7, 8, 8, 15]])
    np.testing.assert_array_equal(grid.nearest(weight, scales, zeros), [[-8, -1, 0, 0, 7]])


def test_a_symmetric_range_leans_on_the_side_with_one_code_more() -> None:
    grid = Grid(symmetric=True)
    one = np.ones(1, np.float32)
    assert grid.fit(-one * 8.5, 0 * one)[0] == 1
    assert grid.fit(0 * one, one * 7.5)[0] == 1
