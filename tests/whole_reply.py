"""A whole reply of the reference: tokens, speech codes and waveform, from the same conversation and the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nearfield.nano.reference import prompt_text
from nearfield.runtime.messages import Audio, Image, Message, Video
from reference import generation_inputs
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WholeReply:
    """What the reference says."""

    token_ids: list[int]
    """Generated, with the token that ends the reply if there is one."""
    codes: list[int]
    waveform: Float32


def reference_noise(seed: int, codes: int) -> Float32:
    """The noise `(1, 2 · codes, 80)` the reference draws first after `torch.manual_seed(seed)`."""
    noise: Float32 = torch.randn([1, 2 * codes, 80], generator=torch.Generator().manual_seed(seed)).numpy()
    return noise


def processed(processor: Qwen2_5OmniProcessor, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
    """A conversation as the reference's processor prepares it. Videos have sound in all, or in none."""
    parts = [part for message in messages for part in message.content]
    videos: list[Video] = []
    sounds: list[Float32] = []
    sound_of: list[int | None] = []  # the video each sound belongs to
    for part in parts:
        if isinstance(part, Audio):
            sounds.append(part.samples)
            sound_of.append(None)
        elif isinstance(part, Video):
            if part.audio is not None:
                sounds.append(part.audio.samples)
                sound_of.append(len(videos))
            videos.append(part)
    sound_in_video = any(video is not None for video in sound_of)
    text = prompt_text(processor, messages)
    batch = processor(
        text=text,
        audio=sounds or None,
        images=[part.pixels for part in parts if isinstance(part, Image)] or None,
        videos=[np.stack(list(video.frames)) for video in videos] or None,
        load_audio_from_video=sound_in_video,
        audio_from_video_indices=sound_of if sound_in_video else None,
        return_tensors="pt",
    )
    return {**batch, **({"use_audio_in_video": True} if sound_in_video else {})}


def left_padded(batch: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """The same prompt behind one masked token, which changes nothing that is generated but one thing.

    `generate` in transformers 5.23 drops a mask that is all ones before the Talker sees it, and the Talker takes a
    missing mask for a later call: it leaves out the codec embeddings of its prefix and the TMRoPE ids. Its weights were
    trained with both, and a batch with padding has both; so that is what Nearfield does and is compared with.
    """
    pad = torch.full((1, 1), pad_token_id)
    ids = torch.cat([pad, batch["input_ids"]], 1)
    mask = torch.cat([torch.zeros_like(pad), batch["attention_mask"]], 1)
    return {**batch, "input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def reference_reply(
    model: Qwen2_5OmniForConditionalGeneration,
    processor: Qwen2_5OmniProcessor,
    messages: Sequence[Message],
    *,
    voice: str,
    max_tokens: int,
    max_codes: int,
    noise_seed: int,
) -> WholeReply:
    """The greedy reply of the whole model. The repetition penalty of the Talker is the reference's default."""
    batch = left_padded(processed(processor, messages), processor.tokenizer.pad_token_id)
    codes: list[list[int]] = []

    def note_codes(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        codes.append(args[0][0].tolist())

    hook = model.token2wav.register_forward_pre_hook(note_codes)
    try:
        torch.manual_seed(noise_seed)
        sequences, waveform = model.generate(
            **generation_inputs(batch),
            speaker=voice,
            thinker_max_new_tokens=max_tokens,
            talker_max_new_tokens=max_codes,
            talker_do_sample=False,
            talker_eos_token_id=[model.config.talker_config.tts_codec_end_token_id, model.talker.codec_pad_token],
        )
    finally:
        hook.remove()
    prompt_tokens = batch["input_ids"].shape[1]
    return WholeReply(sequences[0, prompt_tokens:].tolist(), codes[0], waveform.numpy())
