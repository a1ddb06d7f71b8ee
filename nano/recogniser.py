"""An independent judge of nano's voice: pocketsphinx, an acoustic model of real speech, with a grammar of the replies.

Inputs: sound float32 `(N,)` at any rate → output: the words heard. A grammar of whole reply templates is needed because
free dictation of so old a recogniser is poor; it forces some valid reply, so it measures whether the words that differ
between replies (numbers, digits, colours …) can be told apart, not open intelligibility. What it makes of natural
speech is measured beside it: the ceiling.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import soxr
from pocketsphinx import Decoder

from ..errors import NearfieldError
from .world import (
    COLOURS,
    COUNT_LIMIT,
    DIGITS,
    DIRECTIONS,
    NO_PICTURE,
    NOTHING_SAID,
    REFUSAL,
    SHAPES,
    TALK,
    describe,
    in_words,
)

RATE_HZ = 16_000
_NOISE_RMS = 2e-3  # of full scale: its features of digital silence are far from anything it was trained on
_MARGIN_SAMPLES = RATE_HZ // 5  # silence before and after, which the recogniser expects

_PRONUNCIATIONS = {"nearfield": "N IH R F IY L D"}
"""Words of nano's replies that the recogniser's dictionary lacks."""


def words(text: str) -> list[str]:
    """A sentence as a recogniser would give it: its words, lower case, without marks."""
    return re.findall(r"[a-z']+|\d+", text.lower())


def word_errors(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest words to put in, leave out or replace to get from one to the other (Levenshtein 1966)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(expected, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def grammar() -> str:
    """Nano's replies in JSGF, the notation the recogniser reads. It does not know which sums are right.

    Written with few branches: a list of all numbers or pictures would take the recogniser seconds a reply.
    """
    fixed = [*TALK, REFUSAL, NO_PICTURE, NOTHING_SAID, COUNT_LIMIT]
    coloured = [" ".join(words(describe(colour, ""))) for colour in COLOURS]  # "a red", "an orange"
    rules = {
        "digit": DIGITS,
        "one": DIGITS[1:],
        "number": [*map(in_words, range(20)), f"({' | '.join(map(in_words, range(20, 100, 10)))}) [<one>]"],
        "sum": ["<number> (plus | minus) <number> is <number>"],
        "digits": ["you said <digit> [<digit> [<digit> [<digit> [<digit>]]]]"],
        "picture": [f"({' | '.join(coloured)}) ({' | '.join(SHAPES)})"],
        "video": [f"it moves ({' | '.join(DIRECTIONS)})"],
        "fixed": [" ".join(words(reply)) for reply in fixed],
    }
    lines = [f"<{name}> = {' | '.join(f'({choice})' for choice in choices)};" for name, choices in rules.items()]
    public = "public <reply> = <sum> | <digits> | <picture> | <video> | <fixed>;"
    return "\n".join(["#JSGF V1.0;", "grammar replies;", *lines, public])


class Recogniser:
    """Hears replies. Deterministic: what a recording is taken for does not depend on those before."""

    def __init__(self, rules: str | None = None) -> None:
        """`rules` are JSGF; without them those of nano's replies. Raises `NearfieldError` for words it cannot say."""
        rules = grammar() if rules is None else rules
        self._decoder = Decoder(samprate=RATE_HZ, lm=None, loglevel="FATAL")
        for word, phones in _PRONUNCIATIONS.items():
            self._decoder.add_word(word, phones, True)
        used = {word for line in rules.splitlines()[2:] for word in words(re.sub(r"<\w+>|^public", "", line))}
        if missing := sorted(word for word in used if self._decoder.lookup_word(word) is None):
            raise NearfieldError(
                f"the recogniser cannot say {', '.join(missing)}: add each to _PRONUNCIATIONS in recogniser.py"
            )
        self._decoder.add_jsgf_string("replies", rules)
        self._decoder.activate_search("replies")

    def hear(self, samples: npt.NDArray[np.float32], rate_hz: int) -> list[str]:
        """The words of a reply, samples `(N,)` with full scale ±1; none where nothing fits."""
        sound = np.pad(np.asarray(soxr.resample(samples, rate_hz, RATE_HZ), np.float32), _MARGIN_SAMPLES)
        sound += _NOISE_RMS * np.random.default_rng(0).standard_normal(len(sound), np.float32)
        pcm = np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return [] if hypothesis is None else words(hypothesis.hypstr)
