"""The two shapes of tiny Qwen2.5-Omni checkpoints the tests build, and their ``transformers`` configurations.

Inputs: a :class:`Shape` → output: a ``Qwen2_5OmniConfig``. The shapes differ where 3B and 7B differ: the ratio of
query to key/value heads, a tied (3B) or separate (7B) head, and a Talker whose width is not heads × head width (7B).
Widths are chosen so that 128 does not divide them and most hold more than one group of 128.
"""

from __future__ import annotations

import dataclasses

from nearfield.nano.published import TokenIds, rope, talker_tokens, thinker_tokens
from transformers import Qwen2_5OmniConfig

CODES = 257  # codec tokens 0..256; the DiT knows no others, the Talker's vocabulary holds more
CODEC_PAD, CODEC_BOS, CODEC_EOS, CODEC_MASK = 270, 271, 272, 274  # published: 8292, 8293, 8294, 8296
TALKER_VOCABULARY = 288
SPEAKER_WIDTH = 24  # published: 192
MEL_BINS = 80
THINKER_ROPE_THETA = 1_000_000.0
DIT_ROPE_THETA = 10_000.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes in which the two checkpoints differ."""

    name: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    tied: bool
    talker_hidden: int
    talker_heads: int
    talker_kv_heads: int
    talker_head_dim: int
    talker_ffn: int
    audio_width: int
    audio_heads: int
    audio_ffn: int
    vision_width: int
    vision_heads: int
    vision_ffn: int
    vision_depth: int
    vision_full_attention: tuple[int, ...]
    dit_width: int
    vocoder_channels: int = 128
    vocoder_kernels: tuple[int, ...] = (3, 7, 11)

    @property
    def head_dim(self) -> int:
        """Width of one Thinker head."""
        return self.hidden // self.heads


SMALL_3B = Shape(
    name="small-3b",
    vocabulary=624,
    hidden=160,
    layers=3,
    heads=10,
    kv_heads=2,
    ffn=320,
    tied=True,
    talker_hidden=144,
    talker_heads=9,
    talker_kv_heads=3,
    talker_head_dim=16,
    talker_ffn=304,
    audio_width=64,
    audio_heads=4,
    audio_ffn=160,
    vision_width=80,
    vision_heads=5,
    vision_ffn=180,
    vision_depth=3,
    vision_full_attention=(1,),
    dit_width=64,
)
SMALL_7B = Shape(
    name="small-7b",
    vocabulary=656,
    hidden=192,
    layers=2,
    heads=6,
    kv_heads=2,
    ffn=448,
    tied=False,
    talker_hidden=112,
    talker_heads=6,
    talker_kv_heads=2,
    talker_head_dim=32,
    talker_ffn=272,
    audio_width=96,
    audio_heads=6,
    audio_ffn=224,
    vision_width=96,
    vision_heads=4,
    vision_ffn=228,
    vision_depth=4,
    vision_full_attention=(1, 3),
    dit_width=80,
)


def build_config(shape: Shape, ids: TokenIds) -> Qwen2_5OmniConfig:
    """The whole configuration of one tiny checkpoint, token ids included."""
    return Qwen2_5OmniConfig(
        thinker_config=_thinker(shape, ids),
        talker_config=_talker(shape, ids),
        token2wav_config={"dit_config": _dit(shape), "bigvgan_config": _bigvgan(shape)},
        enable_audio_output=True,
    )


def _thinker(shape: Shape, ids: TokenIds) -> dict[str, object]:
    return {
        "text_config": {
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.ffn,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "rope_parameters": rope(shape.head_dim, THINKER_ROPE_THETA),
            "tie_word_embeddings": shape.tied,
            "bos_token_id": ids.im_start,
            "eos_token_id": ids.im_end,
            "pad_token_id": ids.endoftext,
        },
        "audio_config": {
            "encoder_layers": 2,
            "encoder_attention_heads": shape.audio_heads,
            "encoder_ffn_dim": shape.audio_ffn,
            "d_model": shape.audio_width,
            "output_dim": shape.hidden,
        },
        "vision_config": {
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_width,
            "intermediate_size": shape.vision_ffn,
            "num_heads": shape.vision_heads,
            "out_hidden_size": shape.hidden,
            "fullatt_block_indexes": list(shape.vision_full_attention),
        },
        **thinker_tokens(ids),
        "tie_word_embeddings": shape.tied,
    }


def _talker(shape: Shape, ids: TokenIds) -> dict[str, object]:
    return {
        "vocab_size": TALKER_VOCABULARY,
        "embedding_size": shape.hidden,
        "hidden_size": shape.talker_hidden,
        "intermediate_size": shape.talker_ffn,
        "num_hidden_layers": 2,
        "num_attention_heads": shape.talker_heads,
        "num_key_value_heads": shape.talker_kv_heads,
        "head_dim": shape.talker_head_dim,
        "rope_parameters": rope(shape.talker_head_dim, THINKER_ROPE_THETA),
        "tts_codec_pad_token_id": CODEC_PAD,
        "tts_codec_start_token_id": CODEC_BOS,
        "tts_codec_end_token_id": CODEC_EOS,
        "tts_codec_mask_token_id": CODEC_MASK,
        **talker_tokens(ids),
    }


def _bigvgan(shape: Shape) -> dict[str, object]:
    return {
        "upsample_initial_channel": shape.vocoder_channels,
        "resblock_kernel_sizes": list(shape.vocoder_kernels),
        "resblock_dilation_sizes": [[1, 3, 5] for _ in shape.vocoder_kernels],
    }


def _dit(shape: Shape) -> dict[str, object]:
    return {
        "hidden_size": shape.dit_width,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "head_dim": 16,
        "emb_dim": 32,
        "num_embeds": CODES,
        "look_ahead_layers": [1],
        "look_backward_layers": [0, 2],
        "enc_emb_dim": SPEAKER_WIDTH,
        "enc_dim": 16,
        "enc_channels": [16, 16, 16, 16, 48],  # the last is the sum of the middle three
        "enc_attention_channels": 8,
        "enc_se_channels": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": DIT_ROPE_THETA},
    }
