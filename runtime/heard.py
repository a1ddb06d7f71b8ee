"""How much of a reply was heard when its speech was stopped.

Inputs: the reply's tokens as text, seconds of its speech that were played → output: how many tokens were heard, always
whole words. The Talker does not say which sound belongs to which word, so it goes by length: a word takes as long as
its letters, a mark a little more. `docs/measurements/heard.py` measures how far off that is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

UNITS_PER_SECOND = 15.0
"""How fast replies are spoken until one was spoken to its end, in letters: about 180 English words a minute."""

LATE_S = 0.2
"""How long a word has been over before it counts: a pause leads speech in, and a word that was cut was not heard.
Without this replies seemed heard half a word too far."""

_ROUNDING = 1e-6
_LETTER, _SYLLABLE, _DIGIT, _COMMA, _STOP = 1.0, 4.0, 5.0, 3.0, 6.0
_PAUSES = {",": _COMMA, ";": _COMMA, ":": _COMMA, "、": _COMMA, "，": _COMMA} | dict.fromkeys(".!?。！？", _STOP)


def spoken_units(text: str) -> float:
    """How long a text takes to say, in letters: a CJK character is a syllable, a digit a word, a mark a pause."""
    return sum(_units(character) for character in text)


def tokens_heard(texts: Sequence[str], played_s: float, units_per_second: float) -> int:
    """How many of the tokens, whose texts are given in order, were heard in `played_s`; a word half heard is not."""
    played, said, heard = (played_s - LATE_S) * units_per_second, 0.0, 0
    for index, text in enumerate(texts):
        said += spoken_units(text)
        if said > played + _ROUNDING:
            break
        following = texts[index + 1] if index + 1 < len(texts) else ""
        if said and _ends_word(text, following):
            heard = index + 1
    return heard


def _units(character: str) -> float:
    if character in _PAUSES:
        return _PAUSES[character]
    if character.isdigit():
        return _DIGIT
    if _is_syllable(character):
        return _SYLLABLE
    return _LETTER if character.isalpha() else 0.0


def _ends_word(text: str, following: str) -> bool:
    """Whether a word, with the mark behind it, is over after `text`."""
    if not following:
        return True
    if not text:
        return False  # the first bytes of a character
    return re.match(r"\w", text[-1]) is None or re.match(r"\w", following) is None or _is_syllable(text[-1])


def _is_syllable(character: str) -> bool:
    """Whether a script has no cases: there a character is mostly a syllable, and a word of its own."""
    return unicodedata.category(character) == "Lo"
