"""The two encoders: what is heard and seen → embeddings the Thinker reads.

Audio: log-mel `(128, frames)` → `(tokens, D)`, 25 a second. Vision: temporal patches `(h · w, 1176)` of a grid
`(t, h, w)` → `(t · h · w / 4, D)` in the processor's order. Embeddings are in the float type of the component.

Neither keeps anything between calls. Both run their graph on a bounded part of the input at a time; the parts do not
know each other (blocks of 2 seconds, temporal patches), so that the result is that of the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import AudioError, ImageError
from . import images
from .manifest import Audio, FloatType, Vision
from .mel import audio_tokens, log_mel
from .messages import Audio as Sound
from .messages import Image, Video
from .prompt import Kind, Media
from .vision_layout import Grid, VisionLayout, vision_layout

Array = npt.NDArray[Any]

BLOCKS_PER_CALL = 8
"""Audio blocks of one run of the graph, 16 seconds."""

PATCHES_PER_CALL = 4096
"""Vision patches of one run of the graph, four pictures of 448 × 448; a larger picture is a run of its own."""


class Runner(Protocol):
    """What of a session is needed here (`session.Session` has it)."""

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run the graph on arrays by name."""
        ...


class AudioEncoder:
    """`audio_encoder.onnx`."""

    def __init__(
        self, session: Runner, audio: Audio, float_type: FloatType, blocks_per_call: int = BLOCKS_PER_CALL
    ) -> None:
        self._session, self._audio = session, audio
        self._dtype = np.dtype(float_type)
        self._blocks_per_call = blocks_per_call

    def hear(self, sound: Sound) -> Array:
        """Return the embeddings `(tokens, D)` of a sound, 25 a second."""
        return self.encode(log_mel(sound.samples, self._audio))

    def encode(self, mel: Array) -> Array:
        """Return the embeddings `(tokens, D)` of a clip `(mel_bins, frames)`, with `audio_tokens(frames)` rows.

        Raises `AudioError` when `mel` has no frame or another number of bins.
        """
        self._check(mel)
        frames_per_call = self._blocks_per_call * self._audio.block_frames
        parts = [
            self._run(mel[:, start : start + frames_per_call]) for start in range(0, mel.shape[1], frames_per_call)
        ]
        return np.concatenate(parts)

    def encode_block(self, mel: Array) -> Array:
        """Return the embeddings of one block `(mel_bins, 1 … block_frames)`, as a stream hears it.

        All blocks of a clip but the last must be whole; their embeddings in a row are then those of the clip. Raises
        `AudioError` as `encode` does, and when there are more frames.
        """
        self._check(mel)
        if mel.shape[1] > self._audio.block_frames:
            raise AudioError(
                f"an audio block has {mel.shape[1]} mel frames; expected at most {self._audio.block_frames}: cut it"
            )
        return self._run(mel)

    def _run(self, mel: Array) -> Array:
        """Run a few blocks; only the last may be short."""
        frames, block_frames = mel.shape[1], self._audio.block_frames
        blocks = -(-frames // block_frames)
        padded = np.zeros((mel.shape[0], blocks * block_frames), self._dtype)
        padded[:, :frames] = mel
        lengths = np.full(blocks, block_frames, np.int64)
        lengths[-1] = frames - (blocks - 1) * block_frames
        batch = padded.reshape(-1, blocks, block_frames).transpose(1, 0, 2)  # (blocks, mel_bins, block_frames)
        outputs = self._session.run({"mel": np.ascontiguousarray(batch), "frames": lengths})
        embeddings = outputs["embeddings"]  # (blocks, block_frames / 4, D)
        return embeddings.reshape(-1, embeddings.shape[2])[: audio_tokens(frames)]

    def _check(self, mel: Array) -> None:
        if mel.ndim != 2 or mel.shape[0] != self._audio.mel_bins or not mel.shape[1]:
            raise AudioError(
                f"mel features have shape {mel.shape}; expected ({self._audio.mel_bins}, frames), at least one frame"
            )


class VisionEncoder:
    """`vision_encoder.onnx`."""

    def __init__(
        self, session: Runner, vision: Vision, float_type: FloatType, patches_per_call: int = PATCHES_PER_CALL
    ) -> None:
        self._session, self._vision = session, vision
        self._dtype = np.dtype(float_type)
        self._patches_per_call = patches_per_call

    def see(self, shown: Image | Video) -> Array:
        """Return the embeddings `(t · h · w / 4, D)` of a picture, or of a video without its sound."""
        height, width = (shown.pixels if isinstance(shown, Image) else shown.frames[0]).shape[:2]
        if isinstance(shown, Image):
            patches = images.image_patches(shown.pixels, self._vision, shown.max_pixels)
            return self.encode([patches], images.image_grid(height, width, self._vision, shown.max_pixels))
        grid = images.video_grid(len(shown.frames), height, width, self._vision, shown.max_pixels)
        return self.encode(images.video_patches(shown.frames, self._vision, shown.max_pixels), grid)

    def encode(self, temporal_patches: Iterable[Array], grid: Grid) -> Array:
        """Return the embeddings `(t · h · w / 4, D)` of an image or a video, in the processor's order.

        `temporal_patches` yields the patches `(h · w, 1176)` of each of the `t` temporal patches, in the processor's
        order; they are taken a few at a time, so that a video need not be in memory. Raises `ImageError` when they
        are not what `grid` says.
        """
        layout = vision_layout(grid.h, grid.w, self._vision)
        per_call = max(1, self._patches_per_call // (grid.h * grid.w))
        remaining = iter(temporal_patches)
        parts: list[Array] = []
        while batch := list(islice(remaining, per_call)):
            self._check(batch, grid)
            parts.extend(self._run(batch, layout))
        if len(parts) != grid.t:
            raise ImageError(f"there are {len(parts)} temporal patches; expected {grid.t}, because of {grid}")
        return np.concatenate(parts)

    def _run(self, batch: list[Array], layout: VisionLayout) -> Array:
        """Run a few temporal patches: `(T, P / 4, D)`."""
        pixels = np.stack([patches[layout.patch_order] for patches in batch])  # (T, P, 1176)
        outputs = self._session.run(
            {
                "pixels": pixels.astype(self._dtype, copy=False),
                "positions": layout.positions,
                "window_slots": layout.window_slots,
                "patch_slots": layout.patch_slots,
            }
        )
        return outputs["embeddings"][:, layout.embedding_order]

    def _check(self, batch: list[Array], grid: Grid) -> None:
        expected = (grid.h * grid.w, 3 * self._vision.temporal_patch_frames * self._vision.patch_pixels**2)
        for patches in batch:
            if patches.shape != expected:
                raise ImageError(f"patches have shape {patches.shape}; expected {expected}, because of {grid}")


def encode_part(part: Media, audio: AudioEncoder, vision: VisionEncoder) -> Mapping[Kind, Array]:
    """Return the embeddings of one clip, image or video; a video with sound has two kinds."""
    match part:
        case Sound():
            return {"audio": audio.hear(part)}
        case Image():
            return {"image": vision.see(part)}
        case Video():
            seen = vision.see(part)
            return {"video": seen} if part.audio is None else {"video": seen, "audio": audio.hear(part.audio)}
