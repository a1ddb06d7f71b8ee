"""The log-mel spectrogram of a sound that is still being recorded, block by block.

Inputs: samples float32 `(n,)`, 16 kHz, any number at a time → outputs: blocks `(128, 200)` float32, 2 s each, as soon
as their last window is full, and at any time the rest, `(128, 1 … 200)`.

Windows, filters and the silence behind the end are those of `mel.log_mel`. One rule has to differ: everything further
than 80 dB below the clip's loudest frame is raised to that floor, and a stream does not know yet how loud the clip will
become. So a block's floor goes by the loudest frame up to the block's own end. Where nothing later is louder the result
is `log_mel`'s.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .manifest import Audio
from .mel import log_power, scale

Float32 = NDArray[np.float32]


class MelStream:
    """One sound as it comes."""

    def __init__(self, audio: Audio) -> None:
        self._audio = audio
        self._reach = audio.n_fft // 2  # samples a window reaches to each side of its frame's first
        self._first_frame = 0  # the next to be computed
        self._kept = np.empty(0, np.float32)  # from the first sample that frame sees, or from sample 0
        self._samples = 0
        self._loudest = -np.inf

    @property
    def frames(self) -> int:
        """How many frames the sound has so far."""
        return -(-self._samples // self._audio.hop_samples)

    def push(self, samples: Float32) -> list[Float32]:
        """Add samples `(n,)`; returns the blocks they complete."""
        self._kept = np.concatenate([self._kept, samples.astype(np.float32, copy=False)])
        self._samples += len(samples)
        audio, blocks = self._audio, list[Float32]()
        while self._available_frames() >= audio.block_frames:
            power = log_power(self._window(audio.block_frames), audio.block_frames, audio)
            self._loudest = max(self._loudest, float(power.max()))
            blocks.append(scale(power, self._loudest))
            self._forget(audio.block_frames)
        return blocks

    def rest(self) -> list[Float32]:
        """What is left if the sound ends here: none, one block, or a whole one and a short one. Changes nothing."""
        audio = self._audio
        frames = self.frames - self._first_frame
        if frames <= 0:
            return []
        # As in `log_mel`, the windows behind the end that still see the sound count for its loudness.
        seeing = -(-(self._samples + self._reach) // audio.hop_samples) - self._first_frame
        power = log_power(self._window(seeing), seeing, audio)
        floor = max(self._loudest, float(power.max()))
        block = audio.block_frames
        return [scale(power[:, start : min(start + block, frames)], floor) for start in range(0, frames, block)]

    def _available_frames(self) -> int:
        """Frames whose windows are full, from the first that is kept on."""
        beyond = self._samples - self._reach - self._first_frame * self._audio.hop_samples
        return beyond // self._audio.hop_samples + 1 if beyond >= 0 else 0

    def _window(self, frames: int) -> Float32:
        """Samples that the next `frames` frames see: reflected at the beginning, silent behind the end."""
        length = (frames - 1) * self._audio.hop_samples + self._audio.n_fft
        seen = np.pad(self._kept, (0, max(0, max(length, self._reach + 1) - len(self._kept))))
        if self._first_frame == 0:
            seen = np.concatenate([seen[self._reach : 0 : -1], seen])
        return seen[:length]

    def _forget(self, frames: int) -> None:
        """Drop what no later window sees."""
        begins_at_sample_0 = self._first_frame == 0
        self._first_frame += frames
        dropped = frames * self._audio.hop_samples - (self._reach if begins_at_sample_0 else 0)
        self._kept = self._kept[dropped:].copy()
