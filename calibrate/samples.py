"""Calibration data: conversations with their replies, read from a folder anyone can write.

Input: a folder with `calibration.jsonl`, one conversation a line in the form the model's processor takes, and the files
it names, by paths from the folder:

    {"messages": [{"role": "system", "content": "You are …"},
                  {"role": "user", "content": [{"type": "audio", "audio": "001.ogg"},
                                               {"type": "image", "image": "001.png"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "A red circle."}]}

A video is `{"type": "video", "video": ["f1.png", "f2.png", …], "fps": 2}`. The last message is the assistant's: the
reply the model would give. Output: `Sample`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ..errors import InputError
from ..runtime.audio import read_audio
from ..runtime.images import read_image
from ..runtime.messages import Audio, Image, Message, Part, Role, Text, Video

INDEX = "calibration.jsonl"
FEWEST = 16
"""Samples below which nothing is quantized; 128 and more are better."""


@dataclass(frozen=True)
class Sample:
    """A conversation up to the user's last message, and the reply to it."""

    messages: Sequence[Message]
    reply: str

    @property
    def modalities(self) -> frozenset[str]:
        """Which of text, audio and vision the user's messages hold."""
        names: dict[type, str] = {Text: "text", Audio: "audio", Image: "vision", Video: "vision"}
        return frozenset(
            names[type(part)] for message in self.messages if message.role == "user" for part in message.content
        )


class _Text(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    text: str


class _Audio(msgspec.Struct, frozen=True, tag="audio", forbid_unknown_fields=True):
    audio: str


class _Image(msgspec.Struct, frozen=True, tag="image", forbid_unknown_fields=True):
    image: str
    max_pixels: int | None = None


class _Video(msgspec.Struct, frozen=True, tag="video", forbid_unknown_fields=True):
    video: list[str]
    fps: float = 2.0


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Role
    content: str | list[_Text | _Audio | _Image | _Video]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    messages: list[_Message]


def read_samples(folder: Path, *, needed: frozenset[str] = frozenset({"text", "audio", "vision"})) -> list[Sample]:
    """Read all samples of a folder.

    Raises `InputError` when there is no index, a line is not as described or names a file that cannot be read, when
    there are fewer than `FEWEST`, and when a modality of `needed` is in none: a model calibrated without sound or
    pictures gets worse at just those.
    """
    index = folder / INDEX
    if not index.is_file():
        raise InputError(
            f"{folder} has no {INDEX}; expected a folder of calibration data: one conversation a line, as "
            "docs/quantize.md describes"
        )
    samples = list(_samples(index))
    if len(samples) < FEWEST:
        raise InputError(
            f"{index} holds {len(samples)} conversations; expected at least {FEWEST}, better 128, of the kind the "
            "model will be used for"
        )
    if missing := needed - frozenset().union(*(sample.modalities for sample in samples)):
        raise InputError(
            f"{index} holds no conversation with {' or '.join(sorted(missing))}; what a model is not calibrated on, it "
            "gets worse at: add some"
        )
    return samples


def _samples(index: Path) -> Iterator[Sample]:
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(index.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{index}, line {number}"
        try:
            messages = decoder.decode(line).messages
        except msgspec.DecodeError as error:
            raise InputError(f"{where} is no conversation: {error}; docs/quantize.md shows one") from error
        if not messages or messages[-1].role != "assistant" or not isinstance(messages[-1].content, str):
            raise InputError(
                f"{where}: the last message must be the assistant's, with a text: the reply to calibrate on"
            )
        if not messages[-1].content.strip():
            raise InputError(f"{where}: the assistant's reply is empty; write what the model should say")
        try:
            said = [Message(it.role, list(_parts(it.content, index.parent))) for it in messages[:-1]]
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if not any(message.role == "user" for message in said):
            raise InputError(f"{where}: there is no message of the user")
        yield Sample(said, messages[-1].content)


def _parts(content: str | list[_Text | _Audio | _Image | _Video], folder: Path) -> Iterator[Part]:
    for part in [_Text(content)] if isinstance(content, str) else content:
        match part:
            case _Text(text):
                yield Text(text)
            case _Audio(name):
                yield Audio(read_audio(folder / name))
            case _Image(name, max_pixels):
                yield Image(read_image(folder / name), max_pixels)
            case _Video(names, fps):
                yield Video([read_image(folder / name) for name in names], fps)
