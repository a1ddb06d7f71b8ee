"""`make nano-eval`: the shipped bundle, through the runtime, on what it was never trained on; exit code 1 on a miss.

Inputs: a bundle, nano/heldout and, where it is there, the checkpoint → outputs: a table; nano/build/scores.json, from
which the model card is written; nano/build/misses.jsonl, every wrong answer. Text is greedy, speech is drawn as a
user's is. Beside each score stands what transformers makes of the checkpoint in float32, greedy as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from tqdm import tqdm

from ..apps.cli.common import DEMO_BUNDLE
from ..apps.cli.probe import Machine
from ..runtime.audio import SAMPLE_RATE_HZ, read_audio
from ..runtime.events import AudioChunk, TurnEnd
from ..runtime.messages import Message
from ..runtime.omni import Omni
from .conditions import CONDITIONS
from .questions import HELDOUT, Item, Task, load, messages
from .recogniser import Recogniser, word_errors, words
from .scores import SCORES, Score, Scores

CHECKPOINT = Path(__file__).parent / "checkpoint"
THREADS = 2
MAX_TOKENS, MAX_CODES = 64, 500
"""Where a reply is cut: 10 s of speech; the longest right one takes 5."""
AS_RECORDED = "as recorded"
MAY_LOSE = 0.05
"""How much lower a score may be when the recordings are changed."""
QUICK_ITEMS: dict[Task, int] = {"ceiling": 4, "speech": 3}  # of the others `_QUICK`
_QUICK = 10
_QUICK_CONDITIONS = ("8 kHz", "noise 15 dB below")

_CHANGED: tuple[Task, ...] = ("sentences", "voices")
"""Tasks that are scored again with changed recordings."""

Unit = Literal["answers", "words"]
Answerer = Callable[[Sequence[Message]], str]


@dataclass(frozen=True)
class Aim:
    """What a task is called in the table, what is counted, and the share that must be reached."""

    name: str
    unit: Unit
    limit: float | None


AIMS: dict[Task, Aim] = {
    "sentences": Aim("spoken, held-out sentences", "answers", 0.97),
    "voices": Aim("spoken, held-out voices", "answers", 0.90),
    "typed": Aim("typed, held-out sentences", "answers", None),
    "transcript": Aim("transcripts", "words", 0.95),
    "again": Aim("say that again", "answers", 0.95),
    "picture": Aim("pictures", "answers", 0.98),
    "video": Aim("videos", "answers", 0.95),
    "refusal": Aim("outside its world, refused", "answers", 0.90),
    "speech": Aim("its speech, understood", "words", 0.95),
    "ceiling": Aim("natural speech, understood", "words", None),
}


class Miss(msgspec.Struct, frozen=True):
    """A wrong answer."""

    name: str
    condition: str
    prompt: str
    voice: str | None
    expected: str
    found: str


@dataclass
class Judge:
    """Puts the questions, counts what is right, and remembers what was wrong and how long it took."""

    answer: Answerer
    folder: Path = HELDOUT
    misses: list[Miss] = field(default_factory=list)

    def score(
        self,
        items: Sequence[Item],
        condition: str = AS_RECORDED,
        limit: float | None = None,
        reference: Answerer | None = None,
    ) -> Score:
        """The score of the items of one task; `limit` in place of the task's own."""
        aim, started = AIMS[items[0].task], time.perf_counter()
        right, total = self._put(self.answer, items, condition, condition)
        seconds = time.perf_counter() - started
        reference_right = None if reference is None else self._put(reference, items, condition, "reference")[0]
        limit = aim.limit if limit is None else limit
        return Score(aim.name, condition, aim.unit, right, total, limit, seconds, reference_right)

    def _put(self, answer: Answerer, items: Sequence[Item], condition: str, noted: str) -> tuple[int, int]:
        """Put the questions to one answerer; what is right, out of how many. `noted` is the condition misses bear."""
        aim, right, total = AIMS[items[0].task], 0, 0
        for item in _progress(items, f"{aim.name}, {noted}"):
            found = answer(messages(item, self.folder, CONDITIONS.get(condition))).strip()
            errors, of = _errors(aim.unit, item.reply, found)
            right, total = right + of - errors, total + of
            if errors:
                self.misses.append(Miss(aim.name, noted, item.prompt, item.voice, item.reply, found))
        return max(0, right), total

    def heard(self, name: Task, condition: str, spoken: Iterable[tuple[Item, str, list[str]]]) -> Score:
        """The score of replies that were listened to: item, text that was to be heard, words that were heard."""
        aim = AIMS[name]
        started, right, total = time.perf_counter(), 0, 0
        for item, text, found in spoken:
            errors = word_errors(words(text), found)
            right, total = right + len(words(text)) - errors, total + len(words(text))
            if errors:
                self.misses.append(Miss(aim.name, condition, item.prompt, item.voice, text, " ".join(found)))
        seconds = time.perf_counter() - started
        return Score(aim.name, condition, aim.unit, max(0, right), max(1, total), aim.limit, seconds)


def evaluate(
    bundle: Path = DEMO_BUNDLE,
    checkpoint: Path | None = CHECKPOINT,
    *,
    quick: bool = False,
    folder: Path = HELDOUT,
) -> Scores:
    """Put every question and count. `checkpoint` is what the reference runs, None for no reference.

    A quick look takes the first items of each task, few changes of the recordings and no reference.
    Raises `NearfieldError` where the bundle or the questions cannot be read.
    """
    started = time.perf_counter()
    omni = Omni.load(bundle, threads=THREADS)
    silent, spoken = list[TurnEnd](), list[TurnEnd]()
    reference = _reference(checkpoint) if checkpoint is not None and not quick else None
    judge = Judge(lambda asked: _text(omni, asked, silent), folder)
    items = {task: [item for item in load(folder) if item.task == task] for task in AIMS}
    if quick:
        items = {task: found[: QUICK_ITEMS.get(task, _QUICK)] for task, found in items.items()}

    scores = [
        judge.score(found, reference=reference) for task, found in items.items() if task not in ("speech", "ceiling")
    ]
    base = {score.name: score.share for score in scores}
    for condition in _QUICK_CONDITIONS if quick else CONDITIONS:
        scores += [judge.score(items[task], condition, max(0.0, base[AIMS[task].name] - MAY_LOSE)) for task in _CHANGED]
    recogniser = Recogniser()
    for voice in omni.voices:
        scores.append(judge.heard("speech", voice, listened(omni, voice, items["speech"], recogniser, spoken)))
        natural = [item for item in items["ceiling"] if item.voice == voice]
        scores.append(judge.heard("ceiling", voice, _listened_to_files(natural, recogniser, folder)))
    _save_misses(judge.misses)
    return Scores(
        bundle_sha256=Scores.identity(bundle),
        bundle_bytes=sum(file.stat().st_size for file in bundle.iterdir()),
        machine=Machine().platform(),
        threads=THREADS,
        quick=quick,
        reference=reference is not None,
        seconds=time.perf_counter() - started,
        turn_ms=statistics.median(end.timing.total_ms for end in silent),
        realtime_factor=statistics.median(
            end.timing.total_ms / 1000 / max(end.timing.audio_seconds, 0.02) for end in spoken
        ),
        scores=scores,
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Evaluate, print the table and save it; returns the exit code, 1 where a limit is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m nearfield.nano.evaluate", description="Judge nano's bundle on held-out data."
    )
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="the bundle to judge")
    parser.add_argument("--no-reference", action="store_true", help="leave out the reference implementation")
    parser.add_argument("--quick", action="store_true", help="a few items of each task: under a minute, nothing saved")
    options = parser.parse_args(arguments)
    checkpoint = CHECKPOINT if (CHECKPOINT / "config.json").exists() and not options.no_reference else None
    scores = evaluate(options.bundle, checkpoint, quick=options.quick)
    if not options.quick:
        scores.save()
    missed = scores.missed()
    verdict = f"{len(missed)} of the scores too low" if missed else "all as they must be"
    sys.stdout.write(f"{scores.table()}\n{scores.seconds:.0f} s; {verdict}\n")
    return 1 if missed else 0


def _text(omni: Omni, asked: Sequence[Message], ends: list[TurnEnd]) -> str:
    """The bundle's greedy answer."""
    (end,) = [event for event in omni.respond(asked, speak=False, max_tokens=MAX_TOKENS) if isinstance(event, TurnEnd)]
    ends.append(end)
    return end.text


def listened(
    omni: Omni, voice: str, items: Sequence[Item], recogniser: Recogniser, ends: list[TurnEnd], first_seed: int = 0
) -> Iterator[tuple[Item, str, list[str]]]:
    """Have each item answered aloud and listen: item, the text of the reply, the words heard.

    Each item is spoken with a seed of its own, from `first_seed` on.
    """
    for seed, item in enumerate(_progress(items, f"speech, {voice}"), first_seed):
        pieces = [np.zeros(0, np.float32)]
        rate_hz = omni.bundle.manifest.token2wav.sample_rate_hz
        for event in omni.respond(messages(item), voice=voice, seed=seed, max_tokens=MAX_TOKENS, max_codes=MAX_CODES):
            if isinstance(event, AudioChunk):
                pieces.append(event.samples)
            elif isinstance(event, TurnEnd):
                ends.append(event)
                yield item, event.text, recogniser.hear(np.concatenate(pieces), rate_hz)


def _listened_to_files(
    items: Sequence[Item], recogniser: Recogniser, folder: Path
) -> Iterator[tuple[Item, str, list[str]]]:
    """Listen to the same replies as a natural voice speaks them."""
    for item in _progress(items, "speech, natural"):
        if item.recording is not None:
            yield item, item.reply, recogniser.hear(read_audio(folder / item.recording), SAMPLE_RATE_HZ)


def _errors(unit: Unit, expected: str, found: str) -> tuple[int, int]:
    """What is wrong, and out of how many."""
    if unit == "answers":
        return int(found != expected), 1
    return word_errors(words(expected), words(found)), len(words(expected))


def _reference(checkpoint: Path) -> Answerer:
    from .reference import Reference  # torch is needed for this alone

    reference = Reference(checkpoint)
    return lambda asked: reference.answer(asked, MAX_TOKENS)


def _save_misses(misses: Sequence[Miss]) -> None:
    file = SCORES.with_name("misses.jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(msgspec.json.encode(miss) + b"\n" for miss in misses))


def _progress(items: Sequence[Item], name: str) -> Iterable[Item]:
    return tqdm(items, desc=name, leave=False, mininterval=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
