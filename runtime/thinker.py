"""The Thinker at work: embeddings of a prompt in, reply tokens' logits out, and what the Talker needs of each position.

Inputs: embeddings `float32 (S, D)` with TMRoPE ids `int64 (3, S)`, then one token id a step → outputs: logits
`float32 (1, V)`, and rows `float32 (D)` for the Talker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import manifest
from .decoder import Decoder, Float32, Int64
from .session import Array


class Table(Protocol):
    """An embedding table `(V, D)`: an array, or whatever has the rows that are asked of it."""

    def __getitem__(self, rows: Int64, /) -> Array:
        """Rows by number."""
        ...


def gather_rows(table: Table, token_ids: Sequence[int] | Int64) -> Float32:
    """Rows of an embedding table `(V, D)` as `float32 (len(token_ids), D)`; only they are read from a mapped file."""
    return np.asarray(table[np.asarray(token_ids, np.int64)], np.float32)


class Thinker:
    """One conversation in progress: the cached positions, and the logits of the last of them."""

    def __init__(self, decoder: Decoder, settings: manifest.Thinker, embedding: Array) -> None:
        """`embedding (V, D)`: the token table, usually memory-mapped."""
        self.decoder, self.settings = decoder, settings
        self._embedding = embedding
        self._next_position = 0
        self._logits: Float32 = np.zeros((1, settings.vocab_size), np.float32)

    @property
    def logits(self) -> Float32:
        """Logits `(1, V)` of the token after the last position fed."""
        return self._logits

    def embed(self, token_ids: Sequence[int] | Int64) -> Float32:
        """Embeddings `(len(token_ids), D)`."""
        return gather_rows(self._embedding, token_ids)

    def is_end(self, token_id: int) -> bool:
        """Whether a token ends the reply."""
        return token_id in self.settings.eos_token_ids

    def prefill(self, embeddings: Float32, position_ids: Int64) -> Array:
        """Feed a prompt `(S, D)` with its ids `(3, S)`; returns its last hidden states `f (S, D)`.

        Raises `ContextLimitError` when it does not fit.
        """
        output = self.decoder.prefill(embeddings, position_ids)
        self._logits = output.logits
        # A prompt ends in text, whose three ids are equal; the reply goes on from there, as in the reference's generate
        # and as the next turn, which reads the reply as text, will number it. (A video may have a larger id before.)
        self._next_position = int(position_ids[0, -1]) + 1
        return _hidden(output.last_hidden_state)

    def step(self, token_id: int) -> Float32:
        """Feed one token of the reply; returns its row `(D,)` for the Talker: last hidden state + embedding.

        Raises `ContextLimitError` when the context is full.
        """
        embedding = self.embed([token_id])[0]
        output = self.decoder.step(embedding, self._next_position)
        self._logits = output.logits
        self._next_position += 1
        row: Float32 = _hidden(output.last_hidden_state)[0].astype(np.float32) + embedding
        return row

    def write(self, max_tokens: int) -> list[int]:
        """Ids of the likeliest tokens until the reply ends, or the limit or the context is reached."""
        tokens: list[int] = []
        while not self.is_end(token := int(self._logits.argmax())):
            tokens.append(token)
            if len(tokens) == max_tokens or self.decoder.length == self.decoder.context:
                break
            self.step(token)
        return tokens

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on; the next thing to do is `prefill`."""
        self.decoder.truncate(length)

    def reset(self) -> None:
        """Forget the conversation."""
        self.decoder.reset()
        self._next_position = 0


def _hidden(states: Array | None) -> Array:
    if states is None:
        raise TypeError("the Thinker's graph has no output last_hidden_state")
    return states


def talker_prompt_rows(hidden: Array, embeddings: Float32, media: npt.NDArray[np.bool_]) -> Float32:
    """Rows `(S, D)` of a prompt for the Talker: last hidden + embedding, the latter left out where `media (S)` is set.

    What a clip or picture sounds or looks like reaches the Talker through the hidden states alone.
    """
    rows: Float32 = hidden.astype(np.float32)
    rows[~media] += embeddings[~media]
    return rows
