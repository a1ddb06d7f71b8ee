"""The vocoder's stage: BigVGAN learns to turn log-mels of nano's two voices into their sound.

Inputs: utterances of codec.py → output: ``build/states/vocoder.pt``, the weights of
``token2wav.code2wav_bigvgan_model``: log-mel float32 (1, 80, F) → waveform float32 (240 F,) at 24 kHz.

No adversary: the distance of log-mels and of spectra at four resolutions is enough for two voices, and trains in
minutes. (BigVGAN: arXiv 2206.04658; several resolutions: Yamamoto 2020, arXiv 1910.11480.)
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .codec import HOP_SAMPLES, Float32, log_mel, speech
from .model import build
from .training import Losses, Plan, device, device_of, train

FIRST = Plan("vocoder-first", steps=1700, learning_rate=2e-3, betas=(0.8, 0.99), ema=0.998, seed=3)
SECOND = Plan("vocoder", steps=1800, learning_rate=1.2e-3, betas=(0.8, 0.99), ema=0.998, seed=13)
"""The rate is raised again once: short pieces first, then longer ones."""

_BATCH = 4
_FIRST_FRAMES, _SECOND_FRAMES = 32, 48  # heard of each piece
_CONTEXT_FRAMES = 8  # on each side: what the vocoder sees of its neighbours
_EDGE_FRAMES = 4  # cut off the mel of a piece: its outermost frames have seen no neighbours
_RESOLUTIONS = (256, 512, 1024, 2048)


def vocoder_stage() -> nn.Module:
    """Train the vocoder, or load it if it is trained."""
    vocoder: nn.Module = build(FIRST.seed).token2wav.code2wav_bigvgan_model
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.startswith("resblocks.") and parameter.ndim == 3:
                parameter.mul_(0.5)  # residual branches start small
    vocoder.to(device())
    sounds = [utterance.audio for utterance in speech()]
    train(FIRST, vocoder, VocoderLoss(vocoder, sounds, _FIRST_FRAMES))
    train(SECOND, vocoder, VocoderLoss(vocoder, sounds, _SECOND_FRAMES))
    return vocoder


class VocoderLoss:
    """How far pieces of speech are from what the vocoder makes of their mels."""

    def __init__(self, vocoder: nn.Module, sounds: list[Float32], frames: int) -> None:
        """``sounds`` are float32 (N,) at 24 kHz; ``frames`` of each piece are compared."""
        self._vocoder, self._sounds = vocoder, sounds
        self._frames = frames + 2 * (_CONTEXT_FRAMES + _EDGE_FRAMES)
        self._lengths = np.array([len(sound) // HOP_SAMPLES for sound in sounds])

    def __call__(self, _: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch of random pieces."""
        chosen = rng.choice(np.flatnonzero(self._lengths >= self._frames), _BATCH)
        sound = torch.from_numpy(np.stack([self._piece(int(index), rng) for index in chosen]))  # (B, N)
        sound = sound.to(device_of(self._vocoder))
        mel = log_mel(sound)[:, _EDGE_FRAMES:-_EDGE_FRAMES]  # (B, F, 80)
        spoken = vocode(self._vocoder, mel)
        return distances(_inner(spoken, _CONTEXT_FRAMES), _inner(sound, _CONTEXT_FRAMES + _EDGE_FRAMES))

    def _piece(self, index: int, rng: np.random.Generator) -> Float32:
        start = int(rng.integers(0, self._lengths[index] - self._frames + 1))
        return self._sounds[index][start * HOP_SAMPLES : (start + self._frames) * HOP_SAMPLES]


def _inner(sound: Tensor, frames: int) -> Tensor:
    """Sounds ``(B, N)`` without ``frames`` at either end."""
    return sound[:, frames * HOP_SAMPLES : -frames * HOP_SAMPLES]


def vocode(vocoder: nn.Module, mel: Tensor) -> Tensor:
    """Waveforms ``(B, 240 F)`` of log-mels ``(B, F, 80)``, with gradients."""
    sound: Tensor = vocoder(mel.transpose(1, 2)).to(mel.device)  # the library hands it over on the CPU
    return sound.reshape(len(mel), -1)


def distances(spoken: Tensor, sound: Tensor) -> Losses:
    """How far ``spoken`` is from ``sound``, both ``(B, N)``: log-mel, and spectra at four resolutions."""
    mel = (log_mel(spoken) - log_mel(sound)).abs().mean()
    spectra = torch.stack([_spectral_distance(spoken, sound, size) for size in _RESOLUTIONS]).mean()
    return {"loss": mel + spectra, "mel": mel.detach(), "spectra": spectra.detach()}


def _spectral_distance(spoken: Tensor, sound: Tensor, size: int) -> Tensor:
    """Spectral convergence + distance of log magnitudes."""
    window = torch.hann_window(size, device=sound.device)

    def magnitude(signal: Tensor) -> Tensor:
        spectrum = torch.stft(signal, size, size // 4, window=window, return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()

    ours, theirs = magnitude(spoken), magnitude(sound)
    convergence = (ours - theirs).norm() / theirs.norm()
    distance: Tensor = convergence + (ours.clamp(min=3e-3).log() - theirs.clamp(min=3e-3).log()).abs().mean()
    return distance
