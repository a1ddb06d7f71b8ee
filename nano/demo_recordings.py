"""What `nearfield demo` asks: its questions spoken by a held-out voice, its picture from the held-out combinations.

Outputs, in apps/cli/demo_data: question-N.flac, 16-bit mono at 16 kHz, and purple_star.png. Run as
`python -m nearfield.nano.demo_recordings [VOICE]`; the same voice gives the same bytes.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image

from ..apps.cli.common import DEMO_QUESTIONS
from ..errors import InputError
from ..runtime.audio import SAMPLE_RATE_HZ, from_array
from .pictures import draw
from .synthesizers import Voice, speak, voices

DEFAULT_VOICE = "flite/rms"
_PEAK = 0.5  # −6 dB
_SILENCE = 0.01  # of the peak
_PAUSE_SECONDS = 0.15  # before and after what is said
_MIN_SIDE_PIXELS, _MAX_PICTURE_BYTES = 200, 40_000
_MAX_DRAWS = 20_000


def make(voice_name: str = DEFAULT_VOICE) -> list[Path]:
    """Make all files of the demo's questions and return them. Raises `InputError` for a voice that is not held out."""
    voice = _held_out(voice_name)
    made = []
    for question in DEMO_QUESTIONS:
        spoken = speak(voice, question.words)
        samples = _trimmed(from_array(spoken.samples, spoken.sample_rate_hz))
        soundfile.write(question.recording, samples, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
        made.append(question.recording)
        if question.picture is not None:
            colour, shape = question.picture.stem.split("_")
            question.picture.write_bytes(_picture(colour, shape))
            made.append(question.picture)
    return made


def _held_out(name: str) -> Voice:
    found = {voice.name: voice for voice in voices("heldout")}
    if name not in found:
        raise InputError(f"no held-out voice is called {name!r}; there are {', '.join(found)}")
    return found[name]


def _trimmed(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(N,)`, with the same short pause before and after the words, at the same level whatever the voice."""
    level = samples / np.abs(samples).max()
    loud = np.flatnonzero(np.abs(level) > _SILENCE)
    words = level[loud[0] : loud[-1] + 1] * np.float32(_PEAK)
    return np.pad(words, round(_PAUSE_SECONDS * SAMPLE_RATE_HZ))


def _picture(colour: str, shape: str) -> bytes:
    """The first held-out picture of that kind that is large enough to look at and small enough to ship, as PNG."""
    rng = np.random.default_rng(0)
    for _ in range(_MAX_DRAWS):
        picture = draw(rng, "heldout")
        if (picture.colour, picture.shape) != (colour, shape) or min(picture.pixels.shape[:2]) < _MIN_SIDE_PIXELS:
            continue
        file = io.BytesIO()
        Image.fromarray(picture.pixels).save(file, "PNG", optimize=True)
        if file.tell() <= _MAX_PICTURE_BYTES:
            return file.getvalue()
    raise InputError(f"no held-out picture of a {colour} {shape} was drawn; choose another for the demo")


if __name__ == "__main__":
    for path in make(*sys.argv[1:]):
        sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes\n")
