"""Sounds that try a front end in different ways."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sound(kind: str, length: int, seed: int) -> NDArray[np.float32]:
    """A sound of `length` samples at 16 kHz."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(length) / 16_000
    made: dict[str, NDArray[Any]] = {
        "noise": 0.1 * rng.standard_normal(length),
        "whisper": 1e-6 * rng.standard_normal(length),
        "silence": np.zeros(length),
        "tone": np.sin(2 * np.pi * rng.uniform(40, 7_900) * seconds),
        "fading sweep": np.sin(2 * np.pi * (50 + 3_000 * seconds) * seconds) * np.exp(-3 * seconds),
        "step": (seconds > rng.uniform(0, length / 16_000)).astype(float),
        "click at the end": np.eye(1, length, length - 1)[0],
        "loud end": 1e-3 * rng.standard_normal(length) + (np.arange(length) > length - 100),
    }
    return made[kind].astype(np.float32)


KINDS = ["noise", "whisper", "silence", "tone", "fading sweep", "step", "click at the end", "loud end"]
