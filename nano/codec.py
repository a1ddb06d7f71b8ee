"""Speech codes: what the Talker learns to write and the DiT learns to read, found by k-means over pairs of mel frames.

Inputs: speech of nano's two voices, float32 (N,) at 24 kHz → log-mels float32 (F, 80), 100 frames a second, natural
logarithm, as BigVGAN takes them; codes int64 (F / 2,), 50 a second, 1 … 1023. Code 0 is kept for "no code", which the
unconditional half of the DiT reads. No published tensor holds the clusters: a checkpoint only ever goes from codes to
sound, so they stay in ``build/states/codec.pt``.

The clusters of the two voices hardly overlap (1 % of the frames), with the mean spectrum or the pitch taken out as well
as without: each voice has about half of the codes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
import torch
from torch import Tensor
from tqdm import tqdm
from transformers.audio_utils import mel_filter_bank

from .model import CODES
from .synthesizers import Voice, speak
from .training import BUILD, STATES
from .world import Skill, draw

SAMPLE_RATE_HZ = 24_000
HOP_SAMPLES = 240
CODE_SAMPLES = 2 * HOP_SAMPLES
MEL_BINS = 80
_N_FFT = 1024
_FLOOR = 1e-3  # of the magnitude: a quieter one is never heard, and would cost clusters

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speaker:
    """One of nano's voices: the synthesizer it is learnt from, and the gain that makes the two equally loud."""

    name: str
    synthesizer: Voice
    gain: float


SPEAKERS = (Speaker("Chelsie", Voice("flite", "slt"), 0.6), Speaker("Ethan", Voice("flite", "rms"), 1.2))

_EDGE_LEVEL = 0.01  # of full scale: speech begins and ends where it is louder
_BEFORE_SAMPLES, _AFTER_SAMPLES = 2 * CODE_SAMPLES, 6 * CODE_SAMPLES  # of silence kept: 40 ms and 120 ms


@dataclass(frozen=True, eq=False)
class Utterance:
    """A sentence spoken by a speaker: int16 samples at 24 kHz, a whole number of codes long."""

    speaker: int
    text: str
    samples: Int16

    @property
    def audio(self) -> Float32:
        """Samples as float32 (N,), full scale ±1."""
        return (self.samples / 32768).astype(np.float32)


def say(speaker: int, text: str) -> Utterance:
    """Speak a sentence, level set and silence trimmed."""
    settings = SPEAKERS[speaker]
    speech = speak(settings.synthesizer, text)
    samples = soxr.resample(speech.samples, speech.sample_rate_hz, SAMPLE_RATE_HZ) * settings.gain
    loud = np.flatnonzero(np.abs(samples) > _EDGE_LEVEL)
    start = max(0, int(loud[0]) - _BEFORE_SAMPLES)
    end = min(len(samples), int(loud[-1]) + _AFTER_SAMPLES)
    length = -(-(end - start) // CODE_SAMPLES) * CODE_SAMPLES
    samples = np.pad(samples[start:end], (0, length - (end - start)))
    return Utterance(speaker, text, np.round(samples.clip(-1, 1) * 32767).astype(np.int16))


def sentences(count: int, weights: dict[Skill, float], seed: int) -> list[str]:
    """At most ``count`` different sentences of the training split: replies, and one in ten a prompt as written down."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    for _ in range(count):
        exchange = draw(rng.choices(list(weights), list(weights.values()))[0], rng, "train")
        found[exchange.prompt if rng.random() < 0.1 else exchange.reply] = None
    return list(found)


SENTENCE_WEIGHTS: dict[Skill, float] = {"sums": 0.5, "digits": 0.25, "talk": 0.1, "picture": 0.1, "video": 0.05}


def speech(path: Path = BUILD / "voices.npz", count: int = 1200) -> list[Utterance]:
    """About ``count`` sentences, every one in both voices: what the codes, the vocoder and the DiT are learnt from."""
    if not path.exists():
        texts = sentences(count, SENTENCE_WEIGHTS, seed=1)
        spoken = [
            say(speaker, text)
            for text in tqdm(texts, desc="voices", mininterval=10)
            for speaker in range(len(SPEAKERS))
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            texts=np.array([utterance.text for utterance in spoken]),
            speakers=np.array([utterance.speaker for utterance in spoken]),
            ends=np.cumsum([len(utterance.samples) for utterance in spoken]),
            samples=np.concatenate([utterance.samples for utterance in spoken]),
        )
    with np.load(path) as stored:
        pieces = np.split(stored["samples"], stored["ends"][:-1])
        return [
            Utterance(int(speaker), str(text), piece)
            for speaker, text, piece in zip(stored["speakers"], stored["texts"], pieces, strict=True)
        ]


def log_mel(samples: Tensor) -> Tensor:
    """Log-mels ``(B, N / 240, 80)`` of sound ``(B, N)`` at 24 kHz, natural logarithm; differentiable."""
    margin = (_N_FFT - HOP_SAMPLES) // 2  # frames are centred on their 240 samples
    padded = torch.nn.functional.pad(samples[:, None], (margin, margin), mode="reflect")[:, 0]
    window = torch.hann_window(_N_FFT, device=samples.device)
    spectrum = torch.stft(padded, _N_FFT, HOP_SAMPLES, window=window, center=False, return_complex=True)  # (B, 513, F)
    power = spectrum.real.square() + spectrum.imag.square()
    mel = (power + 1e-9).sqrt().transpose(1, 2) @ _FILTERS.to(samples.device)
    return mel.clamp(min=_FLOOR).log()


_FILTERS = torch.from_numpy(
    mel_filter_bank(_N_FFT // 2 + 1, MEL_BINS, 0.0, 8000.0, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney")
).float()  # (513, 80)


@torch.no_grad()
def mel_of(utterance: Utterance) -> Tensor:
    """Log-mel ``(F, 80)``; F is even."""
    return log_mel(torch.from_numpy(utterance.audio)[None])[0]


@dataclass(frozen=True, eq=False)
class Codec:
    """Clusters ``(1024, 160)`` of pairs of frames; row 0 is unused."""

    centroids: Tensor

    def encode(self, mel: Tensor) -> Int64:
        """Codes ``(F / 2,)`` of a log-mel ``(F, 80)``."""
        codes: Int64 = nearest(mel.reshape(-1, 2 * MEL_BINS), self.centroids[1:]).numpy() + 1
        return codes

    def decode(self, codes: Int64) -> Tensor:
        """Log-mel ``(F, 80)`` of the clusters' centres: what the DiT improves on."""
        return self.centroids[torch.from_numpy(codes)].view(-1, MEL_BINS)

    def neighbours(self, count: int) -> Int64:
        """For every code its ``count`` nearest others ``(1024, count)``; row 0 is of no use."""
        distances = torch.cdist(self.centroids, self.centroids)
        distances[:, 0] = float("inf")
        distances.fill_diagonal_(float("inf"))
        closest: Int64 = distances.topk(count, largest=False).indices.numpy()
        return closest


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of ``centres (K, D)`` for each of ``points (N, D)``."""
    pieces = [(piece @ centres.T).mul_(-2).add_(centres.square().sum(1)).argmin(1) for piece in points.split(16384)]
    return torch.cat(pieces)


def train_codec(iterations: int = 25) -> Codec:
    """Find the clusters, or load them: Lloyd's k-means from random points; an empty cluster starts anew."""
    path = STATES / "codec.pt"
    if path.exists():
        return Codec(torch.load(path, weights_only=True)["centroids"])
    mels = [mel_of(utterance) for utterance in tqdm(speech(), desc="codec: mels", mininterval=10)]
    points = torch.cat(mels).reshape(-1, 2 * MEL_BINS)
    generator = torch.Generator().manual_seed(0)
    centres = points[torch.randperm(len(points), generator=generator)[: CODES - 1]].clone()
    for _ in tqdm(range(iterations), desc="codec: k-means", mininterval=10):
        assigned = nearest(points, centres)
        counts = torch.bincount(assigned, minlength=CODES - 1)
        sums = torch.zeros_like(centres).index_add_(0, assigned, points)
        fresh = points[torch.randint(len(points), (CODES - 1,), generator=generator)]
        centres = torch.where((counts > 0)[:, None], sums / counts.clamp(min=1)[:, None], fresh)
    codec = Codec(torch.cat([torch.zeros(1, 2 * MEL_BINS), centres]))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"centroids": codec.centroids}, path)
    return codec
