"""Reasoning: the Thinker goes on, with a fixed embedding table, on what takes it longest: copying digits and adding.

Inputs: stage ``text``, sentences of the world → output: the state of the Thinker's text model (stage ``reason``). Most
prompts come as the audio tower will hand them over, only without sound: the rows of the words, each once or a few
times, among rows of the audio placeholder, CTC's blank. Learnt from such made-up hearing a hundred times faster than
from speech, reading them is what the joint stage would otherwise spend its hours on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

from ..runtime.messages import SYSTEM_PROMPT, Audio, Message
from ..runtime.prompt import media_parts
from .chat import Batch, Example, collate, hidden_states, put
from .hear import TOKEN_SAMPLES, unknown_id, word_ids
from .read import HELPFUL, message, reply_losses, sums_alone, text_model, typed_conversation, written
from .sentences import TRANSCRIPT_SYSTEM, plain
from .tokenizer import token_ids
from .training import Losses, Plan, Pools, device, device_of, precision, quicken, train
from .world import Exchange, Skill, answer, draw

FIRST = Plan("reason-first", steps=2200, learning_rate=1.2e-3, ema=0.998, weight_decay=0.05, seed=1)
SECOND = Plan("reason", steps=3000, learning_rate=1.2e-3, ema=0.998, weight_decay=0.05, seed=2)
_FIRST_BATCH = {"heard": 32, "typed": 10, "sums": 256}
_SECOND_BATCH = {"heard": 40, "typed": 14, "sums": 64}
_FIRST_WEIGHTS = {"heard": 1.0, "typed": 0.3, "sums": 0.5}
_SECOND_WEIGHTS = {"heard": 1.0, "typed": 0.5, "sums": 0.3}
_POOL_BATCHES = 4

_SKILLS: dict[Skill, float] = {"sums": 0.4, "digits": 0.25, "talk": 0.15, "again": 0.1, "refusal": 0.1}
_TURNS = {1: 0.6, 2: 0.3, 3: 0.1}
_TRANSCRIBED = 0.25
_LONG_PROMPTS = 0.4
_REPEATED = (1, 1, 1, 2, 2, 3)
"""For how many embeddings of 40 ms CTC holds a word: mostly one."""
_PAUSE = (1, 9)
_FIRST_NOISE, _SECOND_NOISE = 0.3, 0.6
"""Length of what is added to every row, as a share of its own; in the second part it is the most that is added."""
_DOUBT = 0.4
"""Share that another word has in a row, at most: in the second part the tower is not always sure."""


def reason_stage() -> Qwen2_5OmniThinkerTextModel:
    """Train the Thinker's text model; stage ``text`` comes first."""
    model = text_model("text").to(device())
    model.embed_tokens.weight.requires_grad_(False)
    quicken(model.layers)
    train(FIRST, model, ReasonLoss(model, _FIRST_BATCH, _FIRST_WEIGHTS, sure=True))
    train(SECOND, model, ReasonLoss(model, _SECOND_BATCH, _SECOND_WEIGHTS, sure=False))
    return model


@dataclass(frozen=True)
class Heard:
    """A conversation whose prompts are sounds of nothing, and the tokens whose rows stand in for each."""

    example: Example
    paths: list[list[int]]


class ReasonLoss:
    """Cross-entropy of replies to prompts as heard and as typed, and of the results of sums that stand alone."""

    def __init__(
        self, model: Qwen2_5OmniThinkerTextModel, counts: Mapping[str, int], weights: Mapping[str, float], *, sure: bool
    ) -> None:
        self._model, self._counts, self._weights, self._sure = model, counts, weights, sure
        self._pools = Pools(
            heard_conversation,
            _length,
            counts["heard"],
            _POOL_BATCHES,
            lambda pool: random.Random(f"heard {pool}" if sure else f"doubtful {pool}"),
        )

    def __call__(self, step: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch of each kind."""
        heard = self._pools.batch(step)
        words = random.Random(int(rng.integers(1 << 62)))
        typed = [typed_conversation(words, "train", _LONG_PROMPTS) for _ in range(self._counts["typed"])]
        batch = collate([it.example for it in heard])
        losses = {
            "heard": self._losses(batch, self._heard_rows(batch, heard, rng)),
            "typed": self._losses(collate(typed)),
            "sums": self._losses(sums_alone(words, self._counts["sums"])),
        }
        total = sum((self._weights[kind] * parts["loss"] for kind, parts in losses.items()), torch.zeros(()))
        return {"loss": total, **{kind: parts["exact"] for kind, parts in losses.items()}}

    def _heard_rows(self, batch: Batch, heard: list[Heard], rng: np.random.Generator) -> Tensor:
        """``(B, S, D)``: the rows of the batch's tokens, and for its sounds those of their paths, with noise."""
        assert all(len(media_parts(it.example.messages)) == len(it.paths) for it in heard)
        table = self._model.embed_tokens.weight
        paths = [torch.tensor(heard[place.row].paths[place.part]) for place in batch.places]
        said = [table[path] if self._sure else _doubted(table, path, rng) for path in paths]
        loudness = [_FIRST_NOISE if self._sure else rng.uniform(0, _SECOND_NOISE) for _ in paths]
        return put(table[batch.tokens], batch.places, [_noisy(*pair, rng) for pair in zip(said, loudness, strict=True)])

    def _losses(self, batch: Batch, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        batch = batch.to(device_of(self._model))
        if embeddings is None:
            embeddings = self._model.embed_tokens(batch.tokens)
        with precision(self._model):
            hidden = hidden_states(self._model, embeddings, batch.positions)
        return reply_losses(hidden, self._model.embed_tokens.weight, batch)


def as_heard(prompt: str, rng: random.Random) -> list[int]:
    """The tokens whose rows the tower would put out for a prompt, one every 40 ms: ``(T)``."""
    blank, known = token_ids().audio, word_ids()
    path = [blank] * rng.randint(*_PAUSE)
    for word in plain(prompt).split():
        path += [known.get(word, unknown_id())] * rng.choice(_REPEATED)
        path += [blank] * rng.randint(*_PAUSE)
    return path


def heard_conversation(rng: random.Random) -> Heard:
    """A conversation of one to three spoken turns, or a request for a transcript of one."""
    paths: list[list[int]] = []

    def said(exchange: Exchange) -> Message:
        paths.append(as_heard(exchange.prompt, rng))
        return Message("user", [Audio(np.zeros(len(paths[-1]) * TOKEN_SAMPLES, np.float32))])

    def drawn() -> Exchange:
        (skill,) = rng.choices(list(_SKILLS), weights=list(_SKILLS.values()))
        return draw(skill, rng, "train")

    if rng.random() < _TRANSCRIBED:
        exchange = drawn()
        system = message("system", rng.choice(TRANSCRIPT_SYSTEM))
        return Heard(Example([system, said(exchange)], written(exchange)), paths)
    messages = [message("system", SYSTEM_PROMPT if rng.random() < _LONG_PROMPTS else HELPFUL)]
    reply: str | None = None
    (turns,) = rng.choices(list(_TURNS), weights=list(_TURNS.values()))
    for turn in range(turns):
        if turn:
            messages.append(message("assistant", reply or ""))
        exchange = drawn()
        messages.append(said(exchange))
        reply = answer(exchange, reply)
    return Heard(Example(messages, reply or ""), paths)


def _length(heard: Heard) -> int:
    return sum(map(len, heard.paths))


def _doubted(table: Tensor, path: Tensor, rng: np.random.Generator) -> Tensor:
    """The rows ``(T, D)`` of a path, each with some share of the blank's row or another word's in it."""
    words = [token_ids().audio, *word_ids().values()]
    others = torch.from_numpy(rng.choice(words, len(path)) if rng.random() < 0.5 else np.full(len(path), words[0]))
    shares = torch.from_numpy(rng.uniform(0, _DOUBT, (len(path), 1)).astype(np.float32)).to(table.device)
    rows: Tensor = table[path].lerp(table[others], shares)
    return rows


def _noisy(rows: Tensor, loudness: float, rng: np.random.Generator) -> Tensor:
    """Rows ``(T, D)`` with noise of ``loudness`` times their length."""
    noise = torch.from_numpy(rng.normal(size=rows.shape).astype(np.float32)).to(rows.device)
    noisy: Tensor = rows + noise * rows.norm(dim=-1, keepdim=True) * (loudness / rows.shape[-1] ** 0.5)
    return noisy
