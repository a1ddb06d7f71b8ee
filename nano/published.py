"""What stands beside the weights of a published checkpoint: tokenizer, chat template, processor settings, token ids.

Inputs: sentences to train a vocabulary on, limits of pictures → outputs: a byte-level BPE, so any text round-trips;
`tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` and `preprocessor_config.json` as the publisher writes
them; the settings of a configuration that name token ids. Nano and the tiny checkpoints of the tests differ in
vocabulary and sizes alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHUNK_LENGTH_S = 30  # published: 300; the reference pads every clip to this length

# Qwen2's pre-tokenizer: contractions, words with one leading mark, single digits, punctuation runs, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# In the published order, which starts at 151643.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|AUDIO|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_bos|>",
    "<|vision_eos|>",
    "<|vision_pad|>",
    "<|IMAGE|>",
    "<|VIDEO|>",
)

DEFAULT_SYSTEM = "You are a helpful assistant."  # what the published template puts first when nothing else stands there

# The published template's logic.
CHAT_TEMPLATE = """\
{%- set seen = namespace(image=0, audio=0, video=0) -%}
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nDEFAULT_SYSTEM<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{%- set seen.image = seen.image + 1 -%}
{%- if add_vision_id %}{{- 'Picture ' ~ seen.image ~ ': ' -}}{% endif -%}
{{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
{%- elif part['type'] == 'audio' or 'audio' in part or 'audio_url' in part -%}
{%- set seen.audio = seen.audio + 1 -%}
{%- if add_audio_id %}{{- 'Audio ' ~ seen.audio ~ ': ' -}}{% endif -%}
{{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{%- set seen.video = seen.video + 1 -%}
{%- if add_vision_id %}{{- 'Video ' ~ seen.video ~ ': ' -}}{% endif -%}
{{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' -}}{% endif -%}
""".replace("DEFAULT_SYSTEM", DEFAULT_SYSTEM)

_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class TokenIds:
    """Ids the configuration names. The last five have embedding rows but, as published, no entry in the tokenizer."""

    endoftext: int
    im_start: int
    im_end: int
    audio: int
    audio_bos: int
    audio_eos: int
    vision_bos: int
    vision_eos: int
    vision_pad: int
    image: int
    video: int
    user: int
    tts_pad: int
    tts_bos: int
    tts_eos: int
    voice_ethan: int
    voice_chelsie: int


def train_tokenizer(sentences: Iterable[str], rows: int) -> Tokenizer:
    """Return the BPE of the sentences, of at most `rows` tokens and the special ones; the same on every machine."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=rows,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    bpe.train_from_iterator(sentences, trainer)
    bpe.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return bpe


def ids_of(tokenizer: Tokenizer) -> TokenIds:
    """Return every id the configuration and the voices need."""
    vocabulary = tokenizer.get_vocab()
    after = len(vocabulary) + 4  # a gap, as the published ids leave one
    return TokenIds(
        endoftext=vocabulary["<|endoftext|>"],
        im_start=vocabulary["<|im_start|>"],
        im_end=vocabulary["<|im_end|>"],
        audio=vocabulary["<|AUDIO|>"],
        audio_bos=vocabulary["<|audio_bos|>"],
        audio_eos=vocabulary["<|audio_eos|>"],
        vision_bos=vocabulary["<|vision_bos|>"],
        vision_eos=vocabulary["<|vision_eos|>"],
        vision_pad=vocabulary["<|vision_pad|>"],
        image=vocabulary["<|IMAGE|>"],
        video=vocabulary["<|VIDEO|>"],
        user=vocabulary["user"],
        tts_pad=after,
        tts_bos=after + 1,
        tts_eos=after + 2,
        voice_ethan=after + 4,
        voice_chelsie=after + 6,
    )


def thinker_tokens(ids: TokenIds) -> dict[str, object]:
    """Return what a Thinker's configuration says of tokens."""
    return {
        **_media_tokens(ids),
        "vision_token_id": ids.vision_pad,
        "user_token_id": ids.user,
        "bos_token_id": ids.im_start,
        "eos_token_id": ids.im_end,
        "pad_token_id": ids.endoftext,
    }


def talker_tokens(ids: TokenIds) -> dict[str, object]:
    """Return what a Talker's configuration says of text tokens."""
    return {
        **_media_tokens(ids),
        "tts_text_pad_token_id": ids.tts_pad,
        "tts_text_start_token_id": ids.tts_bos,
        "tts_text_end_token_id": ids.tts_eos,
    }


def _media_tokens(ids: TokenIds) -> dict[str, object]:
    return {
        "audio_token_index": ids.audio,
        "image_token_index": ids.image,
        "video_token_index": ids.video,
        "audio_start_token_id": ids.audio_bos,
        "audio_end_token_id": ids.audio_eos,
        "vision_start_token_id": ids.vision_bos,
        "vision_end_token_id": ids.vision_eos,
    }


def rope(head_dim: int, theta: float) -> dict[str, object]:
    """Return TMRoPE's settings; the three sections fill half a head as the published 16·24·24 fill half of 128."""
    time = head_dim // 8
    side = (head_dim // 2 - time) // 2
    return {"rope_type": "default", "rope_theta": theta, "mrope_section": [time, side, side]}


def write_files(directory: Path, tokenizer: Tokenizer, min_pixels: int, max_pixels: int) -> None:
    """Write the tokenizer, the chat template and the feature extractor and image settings into `directory`."""
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    _write_json(directory / "preprocessor_config.json", _preprocessor_config(min_pixels, max_pixels))
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2_5OmniProcessor",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "extra_special_tokens": {
            "audio_token": "<|AUDIO|>",
            "audio_bos_token": "<|audio_bos|>",
            "audio_eos_token": "<|audio_eos|>",
            "image_token": "<|IMAGE|>",
            "video_token": "<|VIDEO|>",
            "vision_bos_token": "<|vision_bos|>",
            "vision_eos_token": "<|vision_eos|>",
        },
    }


def _preprocessor_config(min_pixels: int, max_pixels: int) -> dict[str, object]:
    return {
        "processor_class": "Qwen2_5OmniProcessor",
        "feature_extractor_type": "WhisperFeatureExtractor",
        "chunk_length": CHUNK_LENGTH_S,
        "dither": 0.0,
        "feature_size": 128,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": CHUNK_LENGTH_S * 16_000,
        "nb_max_frames": CHUNK_LENGTH_S * 100,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": 16_000,
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": _CLIP_MEAN,
        "image_std": _CLIP_STD,
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")
