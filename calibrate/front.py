"""The front end of a checkpoint: its own files, as far as they lay out a conversation for the Thinker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from ..export.config import Section
from ..export.export import special_tokens
from ..export.preprocessor import read_audio, read_vision
from ..export.tokenizer_files import collect_tokenizer
from ..runtime import manifest
from ..runtime.messages import Message
from ..runtime.prompt import Prompt, build_prompt, media_parts, media_size
from ..runtime.tokenizer import Tokenizer


@dataclass(frozen=True)
class Front:
    """Tokenizer, chat template and the processor's settings, as an export reads them."""

    tokenizer: Tokenizer
    tokens: manifest.Tokens
    vision: manifest.Vision
    audio: manifest.Audio

    @classmethod
    def read(cls, directory: Path, config: Section) -> Front:
        """Read them from a checkpoint's directory; `config` is its config.json. Raises `CheckpointError`."""
        thinker = config.section("thinker_config")
        tokenizer_json, chat_template = collect_tokenizer(directory)
        return cls(
            tokenizer=Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8")), chat_template),
            tokens=special_tokens(thinker),
            vision=read_vision(directory, thinker.section("vision_config")),
            audio=read_audio(directory, thinker.section("audio_config")),
        )

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """Token ids and positions of a conversation, up to where the reply begins."""
        sizes = [media_size(part, self.audio, self.vision) for part in media_parts(messages)]
        return build_prompt(messages, sizes, self.tokenizer, self.tokens, self.vision)
