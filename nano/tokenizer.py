"""Nano's tokenizer, with the files and token ids that come of it.

Inputs: a directory → outputs: the files of `published.py` in it, and the token ids the model's configuration needs.

The vocabulary is trained on the sentences of Nano's world until every word of them is one token in every place it can
have ("Seven", "seven", " seven"); words outside the world are spelt in pieces. The published files are read by a class
that knows no other way of making whole words than merges, so the pieces on the way to a word have rows too.
"""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Tokenizer

from ..runtime.messages import SYSTEM_PROMPT
from .published import DEFAULT_SYSTEM, TokenIds, ids_of, train_tokenizer, write_files
from .world import examples

ROWS_LIMIT = 1024  # tokens, special tokens and the unnamed ids after them
MIN_PIXELS = 168 * 168  # a small picture is enlarged: a shape two patches wide is not told from another
MAX_PIXELS = 224 * 224  # published: 12.8 million; Nano's pictures are plain shapes


@functools.cache
def tokenizer() -> Tokenizer:
    """Return the byte-level BPE with its special tokens; the same on every call and machine."""
    return train_tokenizer(_corpus(), ROWS_LIMIT)  # not reached: training ends when every word is one token


def token_ids() -> TokenIds:
    """Return every id the configuration and the voices need."""
    return ids_of(tokenizer())


def write_processor_files(directory: Path) -> None:
    """Write the tokenizer, the chat template and the feature extractor and image settings into `directory`."""
    write_files(directory, tokenizer(), MIN_PIXELS, MAX_PIXELS)


def _corpus() -> list[str]:
    roles = ["system\n", "user\n", "assistant\n"]
    typed = ["7 + 4 =", "7 - 4 =", "7+4=", "7-4=", "What's 7 + 4?", "what's 7 - 4"]
    return [*roles, SYSTEM_PROMPT, DEFAULT_SYSTEM, *examples(), *typed]
