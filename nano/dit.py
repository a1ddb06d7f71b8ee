"""The DiT's stage: from speech codes and a voice to log-mels, by flow matching; and the voices' file.

Inputs: utterances and codes of codec.py → outputs: ``build/states/dit.pt``, the weights of
``token2wav.code2wav_dit_model``, and ``build/states/spk_dict.pt``: per voice ``cond`` (1, 192), ``ref_mel``
(1, frames, 80), ``bos_token``.

At time t the state is (1 − t)·noise + t·mel, and the target its velocity, mel − noise (arXiv 2210.02747).
Guidance needs an unconditional half: in one example of ten the codes are 0, the reference mel 0 and the speaker vector
0, all together, as the sampler will ask for it.

Left alone, the DiT would learn the voice from the codes, which differ between the voices, and never listen to the
reference. So in some examples target and reference are moved up or down in frequency together while the codes stay:
only the reference says by how much.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .codec import MEL_BINS, SPEAKERS, Utterance, mel_of, speech, train_codec
from .model import SPEAKER_WIDTH, build
from .tokenizer import token_ids
from .training import STATES, Plan, device, precision, train

PLAN = Plan("dit", steps=1500, learning_rate=1.5e-3, betas=(0.9, 0.98), ema=0.999, seed=4)

BATCH_FRAMES = 2560
_LENGTHS_FRAMES = (48, 72, 96, 120, 144, 168, 192)
_REFERENCE_FRAMES = 400
_UNCONDITIONAL = 0.1
_WITHOUT_SPEAKER_VECTOR = 0.5  # or nothing would be left to learn from the reference
_MOVED = 0.3
_MOVE = 0.15  # at most this part of the frequency on the mel scale

Mel = npt.NDArray[np.float32]


def dit_stage(plan: Plan = PLAN) -> nn.Module:
    """Train the DiT, or load it if it is trained; writes the voices' file first."""
    utterances = speech()
    codec = train_codec()
    mels = [mel_of(utterance).numpy() for utterance in utterances]
    codes = [codec.encode(torch.from_numpy(mel)) for mel in mels]
    speakers = np.array([utterance.speaker for utterance in utterances])
    write_voices(utterances, mels, STATES / "spk_dict.pt")
    dit: nn.Module = build(plan.seed).token2wav.code2wav_dit_model
    prepare(dit, torch.from_numpy(np.concatenate(mels).mean(0)))
    dit.to(device())
    vectors = speaker_vectors().to(device())
    lengths = np.array([len(mel) for mel in mels])

    def placed(drawn: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(drawn).to(device())

    def loss(_: int, rng: np.random.Generator) -> dict[str, Tensor]:
        frames = int(rng.choice(_LENGTHS_FRAMES)) - 2 * int(rng.integers(0, 12))
        rows = [
            _example(rng, int(index), frames, mels, codes, speakers, lengths)
            for index in rng.choice(np.flatnonzero(lengths >= frames), BATCH_FRAMES // frames)
        ]
        target, quantized, reference = (
            placed(np.stack(column)) for column in zip(*(row[:3] for row in rows), strict=True)
        )
        vector = vectors[torch.tensor([row[3] for row in rows])]  # (B, 192)
        vector = vector * placed(rng.random((len(rows), 1)) > _WITHOUT_SPEAKER_VECTOR)
        kept = placed(rng.random((len(rows), 1)) > _UNCONDITIONAL)
        noise = placed(rng.standard_normal(target.shape, np.float32))
        time = placed(rng.random(len(rows), np.float32))
        state = torch.lerp(noise, target, time[:, None, None])
        # The plain form of attention: the backward pass of the fused one takes a third longer on a CPU.
        with sdpa_kernel(SDPBackend.MATH), precision(dit):
            velocity = dit(
                hidden_states=state,
                condition_vector=reference * kept[..., None],
                speaker_embedding=(vector * kept)[:, None].expand(-1, frames, -1),
                quantized_code=quantized * kept,
                time_step=time,
                apply_cfg=False,
            )
        return {"loss": (velocity.float() - (target - noise)).square().mean()}

    train(plan, dit, loss)
    return dit


def _example(
    rng: np.random.Generator,
    index: int,
    frames: int,
    mels: list[Mel],
    codes: list[npt.NDArray[np.int64]],
    speakers: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> tuple[Mel, npt.NDArray[np.int64], Mel, int]:
    """A piece of an utterance: its mel, its codes, another piece of the same voice, and whose it is."""
    last = int(lengths[index]) - frames
    edge = rng.random()  # beginnings and ends are few, and heard first
    start = 0 if edge < 0.15 else last if edge < 0.35 else 2 * int(rng.integers(0, last // 2 + 1))
    speaker = int(speakers[index])
    target = mels[index][start : start + frames]
    reference = _reference(rng, speaker, mels, speakers)
    if rng.random() < _MOVED:
        factor = 1 + rng.uniform(-_MOVE, _MOVE)
        target, reference = moved(target, factor), moved(reference, factor)
    return target, codes[index][start // 2 : (start + frames) // 2], reference, speaker


def _reference(
    rng: np.random.Generator, speaker: int, mels: list[Mel], speakers: npt.NDArray[np.int64], frames: int = 128
) -> Mel:
    """A random piece of a voice."""
    while True:
        mel = mels[int(rng.choice(np.flatnonzero(speakers == speaker)))]
        if len(mel) > frames:
            start = int(rng.integers(0, len(mel) - frames))
            return mel[start : start + frames]


def moved(mel: Mel, factor: float) -> Mel:
    """A log-mel ``(F, 80)`` with its frequencies multiplied by ``factor`` on the mel scale."""
    places = np.clip(np.arange(MEL_BINS) / factor, 0, MEL_BINS - 1)
    below = np.minimum(places.astype(np.int64), MEL_BINS - 2)
    share = (places - below).astype(np.float32)
    result: Mel = mel[:, below] * (1 - share) + mel[:, below + 1] * share
    return result


@torch.no_grad()
def prepare(dit: nn.Module, mean: Tensor) -> None:
    """Start well: blocks that change nothing yet, an output around the mean mel ``(80,)``, a speaker encoder alive.

    No dropout: a model this small does not learn by heart.
    A log-mel lies around −5: without a bias against that, the encoder's first ReLU would be stuck on or off in every
    channel, whatever the reference.
    """
    for module in dit.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name, parameter in dit.named_parameters():
        if ".attn_norm.linear." in name or name.startswith("norm_out.linear.") or name.endswith(".bias"):
            parameter.zero_()
    dit.get_parameter("proj_out.bias").copy_(mean)
    first = "input_embed.spk_encoder.blocks.0.conv"
    weight = dit.get_parameter(f"{first}.weight")  # (channels, 80, taps)
    dit.get_parameter(f"{first}.bias").copy_(-(weight.sum(2) @ mean))


def speaker_vectors() -> Tensor:
    """A vector ``(192,)`` for each speaker, ``(speakers, 192)``: names, not descriptions, so drawn at random."""
    return 0.5 * torch.randn(len(SPEAKERS), SPEAKER_WIDTH, generator=torch.Generator().manual_seed(5))


def write_voices(utterances: list[Utterance], mels: list[Mel], path: Path) -> None:
    """Write ``spk_dict.pt``: for each voice its vector, four seconds of its speech, and the token that calls it."""
    ids = token_ids()
    vectors = speaker_vectors()
    voices: dict[str, dict[str, Tensor | int]] = {}
    for index, (speaker, token) in enumerate(zip(SPEAKERS, (ids.voice_chelsie, ids.voice_ethan), strict=True)):
        own = [mel for mel, utterance in zip(mels, utterances, strict=True) if utterance.speaker == index]
        reference = np.concatenate(own[:4])[:_REFERENCE_FRAMES]
        voices[speaker.name] = {
            "cond": vectors[index : index + 1].clone(),
            "ref_mel": torch.from_numpy(reference)[None].clone(),
            "bos_token": token,
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(voices, path)
