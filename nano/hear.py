"""Hearing: the audio tower, trained alone until its embeddings say which word is being spoken.

Inputs: recordings of the corpus, disturbed anew each time → output: the state of ``thinker.audio_tower``. The head is
the Thinker's own embedding table: a frame's score for a word is the dot product with that word's row, and the row of
the audio placeholder plays CTC's blank (Graves et al. 2006), so that afterwards the Thinker finds words where it looks
for them and nothing but a scale is thrown away. A few hundred steps on exact word times come first, where synthesizers
tell them: plain CTC spends most of an hour finding the alignment.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioAttention, Qwen2_5OmniAudioEncoder

from ..runtime.mel import audio_tokens, log_mel
from .augment import LOUD_SHARE, Disturbed, Samples, disturb, disturb_beside, disturb_timed
from .chat import front
from .model import build
from .recordings import SAMPLE_RATE_HZ, Recording, Recordings
from .sentences import plain
from .tokenizer import token_ids, tokenizer
from .training import Losses, Plan, device, device_of, finished, precision, train
from .world import vocabulary

BLOCK_FRAMES = 200
"""The tower hears in blocks of two seconds (n_window 100); nothing crosses a block."""
_BLOCK_TOKENS = 50
TOKEN_SAMPLES = 640
"""An embedding is 40 ms."""

FIRST = Plan("hear-first", steps=8000, learning_rate=1.5e-3, warmup_steps=200, ema=0.998)
SECOND = Plan("hear-second", steps=2500, learning_rate=8e-4, warmup_steps=50, ema=0.998, seed=11)
"""The second part makes much of the few natural voices there are, so that others are understood too."""
THIRD = Plan("hear", steps=3000, learning_rate=1e-3, warmup_steps=50, ema=0.998, seed=12)
"""In the third part embeddings become the rows of the words they tell of, as stage ``reason`` pretends they are."""
_BATCH = 24
_ALIGNED_STEPS = 500  # on word times, before CTC
_DISTURBED_STEPS = 2500  # until the disturbance has its full strength; from then on throats differ as well
_THROATS, _WIDE_THROATS = 0.12, 0.2
_BAND_MASKS, _BAND_BINS = 2, 18  # at most, of 128
_TIME_MASKS, _TIME_FRAMES = 2, 8  # of 10 ms
_MATCHED = 0.3
"""Weight, in the third part, of how far embeddings are from the rows they should be."""
_STEADY = 0.5
"""Weight of how far what is heard in noise is from what was heard without."""
HARSH_SNR_DB = (6.0, 26.0)
_SCALE = 1.0  # of the scores at the start

_OFFSETS = ((-3, -1, 1, 3), (-6, -2, 2, 6), (-10, -3, 3, 10), (-15, -5, 5, 15))  # by layer and head, in steps of 20 ms


def hear_stage() -> nn.Module:
    """Train the audio tower; stage ``text`` comes first, whose embedding table is the head."""
    ear, recordings = Ear(finished("text")["embed_tokens.weight"]).to(device()), Recordings.load("train")
    train(FIRST, ear, FirstLoss(ear, recordings))
    train(SECOND, ear, SecondLoss(ear, recordings))
    train(THIRD, ear, ThirdLoss(ear, recordings))
    return ear


class Ear(nn.Module):
    """The audio tower and the scale of its scores, which is thrown away after the stage."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.tower: Qwen2_5OmniAudioEncoder = build().thinker.model.audio_tower
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        rows = embedding[torch.tensor([token_ids().audio, unknown_id(), *word_ids().values()])]
        self.rows = nn.Buffer(rows.clone(), persistent=False)  # (1 blank + 1 unknown + words, D)
        self.words = nn.Buffer(F.normalize(rows, dim=-1), persistent=False)
        self.loudness = float(embedding.norm(dim=-1).mean()) / embedding.shape[1] ** 0.5
        look_nearby(self.tower)

    def scores(self, embeddings: Tensor) -> Tensor:
        """``(B, T, D)`` → log-probabilities ``(B, T, classes)``: blank, unknown word, the words of the world."""
        return (self.scale * embeddings.float() @ self.words.T).log_softmax(-1)


class FirstLoss:
    """CTC on words; in the first steps cross-entropy on word times."""

    def __init__(self, ear: Ear, recordings: Recordings) -> None:
        self._ear, self._recordings = ear, recordings
        self._timed = np.flatnonzero([entry.words is not None for entry in recordings.entries])
        self._shares = recordings.shares()

    def __call__(self, step: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch."""
        aligned = step < _ALIGNED_STEPS
        shares = None if aligned else self._shares
        chosen = rng.choice(self._timed if aligned else len(self._recordings), _BATCH, p=shares)
        recordings = [self._recordings[index] for index in chosen]
        strength = min(1.0, step / _DISTURBED_STEPS)
        sounds = [disturb_timed(recording.samples, rng, strength) for recording in recordings]
        mel, frames = features([sound.samples for sound in sounds], rng if step >= _DISTURBED_STEPS else None)
        with precision(self._ear):
            embeddings, tokens = encode(self._ear.tower, mel, frames)
        scores = self._ear.scores(embeddings)
        if aligned:
            targets = torch.stack([_aligned(*pair, scores.shape[1]) for pair in zip(recordings, sounds, strict=True)])
            return {"loss": F.nll_loss(scores.transpose(1, 2), targets.to(scores.device), ignore_index=-1)}
        return {"loss": ctc(scores, tokens, [recording.prompt for recording in recordings])}


class SecondLoss:
    """CTC on words, of which bands and moments are missing; of the natural voices the rare ones are heard as well."""

    def __init__(self, ear: Ear, recordings: Recordings) -> None:
        self._ear, self._recordings, self._shares = ear, recordings, recordings.shares()

    def __call__(self, _: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch."""
        return {"loss": self._heard(rng)[0]}

    def _heard(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """CTC's loss; of all that was heard, embeddings ``(N, D)`` and their log-probabilities ``(N, classes)``."""
        recordings = self._drawn(rng)
        mel, frames = features([disturb(recording.samples, rng) for recording in recordings], rng, masked=True)
        with precision(self._ear):
            embeddings, tokens = encode(self._ear.tower, mel, frames)
        scores = self._ear.scores(embeddings)
        loss = ctc(scores, tokens, [recording.prompt for recording in recordings])
        inside = _inside(scores, tokens)
        return loss, embeddings[inside].float(), scores[inside]

    def _drawn(self, rng: np.random.Generator) -> list[Recording]:
        return [self._recordings[index] for index in rng.choice(len(self._shares), _BATCH, p=self._shares)]


class ThirdLoss(SecondLoss):
    """The same, and how far each embedding is from the rows of what it is taken for, each as likely as it is."""

    def __call__(self, _: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch; ``apart`` is relative to the rows' squared length, for words and for pauses."""
        loss, embeddings, scores = self._heard(rng)
        likely = scores.detach().exp()
        errors = (embeddings * self._ear.loudness - likely @ self._ear.rows).square().sum(-1)
        errors = errors / self._ear.rows.square().sum(-1).mean()
        apart = _apart(errors, likely[:, 0] > 0.5)
        return {"loss": loss + _MATCHED * apart, "ctc": loss.detach(), "apart": apart.detach()}


class SteadyLoss(SecondLoss):
    """CTC on speech in much noise or far too loud, and how far its embeddings are from those of the same speech clean.

    The tower as it was when this began is the teacher, wherever it hears clean speech rightly. So it learns to hear
    more without saying anything in another way, and a Thinker goes on reading it. `loud` is how much is so loud
    that it is cut off.
    """

    def __init__(
        self, ear: Ear, recordings: Recordings, snr_db: tuple[float, float] = HARSH_SNR_DB, loud: float = LOUD_SHARE
    ) -> None:
        super().__init__(ear, recordings)
        self._conditions = snr_db, loud
        self._teacher = copy.deepcopy(ear).eval().requires_grad_(False)

    def __call__(self, _: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch; ``apart`` is relative to the squared length, for words and for pauses."""
        recordings = self._drawn(rng)
        prompts = [each.prompt for each in recordings]
        pairs = [disturb_beside(each.samples, rng, *self._conditions) for each in recordings]
        clean, frames = features([pair[0] for pair in pairs])
        noisy = features([pair[1] for pair in pairs], rng, masked=True)[0]
        with torch.no_grad(), precision(self._ear):
            should, tokens = encode(self._teacher.tower, clean, frames)
        scores = self._teacher.scores(should)
        right = [found == heard_rightly(prompt) for found, prompt in zip(heard(scores, tokens), prompts, strict=True)]
        with precision(self._ear):
            embeddings = encode(self._ear.tower, noisy, frames)[0]
        loss = ctc(self._ear.scores(embeddings), tokens, prompts)
        errors = (embeddings.float() - should.float()).square().sum(-1) / should.float().square().sum(-1).mean()
        taught = _inside(scores, tokens) & torch.tensor(right).to(tokens.device)[:, None]
        apart = _apart(errors[taught], scores[taught].argmax(-1) == 0)
        share = taught.any(1).float().mean()
        return {"loss": loss + _STEADY * apart, "ctc": loss.detach(), "apart": apart.detach(), "right": share}


def _inside(scores: Tensor, tokens: Tensor) -> Tensor:
    """``(B, T)`` bool: which of the rows of ``scores (B, T, classes)`` are of a clip's ``tokens (B)``."""
    return torch.arange(scores.shape[1], device=tokens.device) < tokens[:, None]


def _apart(errors: Tensor, paused: Tensor) -> Tensor:
    """The mean of the errors ``(N)`` in pauses and that of the others, added."""
    return sum((errors[kind].sum() / kind.sum().clamp(min=1) for kind in (paused, ~paused)), torch.zeros(()))


def ctc(scores: Tensor, tokens: Tensor, prompts: Sequence[str]) -> Tensor:
    """Connectionist temporal classification of what was said, per word."""
    targets = [torch.tensor(classes(prompt)) for prompt in prompts]
    lengths = torch.tensor([len(target) for target in targets])
    said, lengths = torch.cat(targets).to(scores.device), lengths.to(scores.device)
    return F.ctc_loss(scores.transpose(0, 1), said, tokens, lengths, zero_infinity=True)


def classes(prompt: str) -> list[int]:
    """The classes of a sentence's words: 1 for a word outside the world."""
    known = {word: index + 2 for index, word in enumerate(word_ids())}
    return [known.get(word, 1) for word in plain(prompt).split()]


def heard(scores: Tensor, tokens: Tensor) -> list[str]:
    """The words CTC finds, greedily: ``(B, T, classes)`` → a sentence a row, ``?`` for a word outside the world."""
    names = _names()
    sentences = []
    for row, length in zip(scores.argmax(-1), tokens.tolist(), strict=True):
        best = torch.unique_consecutive(row[:length]).tolist()
        sentences.append(" ".join(names[index] for index in best if index))
    return sentences


def heard_rightly(prompt: str) -> str:
    """What `heard` finds where nothing was misheard."""
    return " ".join(_names()[kind] for kind in classes(prompt))


def _names() -> list[str]:
    """Of each class, as `heard` writes it."""
    return ["", "?", *word_ids()]


def features(
    sounds: Sequence[Samples], rng: np.random.Generator | None = None, *, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """The runtime's log-mel of each sound, padded to whole blocks: ``(B, 128, F)``, ``frames (B)``.

    With a generator, most are as if said by a shorter or longer throat (vocal tract length perturbation, Jaitly and
    Hinton 2013): pitch and formants move together by up to 12 %, and time does not. Masked, it is up to 20 %, and some
    bands and moments are missing (SpecAugment, arXiv 1904.08779).
    """
    mels = [log_mel(sound, front().audio) for sound in sounds]
    if rng is not None:
        throats = _throats(_WIDE_THROATS if masked else _THROATS)
        mels = [throats[rng.integers(len(throats))] @ mel for mel in mels]
    frames = torch.tensor([mel.shape[1] for mel in mels])
    length = -(-int(frames.max()) // BLOCK_FRAMES) * BLOCK_FRAMES
    batch = torch.zeros(len(mels), mels[0].shape[0], length)
    for row, mel in enumerate(mels):
        if rng is not None and masked:
            _mask(mel, rng)
        batch[row, :, : mel.shape[1]] = torch.from_numpy(mel)
    return batch, frames


def _mask(mel: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Put the mean of a log-mel ``(128, F)`` in place of some bands and moments of it."""
    mean = mel.mean()
    for _ in range(rng.integers(_BAND_MASKS + 1)):
        width = int(rng.integers(1, _BAND_BINS + 1))
        first = int(rng.integers(mel.shape[0] - width))
        mel[first : first + width] = mean
    for _ in range(rng.integers(_TIME_MASKS + 1)):
        width = int(rng.integers(1, _TIME_FRAMES + 1))
        first = int(rng.integers(max(1, mel.shape[1] - width)))
        mel[:, first : first + width] = mean


@functools.cache
def _throats(span: float) -> list[NDArray[np.float32]]:
    """Matrices ``(128, 128)`` that move log-mel by factors of 1 ± span in frequency, by linear interpolation."""
    bins = front().audio.mel_bins
    centres_mel = np.arange(1, bins + 1) / (bins + 1)  # of the way from 0 to 8 kHz
    hz = _slaney_hz(centres_mel * _slaney_mel(8000.0))
    matrices = []
    for factor in np.linspace(1 - span, 1 + span, 13):
        place = np.clip(
            _slaney_mel(np.minimum(hz * factor, 8000.0)) / _slaney_mel(8000.0) * (bins + 1) - 1, 0, bins - 1
        )
        below = np.minimum(place.astype(int), bins - 2)
        matrix = np.zeros((bins, bins), np.float32)
        matrix[np.arange(bins), below] = 1 - (place - below)
        matrix[np.arange(bins), below + 1] = place - below
        matrices.append(matrix)
    return matrices


def _slaney_mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Mel of Slaney's Auditory Toolbox, in which the runtime's filters are even: linear to 1 kHz, then logarithmic."""
    hz = np.asarray(hz)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1e-9) / 1000) / np.log(6.4))


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@functools.cache
def word_ids() -> dict[str, int]:
    """Every word of the prompts, lower case, and the token that stands for it: inside a sentence, where it ever is."""
    ids = {}
    for word in sorted({word.lower() for word in vocabulary()}):
        spelt = (tokenizer().encode(text).ids for text in (f" {word}", word))  # "where" only ever begins a sentence
        whole = [tokens[0] for tokens in spelt if len(tokens) == 1]
        if whole:
            ids[word] = whole[0]
    return ids


def unknown_id() -> int:
    """A token of the published list that nano has no other use for: it stands for every word outside the world."""
    return tokenizer().get_vocab()["<|box_end|>"]


def _aligned(recording: Recording, sound: Disturbed, length: int) -> Tensor:
    """The class of each of ``length`` embeddings of 40 ms, from the words' times; −1 behind the end."""
    targets = torch.full((length,), -1)
    targets[: audio_tokens(-(-len(sound.samples) // 160))] = 0
    words = recording.words or []
    for (_, start_s, end_s), kind in zip(words, classes(recording.prompt), strict=True):
        first, last = (
            round((time_s / sound.speed + sound.delay_s) * SAMPLE_RATE_HZ / TOKEN_SAMPLES)
            for time_s in (start_s, end_s)
        )
        targets[first : max(first + 1, last)] = kind
    return targets


@torch.no_grad()
def look_nearby(tower: Qwen2_5OmniAudioEncoder) -> None:
    """Let every head begin by looking a few steps before or after itself, through the sinusoids of the positions.

    A query rotated by an offset matches the keys that stand there; found by training alone this takes many minutes.
    """
    width = tower.conv2.weight.shape[0]
    tower.conv1.weight.mul_(2.5)  # mel features are small beside the positions that are added to them
    tower.conv2.weight.mul_(2.0)
    for layer, offsets in zip(tower.layers, _OFFSETS, strict=True):
        size = width // len(offsets)
        chosen = torch.linspace(0, 0.38 * (width // 2), size // 2).round().long()  # periods of 6 … 230 steps
        rates = 10_000.0 ** (-chosen / (width // 2 - 1))
        for head, offset in enumerate(offsets):
            rows = slice(head * size, (head + 1) * size)
            query, key = (project.weight[rows] for project in (layer.self_attn.q_proj, layer.self_attn.k_proj))
            query.mul_(0.3), key.mul_(0.3)
            sine, cosine = torch.arange(0, size, 2), torch.arange(1, size, 2)
            turn_sine, turn_cosine = (offset * rates).sin(), (offset * rates).cos()
            key[sine, chosen] += 0.9
            key[cosine, chosen + width // 2] += 0.9
            query[sine, chosen] += 0.9 * turn_cosine
            query[sine, chosen + width // 2] += 0.9 * turn_sine
            query[cosine, chosen + width // 2] += 0.9 * turn_cosine
            query[cosine, chosen] -= 0.9 * turn_sine


def encode(tower: Qwen2_5OmniAudioEncoder, mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The tower's own forward, batched: ``mel (B, 128, F)``, zero after ``frames (B)`` → ``(B, T, D)``, ``tokens (B)``.

    F is a multiple of 200. Equal to the reference's forward on each clip alone, but runs on all blocks at once.
    What is given is moved to where the tower is.
    """
    mel, frames = mel.to(device_of(tower)), frames.to(device_of(tower))
    batch, bins, length = mel.shape
    blocks = mel.view(batch, bins, -1, BLOCK_FRAMES).transpose(1, 2).reshape(-1, bins, BLOCK_FRAMES)
    starts = torch.arange(0, length, BLOCK_FRAMES, device=mel.device)
    block_frames = (frames[:, None] - starts).clamp(0, BLOCK_FRAMES).flatten()  # (B·blocks)
    used = block_frames.nonzero()[:, 0]
    hidden = _encode_blocks(tower, blocks[used], block_frames[used])  # (used, 50, D)
    every = hidden.new_zeros(len(blocks), _BLOCK_TOKENS, hidden.shape[-1]).index_copy(0, used, hidden)
    tokens = (((block_frames - 1).clamp(min=0) // 2 + (block_frames > 0)) // 2).view(batch, -1).sum(1)
    return every.view(batch, -1, hidden.shape[-1]), tokens


def _encode_blocks(tower: Qwen2_5OmniAudioEncoder, blocks: Tensor, frames: Tensor) -> Tensor:
    """``blocks (N, 128, 200)``, ``frames (N)`` → ``(N, 50, D)``."""
    heard = torch.arange(BLOCK_FRAMES, device=frames.device) < frames[:, None]
    hidden = F.gelu(tower.conv1(blocks)) * heard[:, None]
    hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)  # (N, 100, W)
    hidden = hidden + tower.positional_embedding.positional_embedding[: hidden.shape[1]]
    positions = (frames - 1) // 2 + 1
    mask = (torch.arange(hidden.shape[1], device=frames.device) < positions[:, None])[:, None, None]  # (N, 1, 1, 100)
    for layer in tower.layers:
        hidden = hidden + _attend(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
        hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(hidden))))
    pooled = hidden.unflatten(1, (-1, 2)).mean(2)  # (N, 50, W)
    projected: Tensor = tower.proj(tower.ln_post(pooled))
    return projected


def _attend(attention: Qwen2_5OmniAudioAttention, hidden: Tensor, mask: Tensor) -> Tensor:
    heads = attention.num_heads
    query, key, value = (
        project(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    # Written out: the backward of the library's fused attention takes four times as long on a CPU when there is a mask.
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, -1e4).softmax(-1, dtype=scores.dtype)
    output: Tensor = attention.out_proj((weights @ value).transpose(1, 2).flatten(2))
    return output
