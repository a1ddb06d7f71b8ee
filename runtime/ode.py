"""Solving an ordinary differential equation at a fixed schedule of times: state and velocity are float32 arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def solve_rk4(velocity: Callable[[int, Float32], Float32], times: Sequence[float], state: Float32) -> Float32:
    """Carry `state` from the first time to the last by Kutta's 3/8 rule, in float32 and in the reference's order.

    `times` holds `3 · steps + 1` times: a step goes from one to the third after it, by way of the two between.
    `velocity(i, state)` is the velocity at `times[i]`. (Kutta 1901; Hairer, Nørsett, Wanner, section II.1.)
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
