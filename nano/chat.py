"""Conversations → padded batches for the Thinker, laid out by the runtime, so that training sees what a user's turn is.

Inputs: messages (text, sound, pictures) with their right reply → outputs: token ids, TMRoPE position ids and labels,
and for every sound or picture where in the batch its embeddings go.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from ..calibrate.front import Front
from ..export.config import Section
from ..runtime.messages import Message
from ..runtime.prompt import Kind, Prompt
from .model import config
from .tokenizer import token_ids, write_processor_files

IGNORED = -100
"""Label of a token that is not to be predicted: the prompt, and padding."""


@functools.cache
def front() -> Front:
    """Nano's front end; its files are the checkpoint's, written for the moment into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        write_processor_files(Path(folder))
        return Front.read(Path(folder), Section(config().to_dict(), "config.json"))


@dataclass(frozen=True)
class Example:
    """A conversation and the reply it should get."""

    messages: Sequence[Message]
    reply: str


@dataclass(frozen=True)
class Place:
    """Where the embeddings of one sound or picture go: row of the batch, columns in the encoder's order."""

    row: int
    columns: Tensor
    kind: Kind
    part: int
    """Which of the row's media it is."""


@dataclass(frozen=True)
class Batch:
    """B conversations of at most S tokens, padded at the right."""

    tokens: Tensor
    """(B, S) int64."""
    positions: Tensor
    """(3, B, S) int64."""
    labels: Tensor
    """(B, S) int64: the token to be predicted *at* a place, `IGNORED` where none is."""
    places: list[Place]

    def to(self, device: torch.device) -> Batch:
        """The same on ``device``."""
        places = [replace(place, columns=place.columns.to(device)) for place in self.places]
        return Batch(self.tokens.to(device), self.positions.to(device), self.labels.to(device), places)


def collate(examples: Sequence[Example]) -> Batch:
    """Lay out a batch, on the CPU. The reply's tokens and the end of turn behind it are what is to be predicted."""
    settings = front()
    rows: list[tuple[Prompt, list[int]]] = [
        (settings.prompt(example.messages), [*settings.tokenizer.encode(example.reply), token_ids().im_end])
        for example in examples
    ]
    length = max(len(prompt.token_ids) + len(reply) - 1 for prompt, reply in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(3, len(rows), length, dtype=torch.long)
    places = []
    for row, (prompt, reply) in enumerate(rows):
        asked = len(prompt.token_ids)
        written = asked + len(reply) - 1  # the last token of the reply is predicted, never read
        tokens[row, :asked] = torch.from_numpy(prompt.token_ids)
        tokens[row, asked:written] = torch.tensor(reply[:-1])
        labels[row, asked - 1 : written] = torch.tensor(reply)
        positions[:, row, :asked] = torch.from_numpy(prompt.position_ids)
        last = int(prompt.position_ids[0, -1])
        positions[:, row, asked:written] = torch.arange(last + 1, last + len(reply))
        places += [Place(row, torch.from_numpy(slot.indices), slot.kind, slot.part) for slot in prompt.slots]
    return Batch(tokens, positions, labels, places)


def hidden_states(text_model: Qwen2_5OmniThinkerTextModel, embeddings: Tensor, positions: Tensor) -> Tensor:
    """The Thinker's last hidden states ``(B, S, D)``; padding stands at the right, where it changes nothing."""
    output: Tensor = text_model(inputs_embeds=embeddings, position_ids=positions, use_cache=False).last_hidden_state
    return output


def put(embeddings: Tensor, places: Sequence[Place], parts: Sequence[Tensor]) -> Tensor:
    """``(B, S, D)`` with ``parts``, of each sound or picture its embeddings ``(N, D)``, in their ``places``."""
    rows = torch.cat([torch.full_like(place.columns, place.row) for place in places])
    columns = torch.cat([place.columns for place in places])
    return embeddings.index_put((rows, columns), torch.cat(list(parts)).to(embeddings.dtype))
