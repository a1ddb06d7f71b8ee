"""Understanding: the Thinker and both towers together, on conversations that are spoken, shown and typed.

Inputs: the stages ``reason``, ``hear`` and ``see``; recordings, pictures and clips → output: the state of the whole
Thinker (stage ``understand``). The loss is that of the reply; beside it the audio tower keeps its own, so that what it
says of a word stays near that word; and the Thinker keeps its table of sums, whose prompts it hears only in part. In
the second of nine parts the vision tower, which could already name what it sees, learns to say it so that it is read;
the third drills what was still wrong: digits that repeat, sums beyond counting, and shapes that look alike. After it
everything sounds like a sum beyond counting, so the fourth goes back to what is really asked. In the fifth the audio
tower alone learns to hear the same in noise, and the sixth lets the Thinker follow it. In the seventh, when all that is
asked is heard, the Thinker alone goes on with what it still answers wrong. The eighth is as the fifth, on speech so
loud that it is cut off; and in the ninth all go on with what is still answered wrong. The mean of the last three ends
is better than each of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel, Qwen2_5OmniVisionEncoder

from ..runtime.messages import SYSTEM_PROMPT, Audio, Message, Part, Text
from ..runtime.prompt import media_parts
from . import hear, see
from .augment import SNR_DB, disturb
from .chat import Batch, Example, collate, hidden_states, put
from .model import build
from .read import message, reply_losses, sums_alone, text_model, typed_conversation, written
from .recordings import Recording, Recordings
from .sentences import TRANSCRIPT_SYSTEM
from .training import Losses, Plan, blend, device, device_of, finished, precision, quicken, train
from .world import NO_PICTURE, Exchange, Skill, answer, close, describe, describe_move, draw, draw_hard, hard, typed

_SHARES = 2
FIRST = Plan("understand-first", steps=3600, learning_rate=8e-4, warmup_steps=100, ema=0.998, shares=_SHARES)
SECOND = Plan("understand-second", steps=3000, learning_rate=6e-4, warmup_steps=50, ema=0.998, seed=11, shares=_SHARES)
THIRD = Plan("understand-third", steps=2000, learning_rate=6e-4, warmup_steps=50, ema=0.998, seed=12, shares=_SHARES)
FOURTH = Plan("understand-fourth", steps=450, learning_rate=3e-4, warmup_steps=20, ema=0.99, seed=13, shares=_SHARES)
FIFTH = Plan("understand-fifth", steps=2200, learning_rate=6e-4, warmup_steps=50, ema=0.998, seed=14, shares=_SHARES)
SIXTH = Plan("understand-sixth", steps=1500, learning_rate=5e-4, warmup_steps=30, ema=0.998, seed=15, shares=_SHARES)
SEVENTH = Plan(
    "understand-seventh", steps=2000, learning_rate=6e-4, warmup_steps=30, ema=0.998, seed=16, shares=_SHARES
)
EIGHTH = Plan("understand-eighth", steps=1000, learning_rate=6e-4, warmup_steps=50, ema=0.998, seed=17, shares=_SHARES)
NINTH = Plan("understand-ninth", steps=1500, learning_rate=5e-4, warmup_steps=50, ema=0.998, seed=18, shares=_SHARES)


@dataclass(frozen=True)
class Mixture:
    """What a share of a step holds: conversations of each kind, and pictures the vision tower has to name by itself."""

    typed: int = 3
    spoken: int = 12
    pictures: int = 3
    clips_every: int = 2
    """In how many steps there is one clip, which is many times longer than all else."""
    named: int = 0
    hard: float = 0.0
    """How often what is said or typed is drawn from what small models get wrong: see `world.hard`."""
    close: bool = False
    """Whether that includes sums almost beyond counting, see `world.close`, and being asked to say it again."""
    asked: float = 0.0
    """How many of the transcripts are asked for behind the sound, in the midst of a conversation."""


LESSONS = Mixture()
DRILL = Mixture(typed=8, clips_every=4, named=12, hard=0.4, asked=0.5)
REST = Mixture(typed=6, named=8, hard=0.12, asked=0.3)
ANSWERS = Mixture(typed=8, spoken=16, clips_every=6, hard=0.35, close=True, asked=0.3)
LAST = Mixture(typed=8, spoken=14, clips_every=4, named=6, hard=0.45, close=True, asked=0.3)
_MOSTLY_LOUD = 0.6
_BATCH_WEIGHTS = (0.45, 0.45, 0.2)
"""Weight of the loss for the shorter half of them, the longer half, and the clips."""
_TRANSCRIBED = 0.25
_TOWER_WEIGHT = 0.2
_SUMS, _SUMS_WEIGHT = 32, 0.2
_NAMED_WEIGHT = 0.1
_EARLIER_TURNS = {0: 0.5, 1: 0.24, 2: 0.1, 3: 0.04, 4: 0.03, 5: 0.03, 6: 0.02, 7: 0.02, 8: 0.02}
"""How often a conversation has so many turns before the one that is answered; nobody stops after three."""
_SPOKEN_EARLIER = 0.3


class Mind(nn.Module):
    """The parts of the Thinker that are trained here, under the names the checkpoint gives them."""

    def __init__(self, *, trained: bool = False) -> None:
        super().__init__()
        model = build().thinker.model
        self.language_model: Qwen2_5OmniThinkerTextModel = text_model(None if trained else "reason")
        self.ear = hear.Ear(self.language_model.embed_tokens.weight.detach())
        self.visual: Qwen2_5OmniVisionEncoder = model.visual
        if trained:
            self.load_state_dict(finished("understand"))
            return
        self.ear.load_state_dict(finished("hear"))
        self.visual.load_state_dict(see.weights())
        _match_loudness(self.ear, self.language_model.embed_tokens.weight)

    def train_all(self) -> None:
        """Train everything, but what AdamW's steps, which are of one size, would ruin within a minute: it is small."""
        self.requires_grad_(True)
        self.language_model.embed_tokens.weight.requires_grad_(False)  # where towers and Talker find the words
        self.ear.tower.proj.requires_grad_(False)
        self.ear.scale.requires_grad_(False)
        self.visual.merger.mlp[-1].weight.requires_grad_(False)


def understand_stage() -> nn.Module:
    """Train all of the Thinker together; stages ``reason``, ``hear`` and ``see`` come first."""
    mind = Mind().to(device())
    quicken(mind.language_model.layers)
    recordings = Recordings.load("train")
    mind.train_all()
    mind.visual.requires_grad_(False)  # it names colours and shapes already; the Thinker is first to learn to read that
    train(FIRST, mind, UnderstandLoss(mind, recordings, LESSONS))
    mind.train_all()
    train(SECOND, mind, UnderstandLoss(mind, recordings, LESSONS))
    train(THIRD, mind, UnderstandLoss(mind, recordings, DRILL))
    train(FOURTH, mind, UnderstandLoss(mind, recordings, REST))
    train(FIFTH, mind, hear.SteadyLoss(mind.ear, recordings))
    train(SIXTH, mind, UnderstandLoss(mind, recordings, REST))
    mind.requires_grad_(False)
    mind.language_model.layers.requires_grad_(True)
    mind.language_model.norm.requires_grad_(True)
    train(SEVENTH, mind, UnderstandLoss(mind, recordings, ANSWERS))
    mind.train_all()
    train(EIGHTH, mind, hear.SteadyLoss(mind.ear, recordings, SNR_DB, _MOSTLY_LOUD))
    train(NINTH, mind, UnderstandLoss(mind, recordings, LAST))
    blend("understand", (SEVENTH, EIGHTH, NINTH), mind)  # each of them hears something that the others do not
    return mind


class UnderstandLoss:
    """Cross-entropy of the replies, and the towers' own losses on what was said and shown."""

    def __init__(self, mind: Mind, recordings: Recordings, mixture: Mixture) -> None:
        self._mind, self._conversations, self._mixture = mind, Conversations(recordings, mixture), mixture
        self._see = see.SeeLoss(mind.visual, mind.language_model.embed_tokens.weight, in_place=True)

    def __call__(self, number: int, rng: np.random.Generator) -> Losses:
        """The loss of one batch of mixed conversations; but for the clips, the generator alone decides which."""
        clips = 0 if (number // _SHARES + 1) % self._mixture.clips_every else 1
        parts = [self._losses(drawn, rng) for drawn in self._conversations.batches(rng, clips)]
        sums = self._sums(rng)
        named = self._see.stills(self._mixture.named, rng) if self._mixture.named else {}
        weighted = list(zip(_BATCH_WEIGHTS, parts, strict=False))
        reply, tower = (
            sum((weight * part[key] for weight, part in weighted), torch.zeros(())) for key in ("loss", "tower")
        )
        return {
            "loss": reply
            + _TOWER_WEIGHT * tower
            + _SUMS_WEIGHT * sums["loss"]
            + _NAMED_WEIGHT * named.get("loss", torch.zeros(())),
            "exact": (parts[0]["exact"] + parts[1]["exact"]) / 2,
            "moving": parts[2]["exact"] if clips else reply.detach() * torch.nan,  # a value in every row
            "sums": sums["exact"],
            "reply": reply.detach(),
            "tower": tower.detach(),
            **{key: value for key, value in named.items() if key != "loss"},
        }

    def _losses(self, drawn: Sequence[Conversation], rng: np.random.Generator) -> dict[str, Tensor]:
        batch = collate([conversation.example for conversation in drawn]).to(device_of(self._mind))
        with precision(self._mind):
            embeddings, tower = self._embed(batch, drawn, rng)
            hidden = hidden_states(self._mind.language_model, embeddings, batch.positions)
        return {**reply_losses(hidden, self._mind.language_model.embed_tokens.weight, batch), "tower": tower}

    def _sums(self, rng: np.random.Generator) -> dict[str, Tensor]:
        model = self._mind.language_model
        batch = sums_alone(random.Random(int(rng.integers(1 << 62))), _SUMS).to(device_of(model))
        with precision(model):
            hidden = hidden_states(model, model.embed_tokens(batch.tokens), batch.positions)
        return reply_losses(hidden, model.embed_tokens.weight, batch)

    def _embed(self, batch: Batch, drawn: Sequence[Conversation], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """``(B, S, D)`` with the towers' embeddings in their places, and the tower's own loss."""
        mind = self._mind
        table = mind.language_model.embed_tokens(batch.tokens)
        sounds = [place for place in batch.places if place.kind == "audio"]
        shown = [place for place in batch.places if place.kind != "audio"]
        media = [media_parts(conversation.example.messages) for conversation in drawn]
        parts = see.encode(mind.visual, [media[place.row][place.part] for place in shown]) if shown else []
        tower = table.new_zeros(())
        if sounds:
            recorded = [media[place.row][place.part] for place in sounds]
            mel, frames = hear.features(
                [part.samples for part in recorded if isinstance(part, Audio)], rng, masked=True
            )
            heard, tokens = hear.encode(mind.ear.tower, mel, frames)
            parts += [heard[row, : len(place.columns)] for row, place in enumerate(sounds)]
            said = [prompt for conversation in drawn for prompt in conversation.said]
            tower = hear.ctc(mind.ear.scores(heard), tokens, said)
        return put(table, shown + sounds, parts), tower


@dataclass(frozen=True)
class Conversation:
    """An example, and what its sounds say, in order."""

    example: Example
    said: list[str]


class Conversations:
    """Draws batches of conversations, spoken, shown and typed."""

    def __init__(self, recordings: Recordings, mixture: Mixture) -> None:
        self._recordings, self._mixture = recordings, mixture
        self._by_skill: dict[Skill | None, tuple[list[int], list[float]]] = {}
        skills, shares = [entry.skill for entry in recordings.entries], recordings.shares()
        difficult = np.array([self._difficult(entry.skill, entry.reply) for entry in recordings.entries])
        if mixture.hard and difficult.any():
            shares[difficult] *= mixture.hard / (1 - mixture.hard) * shares[~difficult].sum() / shares[difficult].sum()
        for skill in (None, *set(skills)):
            indices = [index for index, its in enumerate(skills) if skill in (None, its)]
            self._by_skill[skill] = indices, np.cumsum(shares[indices]).tolist()

    def batches(self, rng: np.random.Generator, clips: int) -> list[list[Conversation]]:
        """One share's, always of the same mixture: the shorter half, the longer half, and the clips, if any."""
        plain = random.Random(int(rng.integers(1 << 62)))
        mixture = self._mixture
        short = [self._spoken(plain, rng) for _ in range(mixture.spoken)]
        short += [self._pictured(plain, rng) for _ in range(mixture.pictures)]
        read = [
            typed_conversation(plain, "train", hard_share=mixture.hard, or_close=mixture.close)
            for _ in range(mixture.typed)
        ]
        short += [Conversation(example, []) for example in read]
        short.sort(key=_length)
        half = len(short) // 2
        filmed = [self._filmed(plain, rng) for _ in range(clips)]
        return [batch for batch in (short[:half], short[half:], filmed) if batch]

    def _spoken(self, plain: random.Random, rng: np.random.Generator) -> Conversation:
        """Some turns, the last spoken, earlier ones spoken or typed; or a transcript of the last."""
        last = self._recording(plain)
        if last.skill in ("picture", "video") and plain.random() < 0.5:
            last = self._recording(plain, "talk")
        exchange = _exchange(last)
        asked = None
        if plain.random() < _TRANSCRIBED:
            instruction = plain.choice(TRANSCRIPT_SYSTEM)
            if not self._mixture.asked or plain.random() >= self._mixture.asked:
                system = message("system", instruction)
                return Conversation(Example([system, _user(self._sound(last, rng))], written(exchange)), [last.prompt])
            asked = instruction
        messages, said, reply = [message("system", SYSTEM_PROMPT)], [], None
        (turns,) = plain.choices(list(_EARLIER_TURNS), list(_EARLIER_TURNS.values()))
        if exchange.skill == "again":
            turns = max(turns, 1) if plain.random() < 0.9 else 0
        for _ in range(turns):
            if self._mixture.hard and plain.random() < self._mixture.hard:
                earlier = draw_hard(plain, "train", or_close=self._mixture.close)
            else:
                earlier = draw(plain.choice(("sums", "digits", "talk", "refusal")), plain, "train")
            if plain.random() < _SPOKEN_EARLIER:
                recording = self._recording(plain, earlier.skill)
                earlier = _exchange(recording)
                messages.append(_user(self._sound(recording, rng)))
                said.append(recording.prompt)
            else:
                messages.append(message("user", typed(earlier, plain)))
            reply = answer(earlier, reply)
            messages.append(message("assistant", reply))
        if asked is not None:
            messages.append(_user(self._sound(last, rng), Text(asked)))
            return Conversation(Example(messages, written(exchange)), [*said, last.prompt])
        messages.append(_user(self._sound(last, rng)))
        return Conversation(Example(messages, answer(exchange, reply)), [*said, last.prompt])

    def _pictured(self, plain: random.Random, rng: np.random.Generator) -> Conversation:
        """A question, spoken or typed, about a picture."""
        picture = see.picture(rng)
        return self._about(picture.part, "picture", describe(picture.colour, picture.shape), plain, rng)

    def _filmed(self, plain: random.Random, rng: np.random.Generator) -> Conversation:
        """A question, spoken or typed, about which way something moves."""
        clip = see.clip(rng)
        return self._about(clip.part, "video", describe_move(str(clip.direction)), plain, rng)

    def _about(
        self, shown: Part, skill: Skill, reply: str, plain: random.Random, rng: np.random.Generator
    ) -> Conversation:
        messages, said = [message("system", SYSTEM_PROMPT)], []
        if plain.random() < 0.3:
            earlier = draw(plain.choice(("sums", "digits", "talk")), plain, "train")
            messages += [message("user", typed(earlier, plain)), message("assistant", earlier.reply)]
        if plain.random() < 0.5:
            recording = self._recording(plain, skill)
            said.append(recording.prompt)
            sound = self._sound(recording, rng)
            messages.append(_user(sound, shown) if plain.random() < 0.7 else _user(shown, sound))
        else:
            messages.append(_user(shown, Text(typed(draw(skill, plain, "train"), plain))))
        return Conversation(Example(messages, reply), said)

    def _difficult(self, skill: Skill, reply: str) -> bool:
        return hard(reply) or (self._mixture.close and (skill == "again" or close(reply)))

    def _recording(self, plain: random.Random, skill: Skill | None = None) -> Recording:
        """One of a skill, or of any."""
        indices, shares = self._by_skill[skill]
        (index,) = plain.choices(indices, cum_weights=shares)
        return self._recordings[index]

    def _sound(self, recording: Recording, rng: np.random.Generator) -> Audio:
        return Audio(disturb(recording.samples, rng, rng.random() ** 0.5))


def _length(conversation: Conversation) -> int:
    """About how many tokens a conversation takes: it is only sorted by this."""
    parts = [part for turn in conversation.example.messages for part in turn.content]
    sounds = sum(len(part.samples) // hear.TOKEN_SAMPLES for part in parts if isinstance(part, Audio))
    return sounds + sum(len(part.text) // 4 if isinstance(part, Text) else 40 for part in parts)


def _exchange(recording: Recording) -> Exchange:
    """What a recording asks, and the reply when nothing is shown with it."""
    reply = NO_PICTURE if recording.skill in ("picture", "video") else recording.reply
    return Exchange(recording.skill, recording.prompt, reply)


def _user(*parts: Part) -> Message:
    return Message("user", parts)


@torch.no_grad()
def _match_loudness(ear: hear.Ear, table: Tensor) -> None:
    """Scale the tower's embeddings to the length of the table's rows: CTC trained their direction only."""
    factor = float(table.norm(dim=-1).mean()) / table.shape[1] ** 0.5
    ear.tower.proj.weight.mul_(factor)
    ear.tower.proj.bias.mul_(factor)
    ear.scale.div_(factor)
