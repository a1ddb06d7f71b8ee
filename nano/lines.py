"""What the Talker learns to say: replies as codes in both voices, and the conversations they end.

Inputs: sentences of the world (training split), spoken by codec.py's speakers → outputs: ``build/lines*.npz``, every
reply with prompts that it answers and its codes; conversations drawn around them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..runtime.messages import SYSTEM_PROMPT
from .chat import Example
from .codec import SPEAKERS, Int64, mel_of, say, train_codec
from .read import message
from .sentences import COUNT_LIMIT, TRANSCRIPT_SYSTEM
from .training import BUILD
from .world import Skill, answer, draw, typed


@dataclass(frozen=True)
class Part:
    """Some of the lines: how many exchanges of each skill they are drawn from, and prompts to be said back."""

    name: str
    seed: int
    draws: dict[Skill, int]
    transcripts: int


PARTS = (
    Part(
        "lines", 6,
        {"sums": 3600, "digits": 1800, "talk": 500, "again": 30, "picture": 600, "video": 80, "refusal": 60},
        transcripts=700,
    ),
    # The first alone were learnt by heart: 93 % of their codes foretold, and 77 % of other replies' (Chelsie).
    Part("lines-more", 16, {"sums": 11_000, "digits": 5500}, transcripts=1200),
)  # fmt: skip
_PROMPTS = 8  # kept of those that a reply answers

Kind = Skill | str  # a skill, or "transcript": a prompt said back
_WEIGHTS = {
    "sums": 0.52, "digits": 0.3, "talk": 0.05, "again": 0.01, "picture": 0.05, "video": 0.02, "refusal": 0.01,
    "transcript": 0.04,
}  # fmt: skip
_AGAIN = 0.06  # of the conversations end in "say that again"
_EARLIER_TURNS = (0.62, 0.14, 0.08, 0.06, 0.04, 0.03, 0.02, 0.01)
_SPEAKERS = (0.6, 0.4)  # Chelsie's codes are the harder ones


@dataclass(frozen=True, eq=False)
class Line:
    """A reply, prompts that it answers, and its codes as each speaker says it."""

    kind: str
    prompts: tuple[str, ...]
    reply: str
    codes: tuple[Int64, ...]


def lines(folder: Path = BUILD) -> list[Line]:
    """Every reply the Talker learns to say, in both voices, as codes; a part that is there is not spoken again."""
    found: dict[tuple[str, str], Line] = {}
    for part in PARTS:
        path = folder / f"{part.name}.npz"
        if not path.exists():
            _speak(path, {key: asked for key, asked in _drawn_prompts(part).items() if key not in found})
        found |= {(line.kind, line.reply): line for line in _stored(path)}
    return list(found.values())


def _speak(path: Path, prompts: dict[tuple[str, str], list[str]]) -> None:
    """Have both speakers say every reply, and keep the codes: whole or not at all."""
    codec = train_codec()
    codes = [
        codec.encode(mel_of(say(speaker, reply)))
        for _, reply in tqdm(prompts, desc=path.stem, mininterval=10)
        for speaker in range(len(SPEAKERS))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part.npz")
    np.savez(
        temporary,
        kinds=np.array([kind for kind, _ in prompts]),
        replies=np.array([reply for _, reply in prompts]),
        prompts=np.array(["\n".join(asked) for asked in prompts.values()]),
        ends=np.cumsum([len(piece) for piece in codes]),
        codes=np.concatenate(codes).astype(np.int16),
    )
    temporary.replace(path)


def _stored(path: Path) -> list[Line]:
    with np.load(path) as stored:
        pieces = iter(np.split(stored["codes"].astype(np.int64), stored["ends"][:-1]))
        return [
            Line(str(kind), tuple(str(asked).split("\n")), str(reply), tuple(next(pieces) for _ in SPEAKERS))
            for kind, reply, asked in zip(stored["kinds"], stored["replies"], stored["prompts"], strict=True)
        ]


def _drawn_prompts(part: Part) -> dict[tuple[str, str], list[str]]:
    """(kind, reply) → prompts, all of the training split."""
    rng = random.Random(part.seed)
    prompts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for skill, count in part.draws.items():
        for _ in range(count):
            exchange = draw(skill, rng, "train")
            kind = "talk" if exchange.reply == COUNT_LIMIT else skill  # said often, and one of thousands of sums
            asked = prompts[kind, exchange.reply]
            if len(asked) < _PROMPTS and exchange.prompt not in asked:
                asked.append(exchange.prompt)
    for _ in range(part.transcripts):
        prompt = draw(rng.choice(("sums", "digits", "talk", "again", "picture", "video")), rng, "train").prompt
        prompts["transcript", prompt] = [prompt]
    return dict(prompts)


@dataclass(frozen=True, eq=False)
class Spoken:
    """A conversation, and its reply in one of the voices."""

    example: Example
    speaker: int
    codes: Int64


def spoken_conversation(by_kind: dict[str, list[Line]], rng: random.Random) -> Spoken:
    """Draw a reply and a conversation that ends in it."""
    (kind,) = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    line = rng.choice(by_kind[kind])
    (speaker,) = rng.choices(range(len(SPEAKERS)), _SPEAKERS)
    prompt = rng.choice(line.prompts)
    if kind == "transcript":
        messages = [message("system", rng.choice(TRANSCRIPT_SYSTEM)), message("user", prompt)]
        return Spoken(Example(messages, line.reply), speaker, line.codes[speaker])
    messages = [message("system", SYSTEM_PROMPT)]
    reply: str | None = None
    (turns,) = rng.choices(range(len(_EARLIER_TURNS)), _EARLIER_TURNS)
    for _ in range(turns):
        exchange = draw(rng.choice(("sums", "digits", "talk", "refusal")), rng, "train")
        reply = answer(exchange, reply)
        messages += [message("user", typed(exchange, rng)), message("assistant", reply)]
    messages.append(message("user", prompt if rng.random() < 0.5 else prompt.lower().rstrip(".?")))
    # There is no picture here: only when asked to repeat it does the Thinker know such a reply before it is written,
    # and the Talker reads from each row what the Thinker is about to write.
    if kind in ("picture", "video") or rng.random() < _AGAIN:
        again = draw("again", rng, "train")
        messages += [message("assistant", line.reply), message("user", again.prompt)]
    return Spoken(Example(messages, line.reply), speaker, line.codes[speaker])
