"""Solvers on equations whose solution is known, and at times that are not evenly spread."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.errors import InputError
from nearfield.export.dit_modulation import rk4_times
from nearfield.runtime.ode import Solver, solve_rk4

Float32 = npt.NDArray[np.float32]

FINE = [float(time) for time in rk4_times(49, -1.0)]  # as the reference's, with 48 steps: dense near 0
BUNDLE = [float(time) for time in rk4_times(10, -1.0)]


def error(solver: Solver) -> float:
    """x′ = x from 1 ends at e."""
    return abs(float(solver.solve(lambda _, x: x, FINE, np.ones(1, np.float64))[0]) - np.e)


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("euler", 1)])
def test_half_the_step_divides_the_error_by_two_to_the_order(method: Literal["rk4", "euler"], order: int) -> None:
    """The inner times of `rk4` are not the 3/8 rule's: a third of its intervals is not a third of its time."""
    ratio = error(Solver(method, 4)) / error(Solver(method, 8))
    assert 0.75 * 2**order < ratio < 1.25 * 2**order


def test_the_three_eighths_rule_is_of_fourth_order() -> None:
    """x′ = x from 1 ends at e; halving the step divides the error by about 16."""

    def missed(steps: int) -> float:
        times = np.linspace(0, 1, 3 * steps + 1)
        end = solve_rk4(lambda _, x: x, [float(time) for time in times], np.ones(1, np.float64))
        return abs(float(end[0]) - np.e)

    assert 12 < missed(2) / missed(4) < 20


def test_with_the_steps_of_the_schedule_it_is_the_references_solver_to_the_bit() -> None:
    state = np.random.default_rng(0).standard_normal((4, 80), np.float32)

    def velocity(index: int, x: Float32) -> Float32:
        result: Float32 = np.sin(x + np.float32(index))
        return result

    np.testing.assert_array_equal(Solver("rk4", 9).solve(velocity, BUNDLE, state), solve_rk4(velocity, BUNDLE, state))


def test_near_the_thirds_a_long_step_is_the_three_eighths_rule() -> None:
    """On evenly spread times a step over six intervals has its inner times at its thirds exactly."""
    even = np.linspace(0, 1, 13).tolist()
    state = np.ones(3, np.float32)
    long = Solver("rk4", 2).solve(lambda i, x: np.cos(x + even[i]).astype(np.float32), even, state)
    rule = solve_rk4(lambda i, x: np.cos(x + even[2 * i]).astype(np.float32), even[::2], state)
    np.testing.assert_allclose(long, rule, rtol=1e-6)


@pytest.mark.parametrize("solver", [Solver("rk4", 9), Solver("rk4", 4), Solver("euler", 27), Solver("euler", 5)])
def test_it_evaluates_as_often_as_it_says_and_only_at_times_of_the_table(solver: Solver) -> None:
    asked = list[int]()

    def velocity(index: int, x: Float32) -> Float32:
        asked.append(index)
        return x

    assert solver.solve(velocity, BUNDLE, np.ones(2, np.float32)).dtype == np.float32
    assert len(asked) == solver.evaluations
    assert asked == sorted(asked)
    assert {0 <= index < len(BUNDLE) for index in asked} == {True}


@pytest.mark.parametrize(
    ("solver", "most"), [(Solver("rk4", 10), 9), (Solver("euler", 28), 27), (Solver("euler", 0), 27)]
)
def test_steps_that_the_schedule_has_no_times_for_are_refused(solver: Solver, most: int) -> None:
    with pytest.raises(
        InputError, match=rf"{solver.steps} steps of solver '{solver.method}' .* 28 times .* 1 … {most}"
    ):
        solver.check(BUNDLE)
