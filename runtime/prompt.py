"""A conversation → what the Thinker reads: token ids, TMRoPE position ids, and where the encoders' embeddings go.

Inputs: messages and the sizes of their media (mel frames, patch grids) → output: `Prompt`, with `token_ids (S)` and
`position_ids (3, S)` int64: time, height and width of every token (TMRoPE, arXiv 2503.20215, section 2.2). Nothing is
encoded here, so a prompt's length is known before anything is computed.

Text and sound have the same id in all three rows, one further at every token; 25 ids are a second. A picture starts at
the next free id: its tokens have that id in time, and row and column added to it in height and width. A video's frames
also add their time. In a video with sound, stretches of two seconds alternate: first what is seen in them, then what is
heard; both count their time from the video's start.

The reference is followed id for id, with its roundings, wherever it is consistent. It has one switch for all videos of
a conversation and no place for a silent one beside one with sound, nor for two frame rates: here every video has its
own sound, or none, and its own rate, and is laid out as the reference lays it out alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, BundleError, InputError
from . import images, manifest
from .mel import audio_tokens, mel_frames
from .messages import Audio, Image, Message, Part, Text, Video
from .tokenizer import Entry, Tokenizer
from .vision_layout import Grid

Kind = Literal["audio", "image", "video"]
Media = Audio | Image | Video


@dataclass(frozen=True)
class AudioSize:
    """A clip of so many mel frames."""

    frames: int


@dataclass(frozen=True)
class ImageSize:
    """An image of so many patches."""

    grid: Grid


@dataclass(frozen=True)
class VideoSize:
    """A video of so many patches, at so many frames a second, with a sound of so many mel frames or none."""

    grid: Grid
    fps: float
    audio_frames: int | None


MediaSize = AudioSize | ImageSize | VideoSize


@dataclass(frozen=True, eq=False)
class MediaSlot:
    """Where the embeddings of one clip, image or video go. A video with sound has two slots."""

    part: int
    """Which of the conversation's media it is, in the order of `media_parts`."""
    kind: Kind
    indices: NDArray[np.int64]
    """Index in the prompt of each embedding, in the encoder's order (for pictures: the processor's)."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt of `S` tokens, ending where the reply begins; or a part of one."""

    token_ids: NDArray[np.int64]
    """`(S)`; a placeholder id where an embedding goes."""
    position_ids: NDArray[np.int64]
    """`(3, S)`."""
    slots: tuple[MediaSlot, ...]
    """In the order of the conversation; the sound of a video follows it."""
    next_position: int
    """The id that what follows begins with."""

    @property
    def is_media(self) -> NDArray[np.bool_]:
        """`(S)`: tokens whose input embedding the Talker gets as zeros, since an encoder made it."""
        mask = np.zeros(len(self.token_ids), np.bool_)
        for slot in self.slots:
            mask[slot.indices] = True
        return mask


def media_parts(messages: Sequence[Message]) -> list[Media]:
    """Return the clips, images and videos of a conversation in order; a video's sound belongs to the video."""
    return [part for message in messages for part in message.content if not isinstance(part, Text)]


def media_size(part: Media, audio: manifest.Audio, vision: manifest.Vision) -> MediaSize:
    """Return the size a clip, image or video will have once preprocessed, without preprocessing it."""
    match part:
        case Audio():
            return AudioSize(mel_frames(part.samples.size, audio))
        case Image():
            return ImageSize(images.image_grid(part.pixels.shape[0], part.pixels.shape[1], vision, part.max_pixels))
        case Video():
            height, width = part.frames[0].shape[:2]
            grid = images.video_grid(len(part.frames), height, width, vision, part.max_pixels)
            return VideoSize(grid, part.fps, None if part.audio is None else mel_frames(part.audio.samples.size, audio))


def build_prompt(
    messages: Sequence[Message],
    sizes: Sequence[MediaSize],
    tokenizer: Tokenizer,
    tokens: manifest.Tokens,
    vision: manifest.Vision,
) -> Prompt:
    """Return the prompt of a conversation; `sizes` are those of `media_parts(messages)`.

    Raises `InputError` for a conversation without messages or one the chat template refuses, `AudioError` for a sound
    too short to become an embedding, `BundleError` when the template places media other than in the conversation.
    """
    if not messages:
        raise InputError("the conversation has no messages; give at least one")
    entries: list[Entry] = [
        {"role": message.role, "content": [template_entry(part) for part in message.content]} for message in messages
    ]
    return lay_out(tokenizer.encode_chat(entries), sizes, tokens, vision)


def lay_out(
    token_ids: Sequence[int],
    sizes: Sequence[MediaSize],
    tokens: manifest.Tokens,
    vision: manifest.Vision,
    first_position: int = 0,
) -> Prompt:
    """Return what token ids with one placeholder for each of `sizes` become, from position id `first_position` on.

    Raises `AudioError` for a sound too short to become an embedding, `BundleError` for placeholders of other media.
    """
    ids = np.asarray(token_ids, np.int64)
    places = placeholders(ids, tokens)
    expected = [_placeholder(size, tokens) for size in sizes]
    if ids[places].tolist() != expected:
        raise BundleError(
            f"the chat template placed media {ids[places].tolist()}, the conversation has {expected} "
            "(ids of audio, image and video); export the bundle again"
        )
    layout = _Layout(tokens, vision, first_position)
    start = 0
    for part, (place, size) in enumerate(zip(places.tolist(), sizes, strict=True)):
        layout.add_text(ids[start:place])
        layout.add_media(part, size)
        start = place + 1
    layout.add_text(ids[start:])
    return layout.finish()


def placeholders(token_ids: Sequence[int] | NDArray[np.int64], tokens: manifest.Tokens) -> NDArray[np.int64]:
    """Return where among token ids media stand."""
    return np.flatnonzero(np.isin(token_ids, [tokens.audio, tokens.image, tokens.video]))


class _Layout:
    """Token and position ids of a prompt, put together piece by piece."""

    def __init__(self, tokens: manifest.Tokens, vision: manifest.Vision, first_position: int) -> None:
        self._tokens = tokens
        self._vision = vision
        self._ids: list[NDArray[np.int64]] = []
        self._positions: list[NDArray[np.int64]] = []
        self._slots: list[MediaSlot] = []
        self._length = 0
        self._next = first_position  # one above the ids of the piece added last, which need not hold the largest of all

    def add_text(self, ids: NDArray[np.int64]) -> None:
        if ids.size:
            self._add(ids, _line(self._next, ids.size))

    def add_media(self, part: int, size: MediaSize) -> None:
        match size:
            case AudioSize(frames=frames):
                count = _audio_embeddings(frames, part)
                self._slots.append(MediaSlot(part, "audio", self._length + np.arange(count)))
                self._fill(self._tokens.audio, _line(self._next, count))
            case ImageSize(grid=grid):
                self._slots.append(MediaSlot(part, "image", self._length + np.arange(grid.embeddings(self._vision))))
                self._fill(self._tokens.image, self._picture(np.zeros(grid.t, np.int64), grid))
            case VideoSize(grid=grid, audio_frames=None):
                self._slots.append(MediaSlot(part, "video", self._length + np.arange(grid.embeddings(self._vision))))
                self._fill(self._tokens.video, self._picture(self._frame_times(size), grid))
            case VideoSize(audio_frames=int(frames)):
                self._add_video_with_sound(part, size, _audio_embeddings(frames, part))

    def finish(self) -> Prompt:
        positions = np.concatenate(self._positions, axis=1)
        return Prompt(np.concatenate(self._ids), positions, tuple(self._slots), self._next)

    def _add_video_with_sound(self, part: int, size: VideoSize, audio_count: int) -> None:
        """Seen and heard in turns of two seconds, between `audio_bos` and `audio_eos`.

        Those two share the position of the `vision_bos` before and the `vision_eos` behind them.
        """
        per_second = self._tokens.position_ids_per_second
        chunk = per_second * self._tokens.seconds_per_chunk
        self._add(np.array([self._tokens.audio_bos]), _line(self._next - 1, 1))
        seen = self._picture(self._frame_times(size), size.grid)
        heard = _line(self._next, audio_count)
        # The chunks follow times that are not rounded, in double precision, while the position ids are.
        exact = np.arange(size.grid.t) * (self._vision.temporal_patch_frames / size.fps) * per_second
        seen_chunks = _chunks(exact.repeat(seen.shape[1] // size.grid.t), chunk)
        heard_chunks = _chunks(np.arange(audio_count), chunk)
        video_indices: list[NDArray[np.int64]] = []
        audio_indices: list[NDArray[np.int64]] = []
        for turn in range(max(len(seen_chunks), len(heard_chunks))):
            if turn < len(seen_chunks):
                video_indices.append(self._fill(self._tokens.video, seen[:, seen_chunks[turn]]))
            if turn < len(heard_chunks):
                audio_indices.append(self._fill(self._tokens.audio, heard[:, heard_chunks[turn]]))
        self._slots.append(MediaSlot(part, "video", np.concatenate(video_indices)))
        self._slots.append(MediaSlot(part, "audio", np.concatenate(audio_indices)))
        self._add(np.array([self._tokens.audio_eos]), _line(self._next, 1))
        self._next -= 1

    def _frame_times(self, size: VideoSize) -> NDArray[np.int64]:
        """Position ids `(t)` of the temporal patches from the start: single precision, cut, as in the reference."""
        seconds = np.float32(self._vision.temporal_patch_frames / size.fps)
        times = np.arange(size.grid.t, dtype=np.float32) * seconds * np.float32(self._tokens.position_ids_per_second)
        return times.astype(np.int64)

    def _picture(self, times: NDArray[np.int64], grid: Grid) -> NDArray[np.int64]:
        """Positions `(3, embeddings)` of a picture that starts at the next free id."""
        merge = self._vision.merge_patches
        rows, columns = np.arange(grid.h // merge), np.arange(grid.w // merge)
        axes = np.meshgrid(times, rows, columns, indexing="ij")
        return self._next + np.stack([axis.reshape(-1) for axis in axes])

    def _fill(self, placeholder: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add one placeholder for each position and return their indices."""
        start = self._length
        self._add(np.full(positions.shape[1], placeholder), positions)
        return np.arange(start, self._length)

    def _add(self, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        self._ids.append(ids)
        self._positions.append(positions)
        self._length += ids.size
        self._next = int(positions.max()) + 1


def template_entry(part: Part) -> Entry:
    """Return what the chat template sees of a part."""
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Audio():
            return {"type": "audio"}
        case Image():
            return {"type": "image"}
        case Video():
            return {"type": "video"}


def _placeholder(size: MediaSize, tokens: manifest.Tokens) -> int:
    match size:
        case AudioSize():
            return tokens.audio
        case ImageSize():
            return tokens.image
        case VideoSize():
            return tokens.video


def _line(start: int, count: int) -> NDArray[np.int64]:
    """Positions `(3, count)` of text or sound from `start` on."""
    return np.broadcast_to(np.arange(start, start + count), (3, count))


def _audio_embeddings(frames: int, part: int) -> int:
    """Embeddings of a sound of so many mel frames, which must have one; `part` names it in the error."""
    count = audio_tokens(frames)
    if count < 1:
        raise AudioError(
            f"media {part} of the conversation has a sound of {10 * frames} ms; at least 30 ms are needed: leave it out"
        )
    return count


def _chunks(times: NDArray[np.floating | np.integer], length: int) -> list[slice]:
    """Cut tokens with rising times into stretches of `length`.

    As in the reference, one token ends at most one stretch: after a gap of several stretches, each of the next tokens
    is one of its own until their number has caught up.
    """
    cuts = [0]
    for index, time in enumerate(times.tolist()):
        if time >= len(cuts) * length:
            cuts.append(index)
    return [slice(start, end) for start, end in zip(cuts, [*cuts[1:], times.size], strict=True)]
