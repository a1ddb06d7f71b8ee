"""A conversation as files people can use: what was said as text, and all of it as one sound.

Inputs: the turns of a conversation as they are kept (store.py) → outputs, in one folder:

    conversation.txt    who said what, each with the time at which it is in the sound
    conversation.wav    16 bit, 24 kHz, you on the left and the answers on the right, the waiting left out
    picture-3.png       what was shown in turn 3

One sound rather than one a turn, because who wants to hear it again wants to press play once; on two sides, because
that is what takes the voices apart again in any editor.
"""

from __future__ import annotations

import contextlib
import io
import secrets
import wave
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import soxr

from ...errors import NearfieldError
from ...runtime.files import write_bytes_atomically
from .notices import Latency
from .store import QUESTION_RATE_HZ, REPLY_RATE_HZ, Turn

TRANSCRIPT, SOUND = "conversation.txt", "conversation.wav"
PAUSE_SAMPLES = REPLY_RATE_HZ // 2
"""Of silence behind every question and every reply."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Placed:
    """Where in the sound a turn's two parts begin, in samples."""

    question: int
    reply: int


def save_conversation(folder: Path, turns: Sequence[Turn], *, name: str = "Nearfield") -> list[Path]:
    """Write the conversation into `folder`, which is made; returns the files, the text first, none if there is no turn.

    `name` is what the model is called. An earlier save of the same conversation is replaced, each file whole or not at
    all. Raises `NearfieldError` when the folder cannot be written.
    """
    if not turns:
        return []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = {
            number: _write_picture(folder, number, turn.image)
            for number, turn in enumerate(turns, 1)
            if turn.image is not None
        }
        placed = _write_sound(folder / SOUND, turns)
        text = "\n".join(_transcript(turns, placed, pictures, name)) + "\n"
        write_bytes_atomically(folder / TRANSCRIPT, text.encode("utf-8"))
    except OSError as error:
        raise NearfieldError(
            f"the conversation cannot be saved in {folder} ({error.strerror or error}); choose another folder"
        ) from error
    return [folder / TRANSCRIPT, folder / SOUND, *(folder / picture for picture in pictures.values())]


def _write_picture(folder: Path, number: int, content: bytes) -> str:
    """Put a picture beside the text as the file it came from; returns its name."""
    with PIL.Image.open(io.BytesIO(content)) as picture:
        kind = (picture.format or "").lower()
    name = f"picture-{number}.{'jpg' if kind in ('jpeg', 'mpo') else kind}"
    write_bytes_atomically(folder / name, content)
    return name


def _transcript(
    turns: Sequence[Turn], placed: Sequence[_Placed], pictures: Mapping[int, str], name: str
) -> Iterator[str]:
    ended = turns[-1].ended.astimezone()
    yield f"A conversation, until {ended:%Y-%m-%d %H:%M}"
    yield f"The times are those in {SOUND}: you on the left, {name} on the right."
    for number, (turn, place) in enumerate(zip(turns, placed, strict=True), 1):
        yield ""
        yield f"{_time(place.question)}  You: {turn.question_text or _unwritten(turn)}"
        if number in pictures:
            yield f"{' ' * 7}[picture: {pictures[number]}]"
        yield f"{_time(place.reply)}  {name}: {turn.heard_text.strip()}{' [interrupted]' if turn.interrupted else ''}"
        if took := _latency(turn.timing).in_words():
            yield f"{' ' * 7}[{took}]"


def _unwritten(turn: Turn) -> str:
    """What stands for a question of which only the sound is known."""
    seconds = 0.0 if turn.question_sound is None else len(turn.question_sound) / QUESTION_RATE_HZ
    return f"[{seconds:.1f} s of speech]"


def _latency(timing: Mapping[str, float | None]) -> Latency:
    """Of what was kept, what is told."""
    return Latency(timing.get("silence_wait_ms"), None, None, timing.get("first_sound_ms"))


def _time(samples: int) -> str:
    """Minutes and seconds."""
    minutes, seconds = divmod(samples // REPLY_RATE_HZ, 60)
    return f"{minutes:2}:{seconds:02}"


def _write_sound(path: Path, turns: Sequence[Turn]) -> list[_Placed]:
    """Write the sound turn by turn, as that of a long conversation takes much memory; returns where each turn is."""
    partial = path.with_name(f".nearfield-{secrets.token_hex(4)}.partial")
    placed, written = [], 0
    try:
        with partial.open("xb") as file, wave.open(file, "wb") as sound:
            sound.setparams((2, 2, REPLY_RATE_HZ, 0, "NONE", "not compressed"))
            for turn in turns:
                left, right = _pcm(_resampled(turn.question_sound)), _pcm(turn.reply_sound)
                placed.append(_Placed(written, written + len(left)))
                both = np.zeros((len(left) + len(right), 2), "<i2")  # (N, left and right)
                both[: len(left), 0], both[len(left) :, 1] = left, right
                sound.writeframes(both.tobytes())
                written += len(both)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            partial.unlink(missing_ok=True)
    return placed


def _resampled(samples: Float32 | None) -> Float32 | None:
    """16 → 24 kHz."""
    if samples is None or not len(samples):
        return samples
    return np.asarray(soxr.resample(samples, QUESTION_RATE_HZ, REPLY_RATE_HZ), dtype=np.float32)


def _pcm(samples: Float32 | None) -> npt.NDArray[np.int16]:
    """As 16 bit, clipped at full scale, with the pause behind it; of no sound nothing."""
    if samples is None or not len(samples):
        return np.empty(0, np.int16)
    pcm = np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype(np.int16)
    return np.pad(pcm, (0, PAUSE_SAMPLES))
