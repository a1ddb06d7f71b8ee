"""Solving an ordinary differential equation at times from a fixed table: state and velocity are float32 arrays.

`velocity(i, state)` is the velocity at `times[i]`: there is no other time, as a bundle holds the DiT's modulation at
these alone. `times` are those of the reference's solver, `3 · 9 + 1` in a published bundle: the ends of its steps, and
two between, a third and two thirds of the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Float32 = npt.NDArray[np.float32]
Velocity = Callable[[int, Float32], Float32]


@dataclass(frozen=True)
class Solver:
    """How the state is carried from the first time to the last. Measured in docs/streaming-speech.md."""

    method: Literal["rk4", "euler"]
    steps: int
    """Spread evenly over the table, whose times lie denser near the noise. With as many `rk4` steps as the table was
    made for, this is the reference's solver."""

    @property
    def evaluations(self) -> int:
        """Evaluations of the velocity, which are nearly all the work."""
        return self.steps * (4 if self.method == "rk4" else 1)

    def check(self, times: Sequence[float]) -> None:
        """Raise `InputError` when the table has too few times for the steps."""
        intervals = len(times) - 1
        most = intervals // 3 if self.method == "rk4" else intervals
        if not 1 <= self.steps <= most:
            raise InputError(
                f"{self.steps} steps of solver {self.method!r} were asked for; "
                f"with the {len(times)} times of the bundle's schedule it can make 1 … {most}"
            )

    def solve(self, velocity: Velocity, times: Sequence[float], state: Float32) -> Float32:
        """Carry `state` from the first time to the last."""
        intervals = len(times) - 1
        if self.method == "rk4" and 3 * self.steps == intervals:
            return solve_rk4(velocity, times, state)
        ends = [round(step * intervals / self.steps) for step in range(self.steps + 1)]
        advance = _rk4_step if self.method == "rk4" else _euler_step
        for start, end in pairwise(ends):
            state = advance(velocity, times, start, end, state)
        return state


def solve_rk4(velocity: Velocity, times: Sequence[float], state: Float32) -> Float32:
    """Carry `state` from the first time to the last by Kutta's 3/8 rule, in float32 and in the reference's order.

    `times` holds `3 · steps + 1` times: a step goes from one to the third after it, by way of the two between.
    (Kutta 1901; Hairer, Nørsett, Wanner, section II.1.)
    """
    third, eighth = np.float32(1 / 3), np.float32(1 / 8)
    for start in range(0, len(times) - 1, 3):
        step = np.float32(times[start + 3]) - np.float32(times[start])
        k1 = velocity(start, state)
        k2 = velocity(start + 1, state + step * k1 * third)
        mixed: Float32 = k2 - k1 * third
        k3 = velocity(start + 2, state + step * mixed)
        k4 = velocity(start + 3, state + step * (k1 - k2 + k3))
        state = state + (k1 + 3 * (k2 + k3) + k4) * step * eighth
    return state


def _euler_step(velocity: Velocity, times: Sequence[float], start: int, end: int, state: Float32) -> Float32:
    """Go on with the velocity at the start."""
    return state + np.float32(times[end] - times[start]) * velocity(start, state)


def _rk4_step(velocity: Velocity, times: Sequence[float], start: int, end: int, state: Float32) -> Float32:
    """A step of fourth order whose two inner evaluations are where the table has times, near the thirds.

    No longer step has times of the table at its thirds exactly, which the 3/8 rule needs. Kutta's family has a method
    of the same order for any two inner times; at the thirds it is the 3/8 rule.
    """
    inner = start + round((end - start) / 3), end - round((end - start) / 3)
    step = times[end] - times[start]
    c2, c3 = ((times[place] - times[start]) / step for place in inner)
    (a32, a42, a43), weights = _kutta(c2, c3)
    k1 = velocity(start, state)
    k2 = velocity(inner[0], _moved(state, step, (c2, k1)))
    k3 = velocity(inner[1], _moved(state, step, (c3 - a32, k1), (a32, k2)))
    k4 = velocity(end, _moved(state, step, (1 - a42 - a43, k1), (a42, k2), (a43, k3)))
    return _moved(state, step, *zip(weights, (k1, k2, k3, k4), strict=True))


def _moved(state: Float32, step: float, *terms: tuple[float, Float32]) -> Float32:
    for weight, velocity in terms:
        state = state + np.float32(step * weight) * velocity
    return state


def _kutta(c2: float, c3: float) -> tuple[tuple[float, float, float], list[float]]:
    """Coefficients `a32, a42, a43` and weights of the four-stage method of order 4 with stages at 0, c2, c3, 1.

    The weights integrate cubics exactly; the rest follows from the conditions of order 4 (Hairer, Nørsett, Wanner,
    section II.1).
    """
    powers = np.vander([0.0, c2, c3, 1.0], increasing=True).T
    b1, b2, b3, b4 = np.linalg.solve(powers, [1, 1 / 2, 1 / 3, 1 / 4]).tolist()
    a32 = (b2 * (1 - c2) * c2 + b3 * (1 - c3) * c3 - 1 / 8) / (b3 * c2 * (1 - c3))
    a42, a43 = (b2 * (1 - c2) - b3 * a32) / b4, b3 * (1 - c3) / b4
    return (a32, a42, a43), [b1, b2, b3, b4]
