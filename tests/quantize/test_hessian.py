"""Second moments of a layer's inputs, and their factor."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import QuantizationError
from nearfield.quantize.hessian import Factor, Hessian, relative_error
from tolerances import FACTOR
from tolerances import relative_error as difference

Array = npt.NDArray[np.float32]


def _inputs(columns: int, samples: int, seed: int = 0) -> Array:
    """Correlated inputs, some of them far larger than others."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((samples, columns)) @ rng.standard_normal((columns, columns)) / np.sqrt(columns)
    x: Array = (mixed * np.exp(rng.standard_normal(columns))).astype(np.float32)
    return x


def _hessian(x: npt.NDArray[np.floating]) -> Hessian:
    hessian = Hessian(x.shape[1])
    for start in range(0, len(x), 100):
        hessian.add(x[start : start + 100])
    return hessian


def _split(factor: Factor) -> tuple[Array, Array]:
    """R and the damped H, both in the factor's order."""
    lower = np.tril(factor.matrix, -1)
    return np.triu(factor.matrix), lower + lower.T + np.diag(factor.diagonal)


@pytest.mark.parametrize("columns", [1, 7, 256, 300])  # a block has 256
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_batches_add_up(columns: int, dtype: npt.DTypeLike) -> None:
    x = _inputs(columns, 350).astype(dtype)
    hessian = _hessian(x)
    matrix = hessian.matrix()
    assert hessian.samples == 350
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, matrix.T)
    assert difference(matrix, x.astype(np.float64).T @ x.astype(np.float64)) < FACTOR
    np.testing.assert_array_equal(hessian.matrix(), matrix)  # asking twice changes nothing


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("columns", [1, 40, 300, 513])
def test_the_factor_times_itself_is_the_damped_matrix(columns: int, overwrite: bool, act_order: bool) -> None:
    hessian = _hessian(_inputs(columns, 700))
    plain = hessian.matrix().astype(np.float64)
    factor = Factor(hessian, act_order=act_order, damping=0.03, overwrite=overwrite)
    diagonal = np.diagonal(plain)
    damped = plain + np.diag(0.03 * (diagonal + np.median(diagonal)))
    order = np.argsort(-np.diagonal(damped)) if act_order else np.arange(columns)
    np.testing.assert_array_equal(factor.order, order)
    triangle, kept = _split(factor)
    assert difference(kept, damped[order][:, order]) < FACTOR
    assert difference(triangle.astype(np.float64) @ triangle.T.astype(np.float64), kept) < FACTOR
    assert hessian.samples == (0 if overwrite else 700)
    if not overwrite:
        np.testing.assert_array_equal(hessian.matrix(), plain.astype(np.float32))


def test_importance_is_what_later_columns_cannot_make_up_for() -> None:
    factor = Factor(_hessian(_inputs(30, 500)), damping=0.01)
    _, ordered = _split(factor)
    for place, column in enumerate(factor.order):
        later = ordered[place + 1 :, place + 1 :]
        across = ordered[place, place + 1 :]
        left = ordered[place, place] - across @ np.linalg.solve(later, across)
        np.testing.assert_allclose(factor.importance()[column], left, rtol=1e-3)


@pytest.mark.parametrize("columns", [1, 40, 300])
def test_dividing_the_inputs_afterwards_is_dividing_them_before(columns: int) -> None:
    x = _inputs(columns, 900)
    scales = np.exp(np.random.default_rng(1).uniform(-1, 1, columns)).astype(np.float32)
    before = Factor(_hessian(x / scales), act_order=False, damping=0)
    after = Factor(_hessian(x), act_order=False, damping=0)
    after.divide(scales)
    for found, expected in zip(_split(after), _split(before), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_kurtosis_is_the_mean_fourth_power_over_the_squared_mean_square() -> None:
    x = np.random.default_rng(0).standard_t(7, (900, 300)).astype(np.float32)
    x[:, 7] = 0
    squares = x.astype(np.float64) ** 2
    expected = (squares**2).mean(0) / np.maximum(squares.mean(0) ** 2, 1e-9)
    assert 3.5 < expected.mean() < 6
    np.testing.assert_allclose(_hessian(x).kurtosis(), expected, rtol=1e-5)


def test_damping_rises_with_the_tails() -> None:
    rng, shares = np.random.default_rng(0), []
    for x in (rng.standard_normal((800, 20)), rng.standard_t(3, (800, 20))):
        plain = np.diagonal(_hessian(x).matrix())
        factor = Factor(_hessian(x))
        shares.append(float(((factor.diagonal - plain[factor.order]) / plain[factor.order]).min()))
    assert shares[1] > 1.2 * shares[0]


def test_damping_falls_with_the_samples() -> None:
    x = _inputs(20, 800)
    few, many = Factor(_hessian(x[:50])), Factor(_hessian(x))
    plain = np.diagonal(_hessian(x).matrix())
    share = 0.03 * np.sqrt(20 / 800 * _hessian(x).kurtosis() / 3)
    np.testing.assert_allclose(many.diagonal, (plain + share * (plain + np.median(plain)))[many.order], rtol=1e-6)
    shares = []
    for factor, hessian in ((few, _hessian(x[:50])), (many, _hessian(x))):
        plain = np.diagonal(hessian.matrix())[factor.order]
        shares.append(float(((factor.diagonal - plain) / plain).min()))
    assert shares[0] > 3 * shares[1]


def test_an_input_that_is_always_zero_is_alone() -> None:
    x = _inputs(20, 200)
    x[:, 7] = 0
    factor = Factor(_hessian(x))
    place = int(np.flatnonzero(factor.order == 7)[0])
    _, ordered = _split(factor)
    assert ordered[place, place] > 0
    assert not np.delete(ordered[place], place).any()


@given(seed=st.integers(0, 2**32 - 1))
def test_the_relative_error_is_that_of_the_outputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 5), (4, 5)))
    quantized = np.round(weight, 1)
    assert relative_error(weight, weight, x) == 0
    expected = np.linalg.norm(x @ (weight - quantized).T) ** 2 / np.linalg.norm(x @ weight.T) ** 2
    assert relative_error(weight, quantized, x) == pytest.approx(expected, rel=1e-4)


# Bad input


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 5)])
def test_activations_of_another_layer_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(QuantizationError, match=r"for a layer of 5 inputs: expected \(tokens, 5\)"):
        Hessian(5).add(np.ones(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_no_numbers_are_refused(value: float) -> None:
    x = np.ones((3, 5), np.float16)
    x[1, 2] = value
    with pytest.raises(QuantizationError, match="hold NaN or infinity; the model is damaged or overflows"):
        Hessian(5).add(x)


@pytest.mark.parametrize("samples", [0, 4])
def test_too_few_samples_are_refused(samples: int) -> None:
    hessian = _hessian(_inputs(40, samples))
    with pytest.raises(
        QuantizationError, match=rf"^{samples} tokens .* a layer of 40 inputs: expected at least 5, and"
    ):
        Factor(hessian)


def test_a_hessian_that_was_overwritten_is_refused() -> None:
    hessian = _hessian(_inputs(4, 50))
    Factor(hessian, overwrite=True)
    with pytest.raises(QuantizationError, match=r"^0 tokens"):
        Factor(hessian)


def test_a_layer_that_nothing_reaches_is_refused() -> None:
    with pytest.raises(QuantizationError, match="all activations of a layer of 6 inputs are 0"):
        Factor(_hessian(np.zeros((50, 6), np.float32)))


def test_a_singular_matrix_without_damping_is_refused() -> None:
    x = np.zeros((4, 2), np.float32)
    x[0] = 2  # both inputs are one: H is 4 everywhere, and its factor ends in an exact 0
    with pytest.raises(QuantizationError, match="of 2 inputs are not positive definite: raise the damping"):
        Factor(_hessian(x), damping=0)
    Factor(_hessian(x))
