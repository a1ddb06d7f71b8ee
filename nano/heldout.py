"""What nano is judged on, kept in the repository: recordings, and what each is to be answered with.

Inputs: the held-out corpora of recordings.py, held-out sentences → outputs, in nano/heldout: Ogg Opus files (16 kHz
mono, about 6 kB each) and `index.jsonl`, one `questions.Item` a line. The order is shuffled: any first part of a task
is a fair sample of it.
"""

from __future__ import annotations

import io
import logging
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from ..errors import NearfieldError
from ..runtime.audio import SAMPLE_RATE_HZ, from_array
from .pictures import clip
from .pictures import draw as draw_picture
from .questions import HELDOUT, INDEX, Item, Task, Turn
from .recordings import FOLDER, Recording, build
from .sentences import TRANSCRIPT_SYSTEM, describe, describe_move
from .synthesizers import Speech, Voice, speak
from .world import Exchange, Skill, answer, draw, transcript, typed

log = logging.getLogger(__name__)

LIMIT_BYTES = 3_000_000

NATURAL_READERS = {"Chelsie": "slt", "Ethan": "rms"}
"""The flite voices whose speech nano's two voices learnt from; what the recogniser makes of them is its ceiling."""

_COMPRESSION = 0.935  # about 23 kbit/s: the mean error of a log-mel value is 0.04, where the scale spans 2


def write(folder: Path = HELDOUT, recordings: Path = FOLDER) -> int:
    """Make everything in `folder` anew, from the held-out corpora in `recordings`; returns its size in bytes.

    Raises `NearfieldError` when it would be more than `LIMIT_BYTES`, before anything is removed.
    """
    chosen = _Chosen(random.Random("heldout"), recordings)
    items = [*chosen.questions(), *chosen.again(), *chosen.shown("picture", 120), *chosen.shown("video", 80)]
    items += [*chosen.written(), *chosen.typed(80), *chosen.replies(40)]
    index = b"".join(msgspec.json.encode(item) + b"\n" for item in items)
    size_bytes = len(index) + sum(map(len, chosen.files.values()))
    if size_bytes > LIMIT_BYTES:
        raise NearfieldError(f"held-out recordings take {size_bytes:,} bytes, more than {LIMIT_BYTES:,}: store fewer")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.ogg"):
        old.unlink()
    for name, content in chosen.files.items():
        (folder / name).write_bytes(content)
    (folder / INDEX).write_bytes(index)
    return size_bytes


def main() -> None:
    """Make what is not there yet. It lies in the repository, so that what is scored stays the same."""
    if (HELDOUT / INDEX).exists():
        log.info("%s is there; it is made anew when it is deleted", HELDOUT)
    else:
        log.info("%s: %s bytes", HELDOUT, f"{write():,}")


class _Chosen:
    """Items as they are chosen, and the recordings they need."""

    def __init__(self, rng: random.Random, recordings: Path) -> None:
        self._rng = rng
        self._by_sentence = _piles(build("heldout-sentences", recordings), rng)  # voices that are trained on
        self._by_voice = _piles(build("heldout-voices", recordings), rng)  # other voices and other sentences
        self._asked: list[Item] = []
        self.files: dict[str, bytes] = {}

    def questions(self) -> list[Item]:
        """Spoken questions: other sentences, other voices, and speech from outside the world."""
        sentences: dict[Skill, int] = {"sums": 70, "digits": 50}  # the skills whose sentences can be held out
        voices: dict[Skill, int] = {"sums": 48, "digits": 40, "talk": 32}
        for skill, count in sentences.items():
            self._asked += [self._spoken("sentences", taken) for taken in _take(self._by_sentence, skill, count)]
        for skill, count in voices.items():
            self._asked += [self._spoken("voices", taken) for taken in _take(self._by_voice, skill, count)]
        outside = [*_take(self._by_sentence, "refusal", 30), *_take(self._by_voice, "refusal", 30)]
        return self._shuffled(self._asked) + self._shuffled([self._spoken("refusal", taken) for taken in outside])

    def written(self) -> list[Item]:
        """The same recordings, to be written down."""
        return self._shuffled(
            [
                msgspec.structs.replace(
                    item,
                    task="transcript",
                    reply=transcript(item.prompt),
                    system=self._rng.choice(TRANSCRIPT_SYSTEM),
                )
                for item in self._asked
            ]
        )

    def again(self) -> list[Item]:
        """Conversations that end with "say that again", after one or two turns, spoken or typed; some after none."""
        items = []
        for taken in [*_take(self._by_sentence, "again", 30), *_take(self._by_voice, "again", 30)]:
            item = self._spoken("again", taken)
            history = tuple(self._earlier() for _ in range(self._rng.choices((0, 1, 2), (1, 6, 3))[0]))
            asked = Exchange("again", item.prompt, item.reply)
            reply = answer(asked, history[-1].reply if history else None)
            items.append(msgspec.structs.replace(item, history=history, reply=reply))
        return self._shuffled(items)

    def shown(self, skill: Literal["picture", "video"], count: int) -> list[Item]:
        """Pictures or clips, half of them with a spoken question."""
        questions = [*_take(self._by_sentence, skill, 12), *_take(self._by_voice, skill, 12)]
        spoken = [self._spoken(skill, taken) for taken in questions]
        items = []
        for seed in range(count):
            rng = np.random.default_rng(seed)
            reply = _picture_reply(rng) if skill == "picture" else _video_reply(rng)
            asked = draw(skill, self._rng, "heldout")
            question = (
                spoken[seed // 2 % len(spoken)]
                if seed % 2
                else Item(task=skill, skill=skill, prompt=typed(asked, self._rng), reply=reply)
            )
            items.append(msgspec.structs.replace(question, reply=reply, seed=seed))
        return self._shuffled(items)

    def typed(self, count: int) -> list[Item]:
        """Typed questions of other sentences."""
        skills: tuple[Skill, ...] = ("sums", "digits", "talk", "sums")
        drawn = [draw(skills[i % len(skills)], self._rng, "heldout") for i in range(count)]
        return [Item(task="typed", skill=e.skill, prompt=typed(e, self._rng), reply=e.reply) for e in drawn]

    def replies(self, count: int) -> list[Item]:
        """Questions whose replies are listened to; half of the replies also as natural voices speak them."""
        skills: tuple[Skill, ...] = ("sums", "digits", "sums", "talk", "digits")
        drawn = [draw(skills[i % len(skills)], self._rng, "heldout") for i in range(count)]
        items = [Item(task="speech", skill=e.skill, prompt=e.prompt, reply=e.reply) for e in drawn]
        for item in items[: count // 2]:
            for voice, reader in NATURAL_READERS.items():
                file = self._store(_at_16_khz(speak(Voice("flite", reader), item.reply)))
                items.append(msgspec.structs.replace(item, task="ceiling", recording=file, voice=voice))
        return items

    def _spoken(self, task: Task, taken: Recording) -> Item:
        samples = taken.samples.astype(np.float32) / np.float32(32768)
        file = self._store(samples)
        return Item(task, taken.skill, taken.prompt, taken.reply, recording=file, voice=taken.voice)

    def _earlier(self) -> Turn:
        if self._rng.random() < 0.5:
            said = self._rng.choice(self._asked)
            return Turn(said.prompt, said.reply, said.recording)
        skill: Skill = self._rng.choice(("sums", "digits", "talk"))
        asked = draw(skill, self._rng, "heldout")
        return Turn(typed(asked, self._rng), asked.reply)

    def _store(self, samples: NDArray[np.float32]) -> str:
        name = f"{len(self.files):03}.ogg"
        file = io.BytesIO()
        soundfile.write(file, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS", compression_level=_COMPRESSION)
        self.files[name] = file.getvalue()
        return name

    def _shuffled(self, items: Sequence[Item]) -> list[Item]:
        return self._rng.sample(items, len(items))


_Piles = dict[tuple[Skill, str], list[Recording]]


def _piles(corpus: Sequence[Recording], rng: random.Random) -> _Piles:
    """A corpus by skill and engine, each pile shuffled."""
    piles: _Piles = defaultdict(list)
    for index in rng.sample(range(len(corpus)), len(corpus)):
        recording = corpus[index]
        piles[recording.skill, recording.voice.partition("/")[0]].append(recording)
    return piles


def _take(piles: _Piles, skill: Skill, count: int) -> list[Recording]:
    """Take recordings of a skill, from every engine in turn, so that no kind of voice has the upper hand."""
    taken: list[Recording] = []
    while len(taken) < count:
        left = [
            pile
            for (pile_skill, _), pile in sorted(piles.items(), key=lambda named: named[0])
            if pile_skill == skill and pile
        ]
        if not left:
            raise NearfieldError(f"the held-out corpora hold {len(taken)} recordings of {skill}, {count} are needed")
        taken += [pile.pop() for pile in left][: count - len(taken)]
    return taken


def _at_16_khz(speech: Speech) -> NDArray[np.float32]:
    return from_array(speech.samples, speech.sample_rate_hz)


def _picture_reply(rng: np.random.Generator) -> str:
    picture = draw_picture(rng, "heldout")
    return describe(picture.colour, picture.shape)


def _video_reply(rng: np.random.Generator) -> str:
    return describe_move(clip(rng, "heldout").direction)
