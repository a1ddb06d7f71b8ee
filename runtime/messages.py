"""What a conversation is made of: messages by system, user and assistant, each a sequence of parts.

Arrays are checked where a part is made, so that a mistake is reported where it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import AudioError, InputError
from .images import check_frames, check_image

Role = Literal["system", "user", "assistant"]

SYSTEM_PROMPT = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)
"""The publisher's instructions; the reference warns that speech may not work with any other."""


@dataclass(frozen=True)
class Text:
    """Words. Control tokens written in it, such as `<|im_end|>`, are read as the plain characters they are."""

    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise InputError(f"text must be a str, found {type(self.text).__name__}")
        try:
            self.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"text holds half a character at position {error.start}: {self.text!r}; if it was typed in a terminal, "
                "the terminal's encoding is not UTF-8: set PYTHONUTF8=1"
            ) from error


@dataclass(frozen=True, eq=False)
class Audio:
    """A sound: float32 `(N,)`, 16 kHz, mono, full scale ±1, as `audio.read_audio` and `audio.from_array` give it."""

    samples: NDArray[np.float32]

    def __post_init__(self) -> None:
        samples = self.samples
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
            found = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples).__name__
            raise AudioError(f"audio must be float32 (N,) at 16 kHz, found {found}; audio.from_array converts it")
        if not samples.size:
            raise AudioError("the audio is empty; give a recording")
        if not np.isfinite(samples).all():
            raise AudioError("the audio holds values that are not finite (NaN or infinity); record it again")


@dataclass(frozen=True, eq=False)
class Image:
    """A picture: RGB uint8 `(H, W, 3)`, as `images.read_image` gives it."""

    pixels: NDArray[np.uint8]
    max_pixels: int | None = None
    """Scale it down to about this many, 784 for each position it takes; a photograph of 12 megapixels takes 16 000."""

    def __post_init__(self) -> None:
        check_image(self.pixels)
        _check_max_pixels(self.max_pixels)


@dataclass(frozen=True, eq=False)
class Video:
    """Frames at an even rate: RGB uint8, a sequence of `(H, W, 3)` or an array `(N, H, W, 3)`, and the sound if any."""

    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
    fps: float
    audio: Audio | None = None
    max_pixels: int | None = None
    """Scale each frame down to about this many: two frames take a position for every 784. At 2 frames a second and the
    checkpoint's own limit a minute takes up to 46 000 positions, more than there are."""

    def __post_init__(self) -> None:
        check_frames(self.frames)
        _check_max_pixels(self.max_pixels)
        if not 0 < self.fps < float("inf"):
            raise InputError(f"a video's fps must be above 0, found {self.fps}; give the rate the frames were taken at")


Part = Text | Audio | Image | Video


def _check_max_pixels(max_pixels: int | None) -> None:
    if max_pixels is not None and max_pixels < 1:
        raise InputError(f"max_pixels must be above 0, found {max_pixels}")


@dataclass(frozen=True)
class Message:
    """One turn, or the system's instructions."""

    role: Role
    content: Sequence[Part]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InputError(f"a message's role must be one of {', '.join(get_args(Role))}, found {self.role!r}")
        for part in self.content:
            if not isinstance(part, Part):
                raise InputError(f"a message holds Text, Audio, Image and Video, found {type(part).__name__}")
