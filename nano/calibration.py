"""Nano's calibration data: nano/calibration, conversations of the training split as `nearfield quantize` reads them.

Inputs: recordings, pictures and clips of the training split, as stage ``understand`` meets them → outputs: the folder,
in the repository.
"""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image as Picture

from ..calibrate.samples import INDEX
from ..runtime.files import write_bytes_atomically
from ..runtime.messages import Audio, Image, Part, Text, Video
from .recordings import SAMPLE_RATE_HZ, Recordings
from .understand import LESSONS, Conversations

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "calibration"
_COUNT, _SEED = 128, 4
_CLIPS_A_BATCH = 1


def write(folder: Path = FOLDER) -> int:
    """Write the set anew; returns its bytes."""
    conversations, rng = Conversations(Recordings.load("train"), LESSONS), np.random.default_rng(_SEED)
    drawn = [one.example for _ in range(_COUNT // 16 + 1) for batch in conversations.batches(rng, _CLIPS_A_BATCH)
             for one in batch][:_COUNT]  # fmt: skip
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    lines = []
    for number, example in enumerate(drawn):
        messages: list[dict[str, Any]] = []
        for turn, message in enumerate(example.messages):
            parts = [_kept(part, folder, f"{number:03}-{turn}-{place}") for place, part in enumerate(message.content)]
            messages.append({"role": message.role, "content": parts})
        messages.append({"role": "assistant", "content": example.reply})
        lines.append(json.dumps({"messages": messages}))
    write_bytes_atomically(folder / INDEX, ("\n".join(lines) + "\n").encode())
    return sum(file.stat().st_size for file in folder.iterdir())


def main() -> None:
    """Write the set of the repository."""
    log.info("%s: %s bytes", FOLDER, f"{write():,}")


def _kept(part: Part, folder: Path, name: str) -> dict[str, Any]:
    """Write a part's files; returns how the index names it."""
    match part:
        case Text(text):
            return {"type": "text", "text": text}
        case Audio(samples):
            file = io.BytesIO()
            soundfile.write(file, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
            (folder / f"{name}.ogg").write_bytes(file.getvalue())
            return {"type": "audio", "audio": f"{name}.ogg"}
        case Image():
            return {"type": "image", "image": _picture(part.pixels, folder, name)}
        case Video():
            frames = [_picture(frame, folder, f"{name}-{index}") for index, frame in enumerate(part.frames)]
            return {"type": "video", "video": frames, "fps": part.fps}
    raise TypeError(type(part).__name__)


def _picture(pixels: np.ndarray[Any, np.dtype[np.uint8]], folder: Path, name: str) -> str:
    Picture.fromarray(pixels).save(folder / f"{name}.jpg", quality=80)
    return f"{name}.jpg"
