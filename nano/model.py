"""The model itself: the sizes of nano, a freshly initialised one, and the checkpoint that training ends with.

Inputs: token ids, trained states → outputs: a ``Qwen2_5OmniConfig``; a ``Qwen2_5OmniForConditionalGeneration``; the
files of ``nano/checkpoint``. Every part has the published architecture; only the sizes are small.
"""

from __future__ import annotations

import dataclasses
import math
import zlib

import torch
from torch import nn
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from .published import TokenIds, rope, talker_tokens, thinker_tokens
from .tokenizer import token_ids

CODES = 1024
"""Speech codes 0 … 1023; code 0 stands for "no code" in the unconditional half of the DiT."""
CODEC_PAD, CODEC_BOS, CODEC_EOS, CODEC_MASK = 1040, 1041, 1042, 1044  # published: 8292, 8293, 8294, 8296
TALKER_VOCABULARY = 1056
SPEAKER_WIDTH = 192
_ROPE_THETA = 10_000.0
HIDDEN = 256
"""Width of the Thinker, and so of what the towers put out and of what the Talker is given."""


def config() -> Qwen2_5OmniConfig:
    """The configuration of nano, with the token ids of its tokenizer."""
    ids = token_ids()
    return Qwen2_5OmniConfig(
        thinker_config=_thinker(ids),
        talker_config=_talker(ids),
        token2wav_config={"dit_config": _DIT, "bigvgan_config": _BIGVGAN},
        enable_audio_output=True,
    )


def build(seed: int = 0) -> Qwen2_5OmniForConditionalGeneration:
    """A fresh model in float32. Matrices start at 1/√fan-in: at the library's 0.02 so small a model barely learns."""
    with torch.random.fork_rng(devices=[]):  # the library draws its own initialisation from the global generator
        settings = config()
        settings._attn_implementation = "sdpa"
        model = Qwen2_5OmniForConditionalGeneration(settings).float()
    model.tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
                parameter.copy_(_deviation(name, parameter) * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _deviation(name: str, parameter: nn.Parameter) -> float:
    if "embed" in name and parameter.ndim == 2 and "proj" not in name:
        return float(parameter.shape[1] ** -0.5)  # an embedding row has length 1, so that tied logits start near ±1
    fan_in = math.prod(parameter.shape[1:])
    if ".ups." in name:  # transposed convolution: (in, out, kernel); each output sees kernel / stride = 2 taps
        fan_in = parameter.shape[0] * 2
    return float(fan_in**-0.5)


def _rows(ids: TokenIds) -> int:
    """Rows of the Thinker's embedding: every id, rounded up as GPUs like it."""
    return math.ceil((int(max(dataclasses.astuple(ids))) + 1) / 32) * 32


def _thinker(ids: TokenIds) -> dict[str, object]:
    return {
        "text_config": {
            "vocab_size": _rows(ids),
            "hidden_size": HIDDEN,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": rope(64, _ROPE_THETA),
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": True,
            "bos_token_id": ids.im_start,
            "eos_token_id": ids.im_end,
            "pad_token_id": ids.endoftext,
        },
        "audio_config": {
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 512,
            "d_model": 192,
            "output_dim": HIDDEN,
        },
        "vision_config": {
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1, 3],
        },
        **thinker_tokens(ids),
        "tie_word_embeddings": True,
    }


def _talker(ids: TokenIds) -> dict[str, object]:
    return {
        "vocab_size": TALKER_VOCABULARY,
        "embedding_size": HIDDEN,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rope_parameters": rope(64, _ROPE_THETA),
        "max_position_embeddings": 32_768,
        "tts_codec_pad_token_id": CODEC_PAD,
        "tts_codec_start_token_id": CODEC_BOS,
        "tts_codec_end_token_id": CODEC_EOS,
        "tts_codec_mask_token_id": CODEC_MASK,
        **talker_tokens(ids),
    }


_DIT: dict[str, object] = {
    "hidden_size": 128,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "head_dim": 32,
    "emb_dim": 64,
    "num_embeds": CODES,
    "look_ahead_layers": [2],
    "look_backward_layers": [0, 4],
    "enc_emb_dim": SPEAKER_WIDTH,
    "enc_dim": 32,
    "enc_channels": [64, 64, 64, 64, 192],  # the last is the sum of the middle three
    "enc_attention_channels": 32,
    "enc_se_channels": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": _ROPE_THETA},
}

_BIGVGAN: dict[str, object] = {
    "upsample_initial_channel": 128,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3, 5]],
}
