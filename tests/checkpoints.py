"""Complete, tiny, seeded random Qwen2.5-Omni checkpoints, written through ``transformers``.

Inputs: a directory, a :class:`Shape`, a seed → outputs: the files of a published checkpoint (configuration,
safetensors shards, tokenizer, processor settings, ``spk_dict.pt``). Weights are not the library's own 0.02
initialisation, under which every block is nearly linear and mistakes hide: they are scaled to their fan-in, norms and
biases are off their defaults, and the token heads are spread so that the greedy choice is clear.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path

import torch
from checkpoint_published import respell_as_published
from checkpoint_shapes import (
    CODES,
    MEL_BINS,
    SMALL_3B,
    SMALL_7B,
    SPEAKER_WIDTH,
    Shape,
    build_config,
)
from checkpoint_tokenizer import BPE_VOCABULARY, token_ids, write_processor_files
from nearfield.nano.published import TokenIds
from torch import nn
from transformers import Qwen2_5OmniForConditionalGeneration

__all__ = ["SMALL_3B", "SMALL_7B", "Shape", "build_model", "write_checkpoint"]

REFERENCE_MEL_FRAMES = {"Chelsie": 60, "Ethan": 47}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MEL_MEAN = -5.0  # natural-log mel the DiT should land near; the published range is about −11.6 … −0.1


def write_checkpoint(
    path: Path,
    shape: Shape,
    *,
    dtype: str = "float32",
    seed: int = 1,
    max_shard_bytes: int | None = None,
    published_spelling: bool = False,
) -> Path:
    """Write a whole checkpoint into ``path`` (created if absent) and return it.

    ``dtype`` is that of the Thinker and the Talker; Token2Wav stays float32, as published. ``max_shard_bytes`` splits
    the tensors over several files. ``published_spelling`` renames configuration keys and tensors the way the files of
    Qwen/Qwen2.5-Omni spell them; ``transformers`` 5 cannot size the DiT from that spelling, so write the same seed
    without it for the reference. The same arguments give the same bytes.
    """
    path.mkdir(parents=True, exist_ok=True)
    ids = token_ids()
    model = build_model(shape, dtype=dtype, seed=seed)
    model.save_pretrained(path, max_shard_size="5GB" if max_shard_bytes is None else max_shard_bytes)
    if published_spelling:
        respell_as_published(path)
    write_processor_files(path)
    torch.save(_voices(ids, seed), path / "spk_dict.pt")
    return path


def build_model(shape: Shape, *, dtype: str = "float32", seed: int = 1) -> Qwen2_5OmniForConditionalGeneration:
    """The seeded model in evaluation mode, without its files."""
    with torch.random.fork_rng(devices=[]):  # the library draws its own initialisation from the global generator
        model = Qwen2_5OmniForConditionalGeneration(build_config(shape, token_ids()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_draw(name, parameter, seed))
        _quiet_reserved_rows(model)
    model.to(_DTYPES[dtype])
    model.token2wav.float()
    return model.eval()


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))


def _draw(name: str, parameter: nn.Parameter, seed: int) -> torch.Tensor:
    """Values for one parameter, from a generator of its own, so that no tensor depends on another's shape."""
    noise = torch.randn(parameter.shape, generator=_generator(name, seed))
    if name.endswith((".alpha", ".beta")):  # SnakeBeta keeps logarithms
        return 0.3 * noise
    if name.endswith("code2wav_dit_model.proj_out.bias"):
        return _MEL_MEAN + 1.5 * noise
    if name.endswith(".bias"):
        return (0.05 if "bigvgan" in name else 0.2) * noise
    if parameter.ndim == 1:  # norm weights
        return 1.0 + 0.2 * noise
    return _weight_std(name, parameter) * noise


def _weight_std(name: str, parameter: nn.Parameter) -> float:
    """Standard deviation of a matrix or kernel: 1/√fan-in times a gain that keeps its part of the model lively."""
    if "embed_tokens" in name:
        # Small in the Thinker: a tied head scores the token just read by the square of this.
        return 0.1 if name.startswith("thinker") else 0.5
    if "codec_embed" in name or "audio_bos_eos_token" in name:
        return 1.0
    fan_in = math.prod(parameter.shape[1:])
    if ".ups." in name:  # transposed convolution: (in, out, kernel), each output sees kernel / stride taps
        fan_in = parameter.shape[0] * 2
    return _gain(name) / math.sqrt(fan_in)


def _gain(name: str) -> float:
    if re.search(r"\.(q_proj|k_proj|to_q|to_k|attn\.q|attn\.k)\.weight$", name):
        # Scores of about ±3 in the language models, so that a reply depends on places and does not repeat one token.
        return 1.8 if name.startswith(("thinker.model.language_model", "talker")) else 1.4
    if name.endswith(("lm_head.weight", "codec_head.weight")):
        return 3.0  # well-separated maxima
    if name.endswith(("dit_model.input_embed.proj.weight", "dit_model.proj_out.weight")):
        return 2.0  # or the mel would be little but the noise it starts from
    if name.endswith("spk_encoder.fc.weight"):
        return 4.0  # or the reference recording would hardly matter
    if "bigvgan" in name:
        return 0.5 if ".resblocks." in name else 0.9  # the waveform should follow the mel, inside ±1
    return 1.0


def _quiet_reserved_rows(model: Qwen2_5OmniForConditionalGeneration) -> None:
    """Shrink the head rows a trained model never picks, so that replies run on and every code is a DiT code."""
    model.thinker.lm_head.weight[BPE_VOCABULARY:] *= 0.3
    codec_head = model.talker.codec_head.weight
    codec_head[CODES:] *= 0.05


def _voices(ids: TokenIds, seed: int) -> dict[str, dict[str, torch.Tensor | int]]:
    """Two voices: speaker vector (1, 24), reference mel (1, frames, 80) in natural log, and the token that calls it."""
    bos = {"Chelsie": ids.voice_chelsie, "Ethan": ids.voice_ethan}
    voices: dict[str, dict[str, torch.Tensor | int]] = {}
    for name, frames in REFERENCE_MEL_FRAMES.items():
        generator = _generator(f"voice/{name}", seed)
        voices[name] = {
            "cond": torch.randn(1, SPEAKER_WIDTH, generator=generator),
            "ref_mel": _MEL_MEAN + 2.0 * torch.randn(1, frames, MEL_BINS, generator=generator),
            "bos_token": bos[name],
        }
    return voices
