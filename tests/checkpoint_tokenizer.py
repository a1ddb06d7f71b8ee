"""The tokenizer of the tiny checkpoints, with the files and token ids that come of it.

Inputs: a directory → outputs: the files of ``nano/published.py`` in it, and the token ids the model's configuration
needs. The vocabulary is trained here on a few sentences.
"""

from __future__ import annotations

import functools
from pathlib import Path

from nearfield.nano.published import TokenIds, ids_of, train_tokenizer, write_files
from tokenizers import Tokenizer

BPE_VOCABULARY = 576
MIN_PIXELS, MAX_PIXELS = 3136, 12_845_056  # as published

_CORPUS = (
    *("system\n", "user\n", "assistant\n") * 20,  # the roles become one token each
    "You are a helpful assistant.",
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and"
    " visual inputs, as well as generating text and speech.",
    "Hello, how are you today? I am fine, thank you; what can I do for you?",
    "Please describe the picture, then tell me what you hear in the recording.",
    "The quick brown fox jumps over the lazy dog while the small cat sleeps near the warm window.",
    "It isn't raining, but they've said that we'll need an umbrella before seven o'clock this evening.",
    "Numbers such as 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9 are read one digit at a time.",
    "Speech is made from codes, codes are made from words, and words come from meaning.",
    "Where is the nearest railway station, and when does the first train leave for the mountains?",
    "A bright yellow bird sang a cheerful song in the old garden behind the house.",
    "Naïve café owners charge 12 € for crème brûlée; 你好，世界。今天天气很好。",
)


@functools.cache
def tokenizer() -> Tokenizer:
    """The byte-level BPE with its special tokens; the same on every call and machine."""
    trained = train_tokenizer(_CORPUS, BPE_VOCABULARY)
    tokens = trained.get_vocab_size(with_added_tokens=False)
    if tokens != BPE_VOCABULARY:
        raise ValueError(f"the corpus gave {tokens} tokens, {BPE_VOCABULARY} expected: add text")
    return trained


def token_ids() -> TokenIds:
    """Every id the configuration and the voices need."""
    return ids_of(tokenizer())


def write_processor_files(directory: Path) -> None:
    """Write the tokenizer, the chat template and the feature extractor and image settings into ``directory``."""
    write_files(directory, tokenizer(), MIN_PIXELS, MAX_PIXELS)
