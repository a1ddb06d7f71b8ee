"""Clipped ranges: never worse than the whole range by the measure they are chosen by, and narrower where that pays."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.quantize.clipping import COARSE, FINE, FINEST, WHOLE, fit_groups
from nearfield.quantize.grid import Grid

Array = npt.NDArray[np.float32]
ROUNDING = 1 + 1e-4


def _cost(weight: Array, grid: Grid, importance: list[Array], scales: npt.NDArray[np.floating], zeros: Array) -> Array:
    """What rounding costs in each group of each row, `(N, G)`, computed in float64."""
    costs = []
    for group, inputs in grid.groups(weight.shape[1]):
        scale, zero = scales[:, group, None].astype(np.float32), zeros[:, group, None]
        error = (grid.nearest(weight[:, inputs], scale, zero) - weight[:, inputs]).astype(np.float64)
        matrix = np.diag(importance[group]) if importance[group].ndim == 1 else importance[group]
        costs.append(np.einsum("nk,kl,nl->n", error, matrix.astype(np.float64), error))
    return np.stack(costs, axis=1).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), columns=st.integers(1, 50), bits=st.sampled_from([4, 8]), full=st.booleans())
@pytest.mark.parametrize("symmetric", [False, True])
def test_clipping_never_costs_more_than_the_whole_range(
    symmetric: bool, seed: int, columns: int, bits: int, full: bool
) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(bits, 16, symmetric, np.float16)
    weight = rng.standard_t(3, (5, columns)).astype(np.float32)
    importance: list[Array] = []
    for _, inputs in grid.groups(columns):
        x = rng.standard_t(3, (40, inputs.stop - inputs.start)).astype(np.float32)
        importance.append(x.T @ x if full else np.square(x).sum(axis=0))
    whole = _cost(weight, grid, importance, *fit_groups(weight, grid, importance, WHOLE))
    for shares in (COARSE, FINE, FINEST):
        clipped = _cost(weight, grid, importance, *fit_groups(weight, grid, importance, shares))
        assert (clipped <= whole * ROUNDING).all()


def test_the_whole_range_is_that_of_the_weights() -> None:
    weight = np.array([[-3.0, 12.0, 1.0], [0.5, 1.0, 1.5]], np.float32)
    scales, zeros = fit_groups(weight, Grid(group_size=2), [np.ones(2, np.float32), np.ones(1, np.float32)], WHOLE)
    np.testing.assert_allclose(scales, [[1, 1 / 15], [1 / 15, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(zeros, [[3, 0], [0, 0]])


@pytest.mark.parametrize("shares", [FINE, COARSE])
def test_weights_that_do_not_matter_are_cut(shares: tuple[float, ...]) -> None:
    weight = np.random.default_rng(0).uniform(-1, 1, (40, 16)).astype(np.float32)
    weight[:, 5] = 2.5
    importance = np.ones(16, np.float32)
    grid = Grid(group_size=16)
    with_it, _ = fit_groups(weight, grid, [importance * (np.arange(16) == 5) * 100 + importance], shares)
    importance[5] = 0
    without_it, _ = fit_groups(weight, grid, [importance], shares)
    assert without_it.mean() < 0.75 * with_it.mean()
    assert with_it.mean() > 2.5 / 15


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_one_weight_that_matters_becomes_exact(symmetric: bool) -> None:
    """A symmetric range leaves its end half a scale off; one a little wider does not."""
    weight = np.random.default_rng(1).uniform(-1, 1, (40, 16)).astype(np.float32)
    weight[:, 3] = 1.5
    importance = np.full(16, 1e-6, np.float32)
    importance[3] = 1
    grid = Grid(group_size=16, symmetric=symmetric)
    for shares, bound in ((WHOLE, 0.51), (FINEST, 0.15)):
        scales, zeros = fit_groups(weight, grid, [importance], shares)
        error = np.abs(grid.nearest(weight, scales, zeros) - weight)[:, 3] / scales[:, 0]
        assert error.max() < bound
    assert not symmetric or error.mean() < 0.05


def test_groups_of_zeros_stay_zeros() -> None:
    weight = np.zeros((3, 20), np.float32)
    importance = [np.ones(16, np.float32), np.ones(4, np.float32)]
    scales, zeros = fit_groups(weight, Grid(group_size=16), importance)
    np.testing.assert_array_equal(scales, 1)
    np.testing.assert_array_equal(zeros, 0)


def test_rows_are_fitted_alike_however_many_there_are() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(3, (2050, 40)).astype(np.float32)  # two rows more than are fitted at once
    grid = Grid(group_size=16)
    importance = [rng.uniform(size=inputs.stop - inputs.start).astype(np.float32) for _, inputs in grid.groups(40)]
    scales, zeros = fit_groups(weight, grid, importance)
    last_scales, last_zeros = fit_groups(weight[-2:], grid, importance)
    np.testing.assert_array_equal(scales[-2:], last_scales)
    np.testing.assert_array_equal(zeros[-2:], last_zeros)
