"""What passes between Nearfield and its audio process, and how it is written on the pipes between them.

    to the audio process:    DeviceChoice (first), Play, Finish, Hold, Resume, Drop
    from the audio process:  Heard, DeviceState, Progress, Failed (last)

A message is a head of eight bytes (two letters, its kind, the length of its body) and a body, numbers in little-endian
order. Times are of `time.monotonic`, which all processes of a machine share.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .frames import RATE_HZ

Float32 = npt.NDArray[np.float32]

MICROPHONE_RATE_HZ = RATE_HZ
SPEAKER_RATE_HZ = 24_000


@dataclass(frozen=True)
class DeviceChoice:
    """Which devices to use; None is the system's default, a part of a name enough when only one device has it."""

    microphone: str | None = None
    speaker: str | None = None
    echo_cancellation: bool = True


@dataclass(frozen=True)
class Play:
    """More of a reply: samples float32 `(n,)` at 24 kHz."""

    reply: int
    samples: Float32


@dataclass(frozen=True)
class Finish:
    """No more sound will come for this reply."""

    reply: int


@dataclass(frozen=True)
class Hold:
    """Fall silent at once; keep what was not played."""


@dataclass(frozen=True)
class Resume:
    """Go on where `Hold` stopped."""


@dataclass(frozen=True)
class Drop:
    """Fall silent at once and forget what was not played."""


@dataclass(frozen=True)
class Heard:
    """Sound from the microphone, echo removed."""

    samples: Float32
    """float32 `(512,)`, a frame: 32 ms at 16 kHz."""
    level: float
    """RMS before echo cancellation, 0 … 1."""
    captured_s: float
    """When its last sample entered the microphone, as well as the system can tell."""


@dataclass(frozen=True)
class DeviceState:
    """Whether sound comes and goes, and through what."""

    working: bool
    """Sound comes from the microphone, and the speaker takes it."""
    microphone: str | None
    """The device in use."""
    speaker: str | None
    trouble: str | None
    """What is wrong, in plain words; also possible while working, as when the microphone is muted."""


@dataclass(frozen=True)
class Played:
    """How far a reply has got."""

    samples: int
    """How many of its samples, at 24 kHz, have left the speaker."""
    finished: bool
    """All of it has, and no more will come."""
    first_sample_s: float | None
    """When the first one left the speaker."""
    underruns: int
    """How often it stopped for want of sound."""


NOTHING_PLAYED = Played(0, finished=False, first_sample_s=None, underruns=0)


@dataclass(frozen=True)
class Progress:
    """How far which reply has got."""

    reply: int
    played: Played


@dataclass(frozen=True)
class Failed:
    """The audio process ends: a device is not there, or cannot be used any more."""

    trouble: str
    """Why, in plain words."""


ToAudio = DeviceChoice | Play | Finish | Hold | Resume | Drop
FromAudio = Heard | DeviceState | Progress | Failed
Message = ToAudio | FromAudio

_HEAD = struct.Struct("<2sBxI")
_MARK = b"NF"
_LONGEST_BYTES = 1 << 26  # more than ten minutes of sound: a longer body is not one of ours
_REPLY = struct.Struct("<q")
_HEARD = struct.Struct("<dd")
_PROGRESS = struct.Struct("<qq?dq")
# Their places in this list are the kinds on the wire; both ends are always of one version.
_KINDS: tuple[type[Message], ...] = (
    DeviceChoice,
    Play,
    Finish,
    Hold,
    Resume,
    Drop,
    Heard,
    DeviceState,
    Progress,
    Failed,
)


class WireError(Exception):
    """Bytes that are no message."""


class Source(Protocol):
    """What messages are read from."""

    def read(self, size: int, /) -> bytes | None:
        """Up to `size` bytes; none at the end."""
        ...


def encode(message: Message) -> bytes:
    """A message as bytes."""
    body = _body(message)
    return _HEAD.pack(_MARK, _KINDS.index(type(message)), len(body)) + body


def read_message(source: Source) -> Message | None:
    """Wait for the next message; None at the end. Raises `WireError` for anything else, and what reading raises."""
    head = _read(source, _HEAD.size)
    if head is None:
        return None
    mark, kind, size = _HEAD.unpack(head)
    if mark != _MARK or kind >= len(_KINDS) or size > _LONGEST_BYTES:
        raise WireError(f"expected a message, found {head!r}")
    body = _read(source, size)
    if body is None:
        return None
    try:
        return _message(_KINDS[kind], body)
    except (ValueError, TypeError, struct.error) as error:
        raise WireError(f"a {_KINDS[kind].__name__} of {size} bytes cannot be read: {error}") from error


def _read(source: Source, size: int) -> bytes | None:
    """Exactly `size` bytes; None when the stream ends before."""
    data = b""
    while len(data) < size:
        more = source.read(size - len(data))
        if not more:
            return None
        data += more
    return data


def _body(message: Message) -> bytes:
    match message:
        case Play(reply, samples):
            return _REPLY.pack(reply) + samples.astype("<f4", copy=False).tobytes()
        case Finish(reply):
            return _REPLY.pack(reply)
        case Heard(samples, level, captured_s):
            return _HEARD.pack(level, captured_s) + samples.astype("<f4", copy=False).tobytes()
        case Progress(reply, Played(samples, finished, first_s, underruns)):
            return _PROGRESS.pack(reply, samples, finished, nan if first_s is None else first_s, underruns)
        case DeviceChoice() | DeviceState() | Failed():
            return json.dumps(asdict(message)).encode("utf-8")
        case Hold() | Resume() | Drop():
            return b""


def _message(kind: type[Message], body: bytes) -> Message:
    if kind is Play:
        (reply,) = _REPLY.unpack_from(body)
        return Play(reply, np.frombuffer(body, "<f4", offset=_REPLY.size))
    if kind is Finish:
        (reply,) = _REPLY.unpack(body)
        return Finish(reply)
    if kind is Heard:
        level, captured_s = _HEARD.unpack_from(body)
        return Heard(np.frombuffer(body, "<f4", offset=_HEARD.size), level, captured_s)
    if kind is Progress:
        reply, samples, finished, first_s, underruns = _PROGRESS.unpack(body)
        return Progress(reply, Played(samples, finished, None if isnan(first_s) else first_s, underruns))
    fields = json.loads(body or b"{}")
    return kind(**fields)
