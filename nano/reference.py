"""The reference implementation answering what the bundle is asked: nano's checkpoint in transformers, float32, greedy.

Inputs: a checkpoint directory and messages → output: the reply's text. The checkpoint is read with
`from_pretrained`, offline, and its own processor prepares the conversation: nothing of the runtime takes part.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..runtime.messages import Audio, Image, Message, Text, Video


def _import_torchvision() -> None:
    """Settle the processor's picture front end where torch has no CUDA; tests/reference.py tells the reasons."""
    sys.path.append(str(Path(sys.prefix) / "torchvision"))
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        import torchvision  # noqa: F401  # the second try, without the missing operators


_import_torchvision()

from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor  # noqa: E402  # after torchvision


class Reference:
    """The whole model in memory; `answer` uses its Thinker."""

    def __init__(self, checkpoint: Path) -> None:
        self._model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
            checkpoint, dtype="float32", attn_implementation="sdpa", local_files_only=True
        ).eval()
        self._processor = Qwen2_5OmniProcessor.from_pretrained(checkpoint, local_files_only=True)

    @torch.no_grad()
    def answer(self, messages: Sequence[Message], max_tokens: int) -> str:
        """The greedy reply to a conversation."""
        tokenizer = self._processor.tokenizer
        batch = self._prepared(messages)
        tokens = self._model.thinker.generate(
            **batch,
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        reply: str = tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return reply

    def _prepared(self, messages: Sequence[Message]) -> dict[str, torch.Tensor]:
        parts = [part for message in messages for part in message.content]
        text = self._processor.apply_chat_template(
            [{"role": message.role, "content": [_entry(part) for part in message.content]} for message in messages],
            add_generation_prompt=True,
            tokenize=False,
        )
        batch = self._processor(
            text=text,
            audio=[part.samples for part in parts if isinstance(part, Audio)] or None,
            images=[np.array(part.pixels) for part in parts if isinstance(part, Image)] or None,
            videos=[np.stack(list(part.frames)) for part in parts if isinstance(part, Video)] or None,
            return_tensors="pt",
        )
        return dict(batch)


def _entry(part: Text | Audio | Image | Video) -> dict[str, str]:
    match part:
        case Text():
            return {"type": "text", "text": part.text}
        case Audio():
            return {"type": "audio", "audio": ""}
        case Image():
            return {"type": "image", "image": ""}
        case Video():
            return {"type": "video", "video": ""}
