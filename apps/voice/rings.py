"""A ring of samples between a device's callback and the rest: one writes, the other reads, nobody waits.

Only the writer moves `written`, only the reader moves `read`, and each moves its number after its copy is done; so
neither needs a lock. Both count samples since the beginning and never go back.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


class Ring:
    """Samples float32, first in, first out."""

    def __init__(self, capacity_samples: int) -> None:
        self._buffer = np.zeros(capacity_samples, np.float32)
        self._written = 0
        self._read = 0

    @property
    def written(self) -> int:
        """How many samples have gone in."""
        return self._written

    @property
    def read(self) -> int:
        """How many samples have come out, or were skipped."""
        return self._read

    @property
    def filled(self) -> int:
        """How many samples wait to be read."""
        return self._written - self._read

    @property
    def room(self) -> int:
        """How many samples fit in."""
        return len(self._buffer) - self.filled

    def write(self, samples: Float32) -> int:
        """Put in as many of the samples `(n,)` as fit; returns how many. For the writer."""
        count = min(len(samples), self.room)
        start = self._written % len(self._buffer)
        first = min(count, len(self._buffer) - start)
        self._buffer[start : start + first] = samples[:first]
        self._buffer[: count - first] = samples[first:count]
        self._written += count
        return count

    def read_into(self, out: Float32) -> int:
        """Take out as many samples as there are, up to `len(out)`, and return how many. For the reader."""
        count = min(len(out), self.filled)
        start = self._read % len(self._buffer)
        first = min(count, len(self._buffer) - start)
        out[:first] = self._buffer[start : start + first]
        out[first:count] = self._buffer[: count - first]
        self._read += count
        return count

    def take(self) -> Float32:
        """All that is there, as a new array `(n,)`. For the reader."""
        out = np.empty(self.filled, np.float32)
        return out[: self.read_into(out)]

    def skip_to(self, position: int) -> None:
        """Forget what lies before sample number `position`. For the reader."""
        self._read = max(self._read, min(position, self._written))
