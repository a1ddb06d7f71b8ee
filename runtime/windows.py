"""Cutting a reply's codes into the windows in which the DiT makes their mel, so that sound starts before the last code.

Inputs: codes `int64 (n,)` as they come, a plan and a seed → outputs: `Window`s, each with the codes and the noise that
the DiT is given and the frames of its mel that are final. What a window is depends on where it lies in the reply, never
on how the codes were handed over.

A frame's velocity depends on the blocks that the DiT's attention reaches from it. Frames near the ends of what the DiT
is given lack some of them, so a window is solved with blocks around it whose mel is thrown away. Each evaluation sees
further, through the states of the one before, so the result is near the whole reply's, not equal to it:
docs/streaming-speech.md has how near.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from . import manifest

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowPlan:
    """How long windows are and what is put around them, in blocks of the DiT (24 mel frames: 12 codes, 0.24 s).

    In blocks, because a window must begin where one of the whole reply's blocks does: no frame sees further than the
    blocks beside its own, and other blocks would be another mel.
    """

    first_blocks: int
    """Of the first window. The smaller, the sooner the first sound."""
    next_blocks: int = 1
    """Of the second; each after it is twice as long as the one before, about as long as all before it together: its
    codes have come before that has been heard, if the Talker is twice as fast as speech."""
    longest_blocks: int = 8
    """Windows grow no longer. With 2 blocks before and 1 after, 8 cost 11 blocks of work, 1 costs 4."""
    back_blocks: int = 2
    """Blocks before the window: two layers of the published DiT look one block back, so 2 can reach into it."""
    ahead_blocks: int = 1
    """Blocks after the window: one layer looks ahead. The last window, up to the reply's end, needs none."""

    def __post_init__(self) -> None:
        for name, least in (("first", 1), ("next", 1), ("longest", 1), ("back", 0), ("ahead", 0)):
            if (blocks := getattr(self, f"{name}_blocks")) < least:
                raise InputError(f"{name}_blocks of a window plan is {blocks}; expected at least {least}")

    @classmethod
    def streaming(cls, settings: manifest.Token2Wav) -> WindowPlan:
        """The plan for live speech: the smallest first window from which some sound comes, then growing ones.

        The vocoder's sound stays behind the mel by the frames it must see ahead. Published: 34, so that the first
        window has two blocks and its first sound needs 36 codes; nano: 18, one block, 24 codes.
        """
        return cls(first_blocks=settings.vocoder_context_frames // settings.block_frames + 1)

    def length_blocks(self, index: int) -> int:
        """Length of window `index` of a reply, counted from 0."""
        return self.first_blocks if index == 0 else min(self.next_blocks * 2 ** (index - 1), self.longest_blocks)

    @property
    def most_blocks(self) -> int:
        """The most blocks the DiT is ever given at a time: the last window may take up what was to be ahead."""
        return max(self.first_blocks, self.longest_blocks) + self.back_blocks + self.ahead_blocks


WHOLE = WindowPlan(first_blocks=sys.maxsize)
"""One window over the whole reply, as the reference does: nothing is solved before its end is known."""


@dataclass(frozen=True)
class Window:
    """What the DiT is given, and what of its result is kept."""

    codes: Int64
    """`(n,)`, from the first block of what is put before the window to the last of what is put after it."""
    noise: Float32
    """`(1, 2n, 80)`: the reply's noise at the same places."""
    frames: slice
    """The window itself, among the 2n mel frames."""


class Windows:
    """The codes of one reply, cut into windows. Keeps only what windows to come will need."""

    def __init__(self, plan: WindowPlan, settings: manifest.Token2Wav, seed: int) -> None:
        """`seed` decides the noise: drawn frame by frame, a frame has the same noise whatever the plan."""
        self._plan, self._frames_per_code, self._bins = plan, settings.frames_per_code, settings.mel_bins
        self._block_codes = settings.block_frames // settings.frames_per_code
        self._generator = np.random.default_rng(seed)
        self._codes: list[int] = []
        self._noise = np.empty((1, 0, self._bins), np.float32)
        self._dropped = 0
        self._index = self._start = 0
        self._finished = False

    @property
    def length(self) -> int:
        """Codes of the reply so far."""
        return self._dropped + len(self._codes)

    @property
    def done(self) -> bool:
        """Whether the reply has ended and all of it has been cut."""
        return self._finished and self._start == self.length

    def missing(self, windows: int) -> int:
        """How many codes the next so many windows still lack."""
        blocks = sum(self._plan.length_blocks(index) for index in range(self._index, self._index + windows))
        return max(0, self._start + (blocks + self._plan.ahead_blocks) * self._block_codes - self.length)

    def most_codes(self, more: int) -> int:
        """Codes in the longest window there may be if `more` follow."""
        return min(self.length + more, self._plan.most_blocks * self._block_codes)

    def push(self, codes: Int64) -> None:
        """Add codes `(n,)`."""
        self._codes += codes.tolist()

    def finish(self) -> None:
        """Say that no more codes come."""
        self._finished = True

    def next(self) -> Window | None:
        """Cut the next window; None while codes are missing for it, and when nothing is left."""
        plan, size = self._plan, self._block_codes
        first, start = max(0, self._start - plan.back_blocks * size), self._start
        end = start + plan.length_blocks(self._index) * size
        last = end + plan.ahead_blocks * size
        if last > self.length:
            if not self._finished or self.done:
                return None
            end = last = self.length
        self._drop(first)
        codes = np.array(self._codes[: last - first], np.int64)
        self._index, self._start = self._index + 1, end
        frames = slice((start - first) * self._frames_per_code, (end - first) * self._frames_per_code)
        return Window(codes, self._noise_of(len(codes)), frames)

    def _drop(self, first: int) -> None:
        """Forget what lies before code `first`."""
        codes = first - self._dropped
        del self._codes[:codes]
        self._noise = self._noise[:, codes * self._frames_per_code :]
        self._dropped = first

    def _noise_of(self, codes: int) -> Float32:
        """The noise of the first `codes` codes that are kept; what is not there yet is drawn."""
        frames = codes * self._frames_per_code
        missing = max(0, frames - self._noise.shape[1])
        drawn = self._generator.standard_normal((1, missing, self._bins), np.float32)
        self._noise = np.concatenate([self._noise, drawn], axis=1)  # a copy: what was dropped is freed
        return self._noise[:, :frames]
