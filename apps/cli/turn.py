"""One turn for `ask` and `demo`: files → messages; events → text as it comes, and the whole reply at the end.

Output: `Reply`, with its text, `samples float32 (n)` at `sample_rate_hz` and its timing; as a WAV file and as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
import psutil

from ...errors import NearfieldError
from ...runtime import manifest
from ...runtime.audio import read_audio, write_wav
from ...runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from ...runtime.files import write_bytes_atomically
from ...runtime.images import read_image
from ...runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Part, Text
from ...runtime.prompt import media_parts
from .common import IMAGE_PIXELS, heard_seconds

_MEGABYTE = 1e6
# Control characters but newline and tab: a reply must not be able to steer the terminal.
_SHOWN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


@dataclass(frozen=True)
class Reply:
    """All of a turn."""

    end: TurnEnd
    samples: npt.NDArray[np.float32]
    sample_rate_hz: int
    text_error: OSError | None = None
    """Why not all of the text could be shown."""


def conversation(
    *,
    system: str | None = None,
    audio: Path | None = None,
    image: Path | None = None,
    text: str | None = None,
    image_pixels: int = IMAGE_PIXELS,
) -> list[Message]:
    """One question under instructions to the model, by default its publisher's. Raises `InputError` for a bad file."""
    instructions = Message("system", [Text(SYSTEM_PROMPT if system is None else system)])
    return [instructions, question(audio=audio, image=image, text=text, image_pixels=image_pixels)]


def question(
    *,
    audio: Path | None = None,
    image: Path | None = None,
    text: str | None = None,
    image_pixels: int = IMAGE_PIXELS,
) -> Message:
    """What a user asks, its parts in this order. Raises `InputError` for a bad file."""
    parts: list[Part] = []
    if audio is not None:
        parts.append(Audio(read_audio(audio)))
    if image is not None:
        parts.append(Image(read_image(image), image_pixels))
    if text is not None:
        parts.append(Text(text))
    return Message("user", parts)


def take(events: Iterable[Event], out: TextIO) -> Reply:
    """Drain a turn, writing its text to `out` as it comes; a silent turn has no samples and rate 0.

    When `out` cannot be written any more the turn goes on without it: its speech may still be wanted.
    """
    chunks: list[npt.NDArray[np.float32]] = []
    sample_rate_hz = 0
    end: TurnEnd | None = None
    text_error: OSError | None = None
    for event in events:
        match event:
            case TextDelta():
                text_error = text_error or _show(event.text.translate(_SHOWN), out)
            case AudioChunk():
                chunks.append(event.samples)
                sample_rate_hz = event.sample_rate_hz
            case TurnEnd():
                end = event
    text_error = text_error or _show("\n", out)
    if end is None:
        raise NearfieldError("the turn broke off without an end; run again with --debug and report what it shows")
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
    return Reply(end, samples, sample_rate_hz, text_error)


def _show(text: str, out: TextIO) -> OSError | None:
    """Write at once; returns the error when that fails, as where the reader of a pipe has gone."""
    try:
        out.write(text)
        out.flush()
    except OSError as error:
        return error
    return None


def cut_sound(messages: Sequence[Message], audio: manifest.Audio) -> str | None:
    """A line that says so when a clip of the conversation is longer than the checkpoint hears."""
    limit_seconds = heard_seconds(audio)
    for part in media_parts(messages):
        if isinstance(part, Audio) and len(part.samples) > limit_seconds * audio.sample_rate_hz:
            seconds = len(part.samples) / audio.sample_rate_hz
            return f"only the first {limit_seconds:g} s of {seconds:.0f} s are heard: the checkpoint's limit"
    return None


def cuts(reply: Reply, max_codes: int) -> list[str]:
    """What of the reply was cut, and by which option; nothing when it ended of itself."""
    found = []
    match reply.end.stop_reason:
        case "max_tokens":
            found.append("text cut by --max-tokens")
        case "context":
            found.append("text cut by --context")
    match reply.end.speech_stop_reason:
        case "max_codes" if reply.end.timing.codes < max_codes:
            found.append("speech cut by the checkpoint's limit")
        case "max_codes":
            found.append("speech cut by --max-seconds")
        case "text":
            found.append("speech cut: it did not end long after its text was said")
        case "context":
            found.append("speech cut by its context (--context, or a shorter question)")
    return found


def summary(reply: Reply) -> str:
    """How long the turn took, in one line."""
    timing = reply.end.timing
    parts = [f"{timing.prompt_tokens} prompt tokens, {timing.reply_tokens} reply tokens in {timing.text_ms:.0f} ms"]
    if timing.time_to_first_token_ms is not None:
        parts.append(f"first token after {timing.time_to_first_token_ms:.0f} ms")
    if timing.time_to_first_audio_ms is not None:
        parts.append(f"first sound after {timing.time_to_first_audio_ms:.0f} ms")
    factor = real_time_factor(reply)
    if factor is not None:
        parts.append(f"{timing.audio_seconds:.2f} s of speech, real-time factor {factor:.2f}")
    return "; ".join(parts)


def latency(reply: Reply) -> str:
    """How long a person waits for the turn, in one short line; RTF is the real-time factor."""
    timing = reply.end.timing
    parts = []
    if timing.time_to_first_token_ms is not None:
        parts.append(f"first text {timing.time_to_first_token_ms:.0f} ms")
    if timing.time_to_first_audio_ms is not None:
        parts.append(f"first sound {timing.time_to_first_audio_ms:.0f} ms")
    parts.append(f"total {timing.total_ms:.0f} ms")
    factor = real_time_factor(reply)
    if factor is not None:
        parts.append(f"speech {timing.audio_seconds:.1f} s, RTF {factor:.2f}")
    return ", ".join(parts)


def real_time_factor(reply: Reply) -> float | None:
    """Time the turn took over the length of its speech, so under 1 is faster than speaking; None without speech."""
    timing = reply.end.timing
    return timing.total_ms / 1000 / timing.audio_seconds if timing.audio_seconds > 0 else None


def write_speech(path: Path, reply: Reply) -> str:
    """Write the speech as a WAV file, if there is any, and return a line that says so. Raises `AudioError`."""
    if not len(reply.samples):
        return f"no speech: the reply was too short to be spoken; {path} is not written"
    write_wav(path, reply.samples, reply.sample_rate_hz)
    return f"speech: {path} ({len(reply.samples) / reply.sample_rate_hz:.2f} s at {reply.sample_rate_hz / 1000:g} kHz)"


def record(reply: Reply) -> dict[str, object]:
    """What the turn said and how long it took, as it is written in JSON."""
    timing = asdict(reply.end.timing)
    return {
        "transcript": reply.end.text,
        "stop_reason": reply.end.stop_reason,
        "speech_stop_reason": reply.end.speech_stop_reason,
        "sample_rate_hz": reply.sample_rate_hz,
        **timing,
        "real_time_factor": real_time_factor(reply),
        "peak_rss_mb": round(peak_rss_bytes() / _MEGABYTE, 1),
    }


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write it for people and programs to read. Raises `NearfieldError` when the file cannot be written."""
    try:
        write_bytes_atomically(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    except OSError as error:
        raise NearfieldError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def peak_rss_bytes() -> int:
    """Most main memory this process has held so far."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # POSIX only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes, but bytes on macOS
