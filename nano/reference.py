"""The reference implementation answering what the bundle is asked: nano's checkpoint in transformers, float32, greedy.

Inputs: a checkpoint directory and messages → output: the reply's text. The checkpoint is read with
`from_pretrained`, offline, and its own processor prepares the conversation: nothing of the runtime takes part.
Import this module before anything of `transformers`.

The reference's image and video processing need torchvision. The wheel on PyPI is built for CUDA, and on a torch
without CUDA its compiled operators are absent: only detection models use them, but `import torchvision` then stops
in `torchvision._meta_registrations`, which describes those operators to the compiler. An empty module in its place
is all that is needed; it is put there only where the import fails for that reason. Since such a torchvision stops
`import transformers` for everybody else, `nearfield verify` among them, it is installed in a folder of its own.
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
    sys.path.append(str(Path(sys.prefix) / "torchvision"))  # where the Makefile puts it
    try:
        import torchvision  # imported to find out whether it can be
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
        import torchvision  # noqa: F401  # the second try, without the missing operators


_import_torchvision()

from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor  # noqa: E402  # after torchvision


def load_model(path: Path) -> Qwen2_5OmniForConditionalGeneration:
    """The reference model at ``path`` in evaluation mode, float32, nothing fetched from the network."""
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        path, dtype="float32", attn_implementation="sdpa", local_files_only=True
    )
    return model.eval()


def load_processor(path: Path) -> Qwen2_5OmniProcessor:
    """The reference processor at ``path``: tokenizer, chat template, mel, image and video front ends."""
    return Qwen2_5OmniProcessor.from_pretrained(path, local_files_only=True)


class Reference:
    """The whole model in memory; `answer` uses its Thinker."""

    def __init__(self, checkpoint: Path) -> None:
        self._model, self._processor = load_model(checkpoint), load_processor(checkpoint)

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
        text = prompt_text(self._processor, messages)
        batch = self._processor(
            text=text,
            audio=[part.samples for part in parts if isinstance(part, Audio)] or None,
            images=[np.array(part.pixels) for part in parts if isinstance(part, Image)] or None,
            videos=[np.stack(list(part.frames)) for part in parts if isinstance(part, Video)] or None,
            return_tensors="pt",
        )
        return dict(batch)


def prompt_text(processor: Qwen2_5OmniProcessor, messages: Sequence[Message]) -> str:
    """A conversation in the words of the checkpoint's template, up to where the reply begins."""
    text: str = processor.apply_chat_template(
        [{"role": message.role, "content": [_entry(part) for part in message.content]} for message in messages],
        add_generation_prompt=True,
        tokenize=False,
    )
    return text


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
