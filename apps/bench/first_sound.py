"""From the last sample of a question to the first of its answer, and what that depends on.

Input: a loaded bundle → outputs: `Comparison`s. What is compared is measured in turns, one after the other, so that
whatever else the machine does falls on both; a ratio is the median of the ratios of such pairs.

Replies are the same whatever the model would say: a `Scripted` Thinker computes all it does, and then says the words it
was given; an `Untiring` Talker speaks until it is told to stop. So a random checkpoint, which says anything and may end
at once or never, can be measured as a trained one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median, quantiles

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from ...runtime.conversation import Conversation
from ...runtime.events import AudioChunk, TurnEnd
from ...runtime.omni import Omni
from ...runtime.talker import Talker
from ...runtime.thinker import Thinker

Float32 = npt.NDArray[np.float32]

RATE_HZ = 16_000
SHORT_S, LONG_S = 1.9, 29.9
"""Questions that end a tenth of a second before a block does, so that both leave as much to encode."""
SHORT_WORDS, LONG_WORDS = 5, 60
ANSWER_WORDS, ANSWER_CODES = 15, 250
"""Five seconds of speech, and about as many words as people say in that time."""
_WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"]
_PIECE = RATE_HZ // 10


@dataclass(frozen=True)
class Comparison:
    """Two ways measured in turns, in milliseconds."""

    what: str
    names: tuple[str, str]
    first_ms: list[float]
    second_ms: list[float]
    limit: float
    """The ratio of the second to the first that is not to be passed."""

    @property
    def ratio(self) -> float:
        """Median of second/first over the pairs."""
        return median(self._ratios())

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles of that ratio."""
        low, _, high = quantiles(self._ratios(), n=4)
        return low, high

    def _ratios(self) -> list[float]:
        return [second / first for first, second in zip(self.first_ms, self.second_ms, strict=True)]

    def __str__(self) -> str:
        low, high = self.spread
        times = " | ".join(
            f"{name} {median(values):.0f} ms"
            for name, values in zip(self.names, (self.first_ms, self.second_ms), strict=True)
        )
        verdict = "ok" if self.ratio <= self.limit else "MISSED"
        return (
            f"{self.what}: {times} | ratio {self.ratio:.3f} ({low:.3f} … {high:.3f}), at most {self.limit:g}: {verdict}"
        )


class Scripted(Thinker):
    """A Thinker that computes as ever, but whose logits name the words it was given, then the end."""

    def __init__(self, inner: Thinker) -> None:
        self.__dict__.update(inner.__dict__)
        self._script: list[int] = []

    def say(self, token_ids: Sequence[int]) -> None:
        """What the next reply is to be."""
        self._script = [*token_ids, self.settings.eos_token_ids[0]]

    @property
    def logits(self) -> Float32:
        """Certain of the next word."""
        logits = np.zeros((1, self.settings.vocab_size), np.float32)
        logits[0, self._script.pop(0)] = 1.0
        return logits


class Untiring(Talker):
    """A Talker that computes as ever, but never ends by itself."""

    def __init__(self, inner: Talker) -> None:
        self.__dict__.update(inner.__dict__)
        self._suppressed = sorted({*inner._suppressed, *inner._stops})


def scripted(omni: Omni) -> tuple[Omni, Scripted]:
    """The same bundle, saying what it is told, for as many codes as it is told."""
    thinker = Scripted(omni.parts.thinker)
    parts = replace(omni.parts, thinker=thinker, talker=Untiring(omni.parts.talker))
    return Omni(omni.bundle, parts), thinker


def script(omni: Omni, words: int) -> list[int]:
    """An answer of so many words as tokens: one a word, and the full stop."""
    text = " ".join(_WORDS[index % len(_WORDS)] for index in range(words)).capitalize() + "."
    return omni.parts.tokenizer.encode(text)[: words + 1]  # the tests' small vocabulary has more for a word


def compare(
    what: str,
    names: tuple[str, str],
    first: Callable[[], float],
    second: Callable[[], float],
    *,
    limit: float,
    repeats: int,
) -> Comparison:
    """Measure two ways `repeats` times in turns, each first every other time, after one of each that does not count."""
    first(), second()
    times: tuple[list[float], list[float]] = [], []
    for number in tqdm(range(repeats), desc=what, leave=False):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            times[which].append((first, second)[which]())
    return Comparison(what, names, *times, limit=limit)


def question_length(omni: Omni, repeats: int) -> Comparison:
    """A question of thirty seconds against one of two: all but its last block was read while it was spoken."""
    told, thinker = scripted(omni)
    return compare(
        "first sound after a question",
        ("2 s", "30 s"),
        lambda: _first_sound_ms(told, thinker, SHORT_S, SHORT_WORDS),
        lambda: _first_sound_ms(told, thinker, LONG_S, SHORT_WORDS),
        limit=1.2,
        repeats=repeats,
    )


def answer_length(omni: Omni, repeats: int) -> Comparison:
    """An answer of sixty words against one of five: it is spoken while it is written."""
    told, thinker = scripted(omni)
    return compare(
        "first sound of an answer",
        ("5 words", "60 words"),
        lambda: _first_sound_ms(told, thinker, SHORT_S, SHORT_WORDS),
        lambda: _first_sound_ms(told, thinker, SHORT_S, LONG_WORDS),
        limit=1.05,
        repeats=repeats,
    )


def set_answer(omni: Omni) -> tuple[Conversation, list[Float32]]:
    """A conversation that gives one answer, `ANSWER_CODES` long, and a question for it."""
    told, thinker = scripted(omni)
    thinker.say(script(omni, ANSWER_WORDS))
    return told.conversation(seed=0, max_codes=ANSWER_CODES), [_murmur(SHORT_S)]


def real_time_factor(conversation: Conversation, questions: Sequence[Float32]) -> float:
    """Seconds of work a second of speech takes, from the end of a question to the end of its answer."""
    worked_s = spoken_s = 0.0
    for samples in questions:
        _listen(conversation, samples)
        started = time.perf_counter()
        for event in conversation.respond():
            if isinstance(event, TurnEnd):
                worked_s += time.perf_counter() - started
                spoken_s += event.timing.audio_seconds
    conversation.close()
    return worked_s / spoken_s


def _first_sound_ms(omni: Omni, thinker: Scripted, question_s: float, words: int) -> float:
    """Milliseconds from the last sample of a question to the first of an answer of so many words."""
    conversation = omni.conversation(seed=0)
    spoken = _murmur(question_s)
    _listen(conversation, spoken[:-_PIECE])
    thinker.say(script(omni, words))
    started = time.perf_counter()
    conversation.listen(spoken[-_PIECE:])
    elapsed_ms = next(_first_sounds(conversation, started))
    conversation.close()
    return elapsed_ms


def _first_sounds(conversation: Conversation, started: float) -> Iterator[float]:
    for event in conversation.respond():
        if isinstance(event, AudioChunk):
            yield 1000 * (time.perf_counter() - started)


def _listen(conversation: Conversation, samples: Float32) -> None:
    """As a microphone hands it over: a tenth of a second at a time."""
    for start in range(0, len(samples), _PIECE):
        conversation.listen(samples[start : start + _PIECE])


def _murmur(seconds: float) -> Float32:
    """Something like speech, as far as its loudness goes; what is heard in it plays no part."""
    rng = np.random.default_rng(0)
    count = round(seconds * RATE_HZ)
    swelling = 1 + np.sin(2 * np.pi * 3 * np.arange(count) / RATE_HZ)
    return (0.05 * swelling * rng.standard_normal(count)).astype(np.float32)
