"""Sound in and out of files: any sound file → what the ear takes, and what the voice made → a WAV file.

Inputs: WAV, FLAC, OGG, MP3 and whatever else libsndfile reads, any rate, channels and sample format; or an array with
its rate → output: samples float32 `(N,)`, 16 kHz, mono (channels averaged), full scale ±1.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from ..errors import AudioError
from .files import write_bytes_atomically

SAMPLE_RATE_HZ = 16_000
"""Rate of everything the model hears."""

MAX_CHANNELS = 64
"""More columns than any recording has: an array with more was given with its axes swapped."""

_FULL_SCALE = {"int16": 2.0**15, "int32": 2.0**31}


def read_audio(path: Path | str) -> NDArray[np.float32]:
    """Read a sound file as samples float32 `(N,)`, 16 kHz, mono.

    Raises `AudioError` when the file is missing, is no sound file, is empty, or holds values that are not finite.
    """
    try:
        content = io.BytesIO(
            Path(path).read_bytes()
        )  # without its name, by which soundfile would take *.raw for headerless
        samples, rate_hz = soundfile.read(content, dtype="float32", always_2d=True)
    except FileNotFoundError as error:
        raise AudioError(f"{path} does not exist; give the path of a sound file") from error
    except OSError as error:
        raise AudioError(f"{path} cannot be opened ({error.strerror}); give the path of a readable file") from error
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise AudioError(
            f"{path} is not a sound file Nearfield can read ({reason}); convert it to WAV, FLAC, OGG or MP3"
        ) from error
    return from_array(samples, rate_hz, str(path))


def from_array(samples: NDArray[Any], rate_hz: float, name: str = "the audio") -> NDArray[np.float32]:
    """Turn recorded samples into float32 `(N,)`, 16 kHz, mono.

    `samples` is `(N,)` or `(N, channels)`: float with full scale ±1, int16 or int32. `name` stands in errors. Other
    rates are resampled with soxr, quality HQ. Raises `AudioError` for any other type or shape, for values that are not
    finite, and for audio without a single sample at 16 kHz.
    """
    if not rate_hz > 0:
        raise AudioError(f"{name} has a sample rate of {rate_hz} Hz; give the rate it was recorded at")
    heard = _mono(_as_float(np.asarray(samples), name), name)
    if not np.isfinite(heard).all():
        raise AudioError(f"{name} holds values that are not finite (NaN or infinity); record or export it again")
    if rate_hz != SAMPLE_RATE_HZ and heard.size:
        heard = np.asarray(soxr.resample(heard, rate_hz, SAMPLE_RATE_HZ, quality="HQ"), dtype=np.float32)
    if not heard.size:
        raise AudioError(f"{name} is empty; give a recording with at least one sample at 16 kHz")
    return heard


def write_wav(path: Path | str, samples: NDArray[Any], rate_hz: int) -> None:
    """Write samples `(N,)`, full scale ±1, as a 16-bit mono WAV; what lies beyond full scale is clipped.

    The file appears under its name only when whole. Raises `AudioError` for another shape, values that are not finite,
    a place that cannot be written, or one that holds a folder or a device.
    """
    path, samples = Path(path), np.asarray(samples)
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"samples for {path} must be float (N,), found {samples.dtype} {samples.shape}")
    if not np.isfinite(samples).all():
        raise AudioError(f"samples for {path} hold values that are not finite (NaN or infinity); nothing was written")
    pcm = np.rint(np.clip(samples.astype(np.float64), -1.0, 1.0) * 32767.0).astype(np.int16)
    wav = io.BytesIO()  # not the file itself: libsndfile reports a full disk as an assertion
    soundfile.write(wav, pcm, rate_hz, format="WAV", subtype="PCM_16")
    try:
        write_bytes_atomically(path, wav.getvalue())
    except OSError as error:
        raise AudioError(f"{path} cannot be written ({error.strerror}); choose another place") from error


def _as_float(samples: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Full scale ±1, same shape."""
    if np.issubdtype(samples.dtype, np.floating):
        return samples.astype(np.float32)
    full_scale = _FULL_SCALE.get(samples.dtype.name)
    if full_scale is None:
        raise AudioError(f"{name} must be float (full scale ±1), int16 or int32 samples, found {samples.dtype}")
    return (samples / full_scale).astype(np.float32)


def _mono(samples: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """`(N,)` or `(N, channels)` → `(N,)`, the mean of the channels."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or not 1 <= samples.shape[1] <= MAX_CHANNELS:
        raise AudioError(f"{name} must have shape (samples,) or (samples, channels), found {samples.shape}")
    mean: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32)
    return mean
