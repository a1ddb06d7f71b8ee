"""The tiny checkpoints: the reference loads them offline, answers from every kind of input, and they repeat."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_published import UNUSED_DIT_TENSOR
from checkpoint_shapes import CODEC_EOS, CODEC_PAD, CODES
from checkpoint_tokenizer import BPE_VOCABULARY, token_ids, tokenizer
from checkpoints import REFERENCE_MEL_FRAMES, SMALL_3B, SMALL_7B, Shape, build_model, write_checkpoint
from PIL import Image
from reference import generation_inputs
from safetensors.torch import load_file
from transformers import BatchFeature, Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

SAMPLES_PER_CODE = 480  # 24 kHz, 50 codes a second


def _conversation(*parts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Hello, what is this?"}]}]


def _inputs(processor: Qwen2_5OmniProcessor, kind: str) -> BatchFeature:
    rng = np.random.default_rng(0)
    parts = [] if kind == "text" else [{"type": kind}]
    media: dict[str, Any] = {
        "text": {},
        "audio": {"audio": [(0.1 * rng.standard_normal(24_000)).astype(np.float32)]},
        "image": {"images": [Image.fromarray(rng.integers(0, 256, (140, 224, 3), dtype=np.uint8))]},
        "video": {"videos": [rng.integers(0, 256, (4, 3, 112, 140), dtype=np.uint8)]},
    }
    prompt = processor.apply_chat_template(_conversation(*parts), add_generation_prompt=True, tokenize=False)
    return processor(text=prompt, return_tensors="pt", **media[kind])


def _digests(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


@pytest.mark.parametrize("kind", ["text", "audio", "image", "video"])
@pytest.mark.parametrize("size", ["3b", "7b"])
def test_reference_answers_with_text_and_audio(size: str, kind: str, request: pytest.FixtureRequest) -> None:
    model: Qwen2_5OmniForConditionalGeneration = request.getfixturevalue(f"reference_{size}")
    inputs = _inputs(request.getfixturevalue(f"processor_{size}"), kind)
    torch.manual_seed(0)
    ids, waveform = model.generate(
        **generation_inputs(inputs),
        thinker_max_new_tokens=6,
        talker_max_new_tokens=8,
        talker_do_sample=False,
        talker_eos_token_id=[CODEC_PAD, CODEC_EOS],
        token2wav_num_steps=3,
    )
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 6
    assert waveform.shape == (8 * SAMPLES_PER_CODE,)
    assert 0.05 < waveform.std() < 0.8


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # 5.23's own
def test_sound_track_of_a_video_is_interleaved_and_answered(
    processor_3b: Qwen2_5OmniProcessor, reference_3b: Qwen2_5OmniForConditionalGeneration
) -> None:
    rng = np.random.default_rng(0)
    inputs = processor_3b(
        text=processor_3b.apply_chat_template(_conversation({"type": "video"}), tokenize=False),
        videos=[rng.integers(0, 256, (8, 3, 56, 84), dtype=np.uint8)],  # 4 s at 2 frames a second
        audio=[(0.1 * rng.standard_normal(64_000)).astype(np.float32)],
        load_audio_from_video=True,
        audio_from_video_indices=[0],  # audio 0 is the sound track of video 0
        return_tensors="pt",
    )
    ids = token_ids()
    media = [token for token in inputs["input_ids"][0].tolist() if token in (ids.audio, ids.video)]
    runs = [token for place, token in enumerate(media) if place == 0 or token != media[place - 1]]
    assert runs == [ids.video, ids.audio] * 2  # chunks of two seconds
    reply = reference_3b.generate(
        **generation_inputs(inputs), use_audio_in_video=True, thinker_max_new_tokens=3, generation_mode="text"
    )
    assert reply.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("size", ["3b", "7b"])
def test_greedy_reply_runs_on_and_is_clear_cut(size: str, request: pytest.FixtureRequest) -> None:
    thinker = request.getfixturevalue(f"reference_{size}").thinker
    inputs = _inputs(request.getfixturevalue(f"processor_{size}"), "text")
    reply = thinker.generate(
        **inputs, max_new_tokens=64, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    new_ids = reply.sequences[0, inputs["input_ids"].shape[1] :]
    best, second = torch.stack(reply.scores)[:, 0].topk(2).values.unbind(-1)  # (64,) each
    assert len(new_ids) == 64
    assert len(new_ids.unique()) > 24
    assert new_ids.max() < BPE_VOCABULARY
    assert (best - second).min() > 1e-3  # float32 rounding moves a logit by 5e-5


@pytest.mark.parametrize("shape", [SMALL_3B, SMALL_7B], ids=lambda shape: shape.name)
def test_same_seed_gives_the_same_bytes_and_another_seed_other_weights(tmp_path: Path, shape: Shape) -> None:
    first = _digests(write_checkpoint(tmp_path / "first", shape))
    again = _digests(write_checkpoint(tmp_path / "again", shape))
    other = _digests(write_checkpoint(tmp_path / "other", shape, seed=2))
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors", "spk_dict.pt"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_dtype_is_the_asked_one_and_token2wav_stays_float32(tmp_path: Path, dtype: str) -> None:
    tensors = load_file(write_checkpoint(tmp_path, SMALL_7B, dtype=dtype) / "model.safetensors")
    language = {tensor.dtype for name, tensor in tensors.items() if not name.startswith("token2wav.")}
    sound = {tensor.dtype for name, tensor in tensors.items() if name.startswith("token2wav.")}
    assert language == {getattr(torch, dtype)}
    assert sound == {torch.float32}


def test_shards_hold_the_same_tensors_as_one_file(tmp_path: Path, checkpoint_7b: Path) -> None:
    whole = load_file(write_checkpoint(tmp_path, SMALL_7B) / "model.safetensors")
    shards = [load_file(path) for path in sorted(checkpoint_7b.glob("*.safetensors"))]
    merged = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert len(shards) > 2
    assert merged.keys() == whole.keys()
    assert all(torch.equal(merged[name], whole[name]) for name in whole)


def test_head_is_written_only_when_it_is_not_tied(checkpoint_3b: Path, tmp_path: Path) -> None:
    assert "thinker.lm_head.weight" not in load_file(checkpoint_3b / "model.safetensors")
    assert "thinker.lm_head.weight" in load_file(write_checkpoint(tmp_path, SMALL_7B) / "model.safetensors")


@pytest.mark.parametrize("max_shard_bytes", [None, 4_000_000])
def test_published_spelling_renames_keys_and_keeps_weights(tmp_path: Path, max_shard_bytes: int | None) -> None:
    modern = write_checkpoint(tmp_path / "modern", SMALL_3B)
    published = write_checkpoint(
        tmp_path / "published", SMALL_3B, published_spelling=True, max_shard_bytes=max_shard_bytes
    )
    shards = sorted(published.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = load_file(modern / "model.safetensors")
    assert tensors.keys() - expected.keys() == {UNUSED_DIT_TENSOR}
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    dit = config["token2wav_config"]["dit_config"]
    assert (dit["dim"], dit["depth"], dit["heads"]) == (SMALL_3B.dit_width, 4, 4)
    assert {"hidden_size", "num_hidden_layers", "num_attention_heads", "block_size", "rope_parameters"}.isdisjoint(dit)
    for section in (config["thinker_config"]["text_config"], config["talker_config"]):
        assert section["rope_scaling"] == {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
        assert section["rope_theta"] == 1_000_000.0
        assert "rope_parameters" not in section
    if max_shard_bytes is not None:
        index = json.loads((published / "model.safetensors.index.json").read_text(encoding="utf-8"))
        assert len(shards) > 2
        assert index["weight_map"] == {name: shard.name for shard in shards for name in load_file(shard)}


def test_every_condition_of_the_dit_changes_the_mel(reference_3b: Qwen2_5OmniForConditionalGeneration) -> None:
    dit = reference_3b.token2wav.code2wav_dit_model
    chelsie, ethan = (reference_3b.speaker_map[name] for name in ("Chelsie", "Ethan"))
    codes = torch.arange(30).unsqueeze(0)  # (1, 30)

    def mel(codes: torch.Tensor, speaker: dict[str, Any], recording: dict[str, Any], guidance: float) -> torch.Tensor:
        torch.manual_seed(0)
        sampled: torch.Tensor = dit.sample(
            speaker["cond"], recording["ref_mel"], codes, num_steps=4, guidance_scale=guidance
        )
        return sampled  # (1, 80, 60)

    base = mel(codes, chelsie, chelsie, 0.5)
    assert -8.0 < base.mean() < -2.0
    assert (mel(codes.flip(1), chelsie, chelsie, 0.5) - base).std() > 0.1
    assert (mel(codes, ethan, chelsie, 0.5) - base).std() > 0.1
    assert (mel(codes, chelsie, ethan, 0.5) - base).std() > 0.05
    assert (mel(codes, chelsie, chelsie, 0.0) - base).std() > 0.1


def test_voices_are_as_published(checkpoint_3b: Path) -> None:
    voices = torch.load(checkpoint_3b / "spk_dict.pt", weights_only=True)
    assert {name: voice["ref_mel"].shape for name, voice in voices.items()} == {
        name: (1, frames, 80) for name, frames in REFERENCE_MEL_FRAMES.items()
    }
    assert {tuple(voice["cond"].shape) for voice in voices.values()} == {(1, 24)}
    assert voices["Chelsie"]["bos_token"] == token_ids().voice_chelsie
    assert voices["Ethan"]["bos_token"] == token_ids().voice_ethan


@pytest.mark.parametrize("shape", [SMALL_3B, SMALL_7B], ids=lambda shape: shape.name)
def test_widths_cover_the_awkward_cases(shape: Shape) -> None:
    model = build_model(shape)
    assert all(width % 128 and width > 128 for width in (shape.hidden, shape.ffn, shape.vision_ffn, shape.talker_ffn))
    assert shape.heads * shape.head_dim == shape.hidden != shape.talker_hidden
    assert model.thinker.lm_head.weight.shape[0] > tokenizer().get_vocab_size()
    assert model.token2wav.code2wav_dit_model.text_embed.codec_embed.num_embeddings == CODES + 1
    assert max(vars(token_ids()).values()) < shape.vocabulary


def test_tokenizer_round_trips_any_text(processor_3b: Qwen2_5OmniProcessor) -> None:
    text = "Naïve café, 12 apples — 你好 😀\n\tdon't"
    assert processor_3b.tokenizer.decode(processor_3b.tokenizer(text)["input_ids"]) == text
    assert processor_3b.tokenizer("<|im_start|>user")["input_ids"] == [token_ids().im_start, token_ids().user]


def test_chat_template_renders_as_the_published_one(processor_3b: Qwen2_5OmniProcessor) -> None:
    conversation = _conversation({"type": "audio"}, {"type": "image"}, {"type": "video"})
    conversation.append({"role": "assistant", "content": "A dog."})
    rendered = processor_3b.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|><|vision_bos|><|IMAGE|><|vision_eos|>"
        "<|vision_bos|><|VIDEO|><|vision_eos|>Hello, what is this?<|im_end|>\n"
        "<|im_start|>assistant\nA dog.<|im_end|>\n<|im_start|>assistant\n"
    )
    rules = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    rendered = processor_3b.apply_chat_template([rules, *conversation], tokenize=False)
    assert rendered.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert "helpful" not in rendered
