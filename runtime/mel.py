"""Whisper's log-mel spectrogram (arXiv 2212.04356), the front end of the audio encoder.

Inputs: samples float32 `(N,)`, 16 kHz → output: `(128, frames)` float32, one frame a hop (160 samples, 10 ms),
`frames = ceil(N / 160)`, at most the manifest's `max_frames`, after which the clip is cut.

The model was trained on clips padded with silence to `max_frames`. That padding is never computed here: it only
matters where a window half on the clip half off it is louder than any window of the clip, and those few are looked at.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ..errors import AudioError
from .manifest import Audio

QUIETEST_POWER = 1e-10
"""Floor of the mel power before its logarithm."""

RANGE_DECADES = 8.0
"""Everything further than this below the clip's maximum is raised to it."""

_BLOCK_FRAMES = 1024  # bounds the memory of a long clip: 7 MB of spectrum at a time


def mel_frames(samples: int, audio: Audio) -> int:
    """Return how many frames a clip of this many samples has."""
    return min(-(-samples // audio.hop_samples), audio.max_frames)


def audio_tokens(frames: int) -> int:
    """Return how many embeddings the encoder makes of so many frames, one every 40 ms.

    A convolution halves them, pooling halves again and drops an odd one. Blocks of 200 frames give 50 each, so the
    count of a clip is the sum of its blocks'.
    """
    return ((frames - 1) // 2 + 1) // 2


def log_mel(samples: NDArray[np.float32], audio: Audio) -> NDArray[np.float32]:
    """Return the features `(mel_bins, frames)` float32 of a clip `(N,)`.

    Raises `AudioError` when `samples` is not a non-empty float array of one axis.
    """
    if samples.ndim != 1 or not samples.size or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"samples must be float (N,), at least one, found {samples.dtype} {samples.shape}")
    limit_samples = audio.max_frames * audio.hop_samples
    clip = samples[:limit_samples]
    frames = mel_frames(clip.size, audio)
    # Windows reach half their length to each side: the last frames that see the clip lie just behind its end.
    seeing_frames = mel_frames(clip.size + audio.n_fft // 2, audio)
    length = min(seeing_frames * audio.hop_samples + audio.n_fft // 2, limit_samples)
    silent_end = np.zeros(length - clip.size, dtype=clip.dtype)
    padded = np.pad(np.concatenate([clip, silent_end]), audio.n_fft // 2, mode="reflect")
    power = log_power(padded, seeing_frames, audio)
    return scale(power, float(power.max()))[:, :frames]


def log_power(samples: NDArray[np.float32], frames: int, audio: Audio) -> NDArray[np.float64]:
    """Return log10 of the mel power `(mel_bins, frames)`; frame `i` is the window that starts at sample `i · hop`."""
    windows = sliding_window_view(samples, audio.n_fft)[:: audio.hop_samples][:frames]  # (frames, n_fft)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(audio.n_fft) / audio.n_fft)
    filters = _mel_filters(audio.n_fft, audio.mel_bins, audio.sample_rate_hz)
    power = np.empty((audio.mel_bins, len(windows)))
    for start in range(0, len(windows), _BLOCK_FRAMES):
        block = slice(start, start + _BLOCK_FRAMES)
        spectrum = np.fft.rfft(windows[block] * hann)  # (block, n_fft // 2 + 1)
        power[:, block] = filters @ (spectrum.real**2 + spectrum.imag**2).T
    return np.log10(np.maximum(power, QUIETEST_POWER))


def scale(power: NDArray[np.float64], loudest: float) -> NDArray[np.float32]:
    """Raise log power to the floor below `loudest`, the largest of the clip, and bring it to about ±1, float32."""
    return ((np.maximum(power, loudest - RANGE_DECADES) + 4.0) / 4.0).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _mel_filters(n_fft: int, mel_bins: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Triangles `(mel_bins, n_fft // 2 + 1)` evenly spaced in mel from 0 to half the rate, each of the same area."""
    bins_hz = np.linspace(0.0, sample_rate_hz / 2, n_fft // 2 + 1)
    corners_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate_hz / 2), mel_bins + 2))
    widths_hz = np.diff(corners_hz)
    distance_hz = bins_hz - corners_hz[:, None]  # (mel_bins + 2, bins)
    rising = distance_hz[:-2] / widths_hz[:-1, None]
    falling = -distance_hz[2:] / widths_hz[1:, None]
    area = 2.0 / (corners_hz[2:] - corners_hz[:-2])
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * area[:, None]
    return filters


# Slaney's mel scale: linear to 1 kHz at 15 mel, then a factor of 6.4 every 27 mel.
_LINEAR_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(frequency_hz: float) -> float:
    if frequency_hz < _BREAK_HZ:
        return frequency_hz / _LINEAR_HZ_PER_MEL
    return float(_BREAK_MEL + np.log(frequency_hz / _BREAK_HZ) / _LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * _LINEAR_HZ_PER_MEL
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (mel - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, linear, logarithmic)
