"""The Talker's stages: from what the Thinker thinks of a reply to the codes of its speech, in either voice.

Inputs: a trained Thinker, sentences spoken by both speakers as codes → output: ``build/states/talker.pt``, the
weights of ``talker``. Stage ``talker`` reads typed conversations; ``talker-final`` goes on from it with the Thinker
as it ended, on spoken ones too.

A row of the Talker's input is a row of the Thinker + a row of the Talker's own table, laid out as the reference's
``generate`` does it (technical report, arXiv 2503.20215, section 2.3):

    prompt …                    last hidden + embedding   nothing
    voice's token               embedding                 codec_pad
    first token of the reply    last hidden + embedding   codec_bos     → first code
    next tokens …               last hidden + embedding   code before   → code
    then, once                  text_eos's embedding      code before   → code
    until speech ends           text_pad's embedding      code before   → code …, codec_eos
"""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniTalkerForConditionalGeneration as Talker,
)
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerTextModel as Thinker,
)

from ..runtime.messages import Audio, Message
from ..runtime.prompt import media_parts
from . import hear
from .chat import IGNORED, Batch, Example, collate, hidden_states, put
from .codec import Int64, train_codec
from .lines import Line, Spoken, lines, spoken_conversation
from .model import CODEC_BOS, CODEC_EOS, CODEC_PAD, build
from .read import text_model
from .recordings import Recordings
from .tokenizer import token_ids, tokenizer
from .training import Losses, Plan, Pools, device, device_of, finished, precision, quicken, train
from .understand import Mind

TALKER = Plan("talker", steps=4500, learning_rate=2e-3, ema=0.995, seed=6)
FINAL_FIRST = Plan("talker-final-first", steps=1000, learning_rate=8e-4, warmup_steps=30, ema=0.995, seed=7, shares=2)
FINAL_SECOND = Plan(
    "talker-final-second", steps=1500, learning_rate=8e-4, warmup_steps=30, ema=0.995, seed=17, shares=2
)
FINAL_THIRD = Plan("talker-final-third", steps=1100, learning_rate=1e-3, warmup_steps=30, ema=0.998, seed=27, shares=2)
FINAL_FOURTH = Plan(
    "talker-final-fourth", steps=1300, learning_rate=1e-3, warmup_steps=30, ema=0.998, seed=37, shares=2
)
FINAL_FIFTH = Plan("talker-final", steps=2000, learning_rate=1e-3, warmup_steps=30, ema=0.998, seed=47, shares=2)

_BATCH = 16
_POOL_BATCHES = 8
_WITHOUT_PREFIX = 0.15
"""Share of the examples without the two rows of the Talker's own table before speech begins: the reference's
``generate`` leaves them out when no prompt of a batch is padded, and should be answered all the same."""
_MISHEARD = 0.05
"""Share of the codes read that are not those that were to be written, but near ones: in use, the Talker reads what it
drew, and has to find its way back."""
_NEIGHBOURS = 12
_GUIDED = (1, 2)
"""Layers whose first head is taught to follow the text (guided attention, Tachibana 2017, arXiv 1710.08969): left to
themselves they take many hours to find out that words are said in order."""
_GUIDE = 0.3
_BEFORE_CODES, _QUIET_CODES = 2, 8  # of silence before the first word, and in all
_SLACK_CODES = 6
_TYPED = 0.3
"""Share of typed prompts in the last stage."""


def talker_stage() -> Talker:
    """Train the Talker on typed conversations, with the Thinker at two ages: what those share will last."""
    talker = fresh_talker().to(device())
    quicken(talker.model.layers)
    thinkers = [text_model(stage).to(device()) for stage in ("text", "reason")]
    train(TALKER, talker, TalkerLoss(TALKER, talker, thinkers))
    return talker


def talker_final_stage() -> Talker:
    """Go on with the Thinker as it ended, on prompts that are spoken as well as typed."""
    talker, mind = fresh_talker().to(device()), Mind(trained=True).to(device())
    talker.load_state_dict(finished(TALKER.name))
    quicken(talker.model.layers)
    recordings = Recordings.load("train")
    for plan in (FINAL_FIRST, FINAL_SECOND, FINAL_THIRD, FINAL_FOURTH, FINAL_FIFTH):
        train(plan, talker, HeardTalkerLoss(plan, talker, mind, recordings))
    return talker


def fresh_talker() -> Talker:
    """An untrained Talker. Its table is as loud as the Thinker's hidden states, or it would not be heard over them."""
    talker: Talker = build(TALKER.seed).talker
    talker.model.config._attn_implementation = "eager"  # its backward is twice as fast as SDPA's on a CPU
    with torch.no_grad():
        table = talker.model.embed_tokens.weight
        table.mul_(8.0)
        table[[CODEC_PAD, CODEC_BOS]] = 0.0
    return talker


class TalkerLoss:
    """Cross-entropy of the codes of typed conversations' replies."""

    def __init__(
        self,
        plan: Plan,
        talker: Talker,
        thinkers: Sequence[Thinker],
    ) -> None:
        self._talker = talker
        self._thinkers = [thinker.eval() for thinker in thinkers]
        self._table = thinkers[0].embed_tokens.weight.detach()  # the same at every age
        self._lines: dict[str, list[Line]] = defaultdict(list)
        for line in lines():
            self._lines[line.kind].append(line)
        self._neighbours = train_codec().neighbours(_NEIGHBOURS)
        self._pools = Pools(
            self._conversation, _length, _BATCH, _POOL_BATCHES, lambda pool: random.Random(f"{plan.seed} {pool}")
        )

    def __call__(self, number: int, rng: np.random.Generator) -> Losses:
        """The loss of batch ``number``, which is one of a pool drawn for several."""
        spoken = self._pools.batch(number)
        batch = collate([example.example for example in spoken]).to(device_of(self._talker))
        rows = self._rows(self._thinkers[number % len(self._thinkers)], batch, spoken)
        voices = torch.tensor([voice_tokens()[example.speaker] for example in spoken])
        return self.losses(rows, batch, voices, [example.codes for example in spoken], rng)

    @torch.no_grad()
    def _rows(self, thinker: Thinker, batch: Batch, _: Sequence[Spoken]) -> Tensor:
        """What the Thinker gives the Talker at each place, ``(B, S, D)``."""
        with precision(thinker):
            embeddings = thinker.embed_tokens(batch.tokens)
            rows: Tensor = hidden_states(thinker, embeddings, batch.positions).float() + embeddings.float()
        return rows

    def losses(
        self, rows: Tensor, batch: Batch, voices: Tensor, codes: Sequence[Int64], rng: np.random.Generator
    ) -> Losses:
        """The losses, given the Thinker's rows ``(B, S, D)`` and for each row the voice's token and the codes."""
        misheard = [self._misheard(each, rng) for each in codes]
        prefixed = rng.random(len(codes)) >= _WITHOUT_PREFIX
        script = stage_directions(rows, batch, voices, misheard, prefixed, self._table)
        talker = self._talker
        with precision(talker):
            inputs, positions = script.inputs(talker), script.positions
            output = talker.model(inputs_embeds=inputs, position_ids=positions, use_cache=False, output_attentions=True)
            hidden = output.last_hidden_state  # (B, L, hidden)
            places, columns = script.spoken.nonzero(as_tuple=True)
            logits = talker.codec_head(hidden[places, columns])
        labels = torch.from_numpy(np.concatenate([np.append(each, CODEC_EOS) for each in codes])).to(logits.device)
        right = (logits.argmax(-1) == labels).float().mean()
        astray = self._astray(output.attentions, batch, script)
        spoken = F.cross_entropy(logits.float(), labels)
        return {"loss": spoken + _GUIDE * astray, "spoken": spoken.detach(), "right": right, "astray": astray.detach()}

    def _astray(self, attentions: Sequence[Tensor], batch: Batch, script: Script) -> Tensor:
        """How far the guided heads look away from what is being said: −log of their share on it."""
        window = said_now(batch, script)  # (B, L, L)
        rows, columns = script.spoken.nonzero(as_tuple=True)
        shares = [(attentions[layer][rows, 0, columns].float() * window[rows, columns]).sum(-1) for layer in _GUIDED]
        return -torch.stack(shares).clamp(min=1e-4).log().mean()

    def _misheard(self, codes: Int64, rng: np.random.Generator) -> Int64:
        """Codes with some of them changed for near ones."""
        changed = rng.random(len(codes)) < _MISHEARD * 2 * rng.random()
        others = self._neighbours[codes, rng.integers(0, _NEIGHBOURS, len(codes))]
        return np.where(changed, others, codes)

    def _conversation(self, rng: random.Random) -> Spoken:
        return spoken_conversation(self._lines, rng)


def _length(spoken: Spoken) -> int:
    return len(spoken.codes)


def voice_tokens() -> tuple[int, ...]:
    """The token that calls each speaker, in the order of `codec.SPEAKERS`."""
    ids = token_ids()
    return ids.voice_chelsie, ids.voice_ethan


def said_now(batch: Batch, script: Script) -> Tensor:
    """Where a head that follows the text may look, ``(B, L, L)`` float: from each place where a code is written, at the
    rows of the words said about then. Words take time by their letters; the row before a word counts as well, whose
    hidden state is about to become that word."""
    window = torch.zeros(*script.spoken.shape, script.spoken.shape[1], device=script.spoken.device)
    for row, labels in enumerate(batch.labels):
        reply = labels[labels != IGNORED][:-1].tolist()
        first, count = int(script.spoken[row].int().argmax()), int(script.spoken[row].sum())
        weights = np.array([_duration(token) for token in reply])
        ends = np.cumsum(weights) / weights.sum() * (count - _QUIET_CODES) + _BEFORE_CODES
        for index, end in enumerate(ends):
            start = end - weights[index] / weights.sum() * (count - _QUIET_CODES)
            begin, stop = max(0, int(start) - _SLACK_CODES), min(count, int(end) + _SLACK_CODES + 1)
            window[row, first + begin : first + stop, first + index - 1 : first + index + 1] = 1.0
        window[row, first + int(ends[-1]) : first + count, first + len(reply) - 2 : first + len(reply) + 1] = 1.0
    return window


@functools.cache
def _duration(token: int) -> float:
    """About how long a token takes to say, in letters."""
    letters = sum(character.isalpha() for character in tokenizer().decode([token]))
    return letters + 2.0 if letters else 0.5


class HeardTalkerLoss(TalkerLoss):
    """The same where the last prompt is spoken, if there is a recording that the reply answers."""

    def __init__(self, plan: Plan, talker: Talker, mind: Mind, recordings: Recordings) -> None:
        super().__init__(plan, talker, [mind.language_model])
        self._tower, self._recordings = mind.ear.tower.eval(), recordings
        self._answered: dict[str, list[int]] = defaultdict(list)
        for index, entry in enumerate(recordings.entries):
            self._answered[entry.reply].append(index)

    def _conversation(self, rng: random.Random) -> Spoken:
        spoken = super()._conversation(rng)
        recorded = self._answered[spoken.example.reply]
        last = spoken.example.messages[-1]
        if not recorded or rng.random() < _TYPED:
            return spoken
        samples = (self._recordings[rng.choice(recorded)].samples / 32768).astype(np.float32)
        sound = Audio(samples)
        messages = [*spoken.example.messages[:-1], Message(last.role, [sound])]
        return replace(spoken, example=Example(messages, spoken.example.reply))

    @torch.no_grad()
    def _rows(self, thinker: Thinker, batch: Batch, spoken: Sequence[Spoken]) -> Tensor:
        media = [media_parts(example.example.messages) for example in spoken]
        parts = [media[place.row][place.part] for place in batch.places]
        sounds = [part.samples for part in parts if isinstance(part, Audio)]
        embeddings: Tensor = thinker.embed_tokens(batch.tokens)
        with precision(thinker):
            if sounds:
                heard, _ = hear.encode(self._tower, *hear.features(sounds))
                said = [heard[row, : len(place.columns)] for row, place in enumerate(batch.places)]
                embeddings = put(embeddings, batch.places, said)
            hidden = hidden_states(thinker, embeddings, batch.positions).float()
        words = batch.tokens != token_ids().audio
        return hidden + embeddings.float() * words[..., None]  # of a sound, the Talker gets the hidden states alone


@dataclass(frozen=True)
class Script:
    """The Talker's input for a batch, padded at the right."""

    rows: Tensor
    """(B, L, D): what the Thinker gives."""
    codes: Tensor
    """(B, L) int64: whose row of the Talker's table is added; −1 for none."""
    positions: Tensor
    """(3, B, L) int64."""
    spoken: Tensor
    """(B, L) bool: where a code is to be written."""

    def inputs(self, talker: Talker) -> Tensor:
        """What the Talker's decoder is given, ``(B, L, hidden)``."""
        own = talker.model.embed_tokens(self.codes.clamp(min=0)) * (self.codes >= 0)[..., None]
        projected: Tensor = talker.thinker_to_talker_proj(self.rows + own)
        return projected


def stage_directions(
    rows: Tensor, batch: Batch, voices: Tensor, codes: Sequence[Int64], prefixed: npt.NDArray[np.bool_], table: Tensor
) -> Script:
    """Lay out the Talker's input; ``table (V, D)`` is the Thinker's, ``codes`` are those read."""
    ids = token_ids()
    asked = (batch.labels != IGNORED).int().argmax(1) + 1  # (B,): the reply's first token stands here
    replied = (batch.labels != IGNORED).sum(1) - 1  # (B,): the token that ends the reply is not read
    lengths = [int(asked[row]) + 2 + len(each) for row, each in enumerate(codes)]
    shape = len(codes), max(lengths)
    script = Script(
        rows=rows.new_zeros(*shape, rows.shape[2]),
        codes=torch.full(shape, -1, device=rows.device),
        positions=torch.zeros(3, *shape, dtype=torch.long, device=rows.device),
        spoken=torch.zeros(shape, dtype=torch.bool, device=rows.device),
    )
    for row, each in enumerate(codes):
        start, end = int(asked[row]), int(asked[row] + replied[row])
        first, last = start + 1, lengths[row]
        script.rows[row, :start] = rows[row, :start]
        script.rows[row, start] = table[voices[row]]
        script.rows[row, first : first + end - start] = rows[row, start:end]
        script.rows[row, first + end - start] = table[ids.tts_eos]
        script.rows[row, first + end - start + 1 : last] = table[ids.tts_pad]
        if prefixed[row]:
            script.codes[row, start], script.codes[row, first] = CODEC_PAD, CODEC_BOS
        script.codes[row, first + 1 : last] = torch.from_numpy(each)
        script.positions[:, row, :start] = batch.positions[:, row, :start]
        script.positions[:, row, start:last] = torch.arange(last - start) + int(batch.positions[0, row, start - 1]) + 1
        script.spoken[row, first:last] = True
    return script
