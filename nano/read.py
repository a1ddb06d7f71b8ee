"""Reading: the Thinker on typed conversations alone.

Inputs: sentences of the world → output: the state of the Thinker's text model (stage ``text``), which gives every word
its place in the embedding table. From then on the table stays as it is, and the towers learn to find the words in it.
"""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from ..runtime.messages import SYSTEM_PROMPT, Message, Part, Role, Text
from .chat import IGNORED, Batch, Example, collate, front, hidden_states
from .model import build
from .sentences import TRANSCRIPT_SYSTEM
from .tokenizer import token_ids
from .training import Losses, Plan, Pools, device, device_of, finished, precision, train
from .world import Exchange, Skill, Split, answer, draw, draw_hard, restated_sum, transcript, typed

TEXT = Plan("text", steps=1200, learning_rate=2e-3, ema=0.995)
_BATCH = 48
_POOL_BATCHES = 4

_SKILLS: dict[Skill, float] = {"sums": 0.52, "digits": 0.14, "talk": 0.14, "again": 0.08, "refusal": 0.12}
_EARLIER_TURNS = (0.5, 0.25, 0.15, 0.1)
_TRANSCRIBED = 0.12
HELPFUL = "You are a helpful assistant."


def text_stage() -> Qwen2_5OmniThinkerTextModel:
    """Train the Thinker on typed conversations: the words."""
    model = text_model().to(device())
    train(TEXT, model, TextLoss(model))
    return model


def text_model(stage: str | None = None) -> Qwen2_5OmniThinkerTextModel:
    """The Thinker's text model: as a stage left it, or fresh."""
    model = build().thinker.model.language_model
    model.config._attn_implementation = "eager"  # its backward is twice as fast as SDPA's on a CPU
    if stage is not None:
        model.load_state_dict(finished(stage))
    return model


class TextLoss:
    """Cross-entropy of the replies to typed conversations."""

    def __init__(self, model: Qwen2_5OmniThinkerTextModel) -> None:
        self._model = model
        self._pools = Pools(lambda rng: typed_conversation(rng, "train"), _length, _BATCH, _POOL_BATCHES)

    def __call__(self, step: int, _: np.random.Generator) -> Losses:
        """The loss of step ``step``, whose batch is one of a pool drawn for several steps."""
        batch = collate(self._pools.batch(step)).to(device_of(self._model))
        with precision(self._model):
            hidden = hidden_states(self._model, self._model.embed_tokens(batch.tokens), batch.positions)
        return reply_losses(hidden, self._model.embed_tokens.weight, batch)


def sums_alone(rng: random.Random, count: int) -> Batch:
    """The table of sums: replies with nothing before them, of which only what follows "is" is to be predicted.

    A reply restates its sum, so that the result depends on the reply alone: without a conversation around it, hundreds
    of sums take no longer than thirty conversations, and adding in words needs hundreds of thousands of them. The whole
    table is learnt, as at school; held out are the prompts that ask for one in ten of its sums.
    """
    before = front().tokenizer.encode("assistant\n")
    replies = [
        [token_ids().im_start, *before, *front().tokenizer.encode(restated_sum(rng)), token_ids().im_end]
        for _ in range(count)
    ]
    (equals,) = front().tokenizer.encode(" is")
    tokens = torch.zeros(count, max(map(len, replies)) - 1, dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for row, reply in enumerate(replies):
        tokens[row, : len(reply) - 1] = torch.tensor(reply[:-1])
        first = reply.index(equals)
        labels[row, first : len(reply) - 1] = torch.tensor(reply[first + 1 :])
    positions = torch.arange(tokens.shape[1]).expand(3, *tokens.shape)
    return Batch(tokens, positions, labels, places=[])


def reply_losses(hidden: Tensor, embedding: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy per predicted token, and the share of replies that greedy decoding would write wholly right."""
    rows, columns = (batch.labels != IGNORED).nonzero(as_tuple=True)
    labels = batch.labels[rows, columns]
    logits = hidden[rows, columns].float() @ embedding.T  # (N, V), tied head
    wrong = logits.new_zeros(len(batch.tokens)).index_add(0, rows, (logits.argmax(-1) != labels).float())
    return {"loss": F.cross_entropy(logits, labels), "exact": (wrong == 0).float().mean()}


def typed_conversation(
    rng: random.Random, split: Split, long_prompts: float = 0.9, hard_share: float = 0.0, *, or_close: bool = False
) -> Example:
    """A typed conversation of one to four turns, or a request for a transcript; `hard_share` of the turns are hard."""
    if rng.random() < _TRANSCRIBED:
        exchange = _drawn(rng, split, hard_share, or_close)
        messages = [message("system", rng.choice(TRANSCRIPT_SYSTEM)), message("user", exchange.prompt)]
        return Example(messages, written(exchange))
    messages = [message("system", SYSTEM_PROMPT if rng.random() < long_prompts else HELPFUL)]
    reply: str | None = None
    (turns,) = rng.choices(range(len(_EARLIER_TURNS)), weights=_EARLIER_TURNS)
    for turn in range(turns + 1):
        if turn:
            messages.append(message("assistant", reply or ""))
        exchange = _drawn(rng, split, hard_share, or_close)
        said = exchange.prompt if rng.random() < 0.5 else typed(exchange, rng)
        messages.append(message("user", said))
        reply = answer(exchange, reply)
    return Example(messages, reply or "")


def written(exchange: Exchange) -> str:
    """What the transcript of a prompt is: what was said, or the refusal where it is outside the world."""
    return exchange.reply if exchange.skill == "refusal" else transcript(exchange.prompt)


def message(role: Role, text: str, *parts: Part) -> Message:
    """A message of a text with sounds or pictures before it."""
    return Message(role, [*parts, Text(text)])


def _drawn(rng: random.Random, split: Split, hard_share: float, or_close: bool) -> Exchange:
    if hard_share and rng.random() < hard_share:
        return draw_hard(rng, split, or_close=or_close)
    (skill,) = rng.choices(list(_SKILLS), weights=list(_SKILLS.values()))
    return draw(skill, rng, split)


def _length(example: Example) -> int:
    return sum(len(part.text) for turn in example.messages for part in turn.content if isinstance(part, Text))
