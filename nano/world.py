"""Nano's world: draw what it is asked, and the one right reply.

Inputs: a skill, a random generator, a split → outputs: an `Exchange`, a prompt as it is said and the reply.

A prompt has one reply whatever was said before, except "say that again". Words alone decide: two prompts never differ
in capitals or marks only, because nobody hears those. Held out of training are one in ten of the sums (7 + 4 and 4 + 7
are one sum), one in ten of the digit strings of two digits and more, and, for refusals, frames and words of their own
(outside.py). The split looks at the numbers, not at the wording, so no template and no typed form lets one through.
Greetings, and questions about pictures, are few: they are the same in both splits, and held out through voices.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
import zlib
from dataclasses import dataclass
from typing import Literal

from .outside import Split, everyday
from .sentences import (
    AGAIN,
    COLOURS,
    COUNT_LIMIT,
    DIGIT_TEMPLATES,
    DIGITS,
    DIRECTIONS,
    NAMES,
    NO_PICTURE,
    NOTHING_SAID,
    PICTURE,
    REFUSAL,
    SHAPES,
    SUM_TEMPLATES,
    TALK,
    TEENS,
    TENS,
    TRANSCRIPT_SYSTEM,
    VIDEO,
    Operator,
    capital,
    describe,
    describe_move,
    in_words,
    plain,
    read_digits,
    read_sum,
)

__all__ = [
    "COLOURS",
    "COUNT_LIMIT",
    "DIGITS",
    "DIRECTIONS",
    "NOTHING_SAID",
    "NO_PICTURE",
    "REFUSAL",
    "SHAPES",
    "TALK",
    "TRANSCRIPT_SYSTEM",
    "Exchange",
    "Skill",
    "Split",
    "answer",
    "close",
    "describe",
    "describe_move",
    "draw",
    "draw_hard",
    "examples",
    "hard",
    "in_words",
    "parse",
    "restated_sum",
    "transcript",
    "typed",
    "vocabulary",
]

Skill = Literal["sums", "digits", "talk", "again", "picture", "video", "refusal"]

_SINGLE_DIGIT_SHARE = 0.35  # of operands: small sums are asked most
_OUT_OF_RANGE_SHARE = 0.15  # of sums: the result is one Nano cannot count to
_REPEATED_SHARE = 0.15  # of digits after the first: chosen to be the one before, the hardest to hear
_AGAIN_OF_HARD = 0.2
_LOWEST, _HIGHEST = ({in_words(result) for result in limits} for limits in (range(6), range(90, 100)))
_LIKE_OTHERS = {in_words(10 + unit) for unit in range(3, 10)} | {in_words(10 * unit) for unit in range(3, 10)}
_NO_PICTURE_SHARE = 0.1  # of talk: what is asked of a picture, without one
_HOMOPHONES = {"for": "four", "to": "two", "too": "two", "won": "one", "ate": "eight", "by": "bye", "no": "know"}


@dataclass(frozen=True)
class Exchange:
    """A prompt, as it is said and as a transcript of it is written, and the exact reply."""

    skill: Skill
    prompt: str
    reply: str


def draw(skill: Skill, rng: random.Random, split: Split) -> Exchange:
    """Draw an exchange of the split. For "again" the reply is the one to a conversation's first turn: see `answer`."""
    match skill:
        case "sums":
            return _draw_sum(rng, split)
        case "digits":
            return _draw_digits(rng, split)
        case "talk":
            return _draw_talk(rng)
        case "again":
            return Exchange("again", rng.choice(AGAIN), NOTHING_SAID)
        case "picture":
            return Exchange("picture", rng.choice(PICTURE), describe(rng.choice(COLOURS), rng.choice(SHAPES)))
        case "video":
            return Exchange("video", rng.choice(VIDEO), describe_move(rng.choice(DIRECTIONS)))
        case "refusal":
            return Exchange("refusal", _draw_outside(rng, split), REFUSAL)


def hard(reply: str) -> bool:
    """Whether a reply is of those that small models get wrong: a digit twice running, or a sum beyond counting."""
    words = plain(reply).split()
    return reply == COUNT_LIMIT or any(word == after and word in DIGITS for word, after in itertools.pairwise(words))


def close(reply: str) -> bool:
    """Whether a reply is a sum that must be told from others near it.

    Nano can only just count to it; or it is of a number that sounds like another, sixteen and sixty.
    """
    asked, _, result = plain(reply).partition(" is ")
    just = ("plus" in asked and result in _HIGHEST) or ("minus" in asked and result in _LOWEST)
    return just or (bool(result) and not _LIKE_OTHERS.isdisjoint(re.split(" plus | minus ", asked)))


def draw_hard(rng: random.Random, split: Split, *, or_close: bool = False) -> Exchange:
    """Draw an exchange whose reply is hard (or `close`), or, since it should repeat such a reply, "say that again"."""
    if rng.random() < _AGAIN_OF_HARD:
        return draw("again", rng, split)
    skill: Skill = rng.choice(("digits", "sums") if or_close else ("digits", "digits", "sums"))
    while True:
        exchange = draw(skill, rng, split)
        if hard(exchange.reply) or (or_close and close(exchange.reply)):
            return exchange


def answer(exchange: Exchange, previous_reply: str | None) -> str:
    """Return the right reply when the assistant's reply before it was `previous_reply`, None in the first turn."""
    if exchange.skill == "again" and previous_reply is not None:
        return previous_reply
    return exchange.reply


def transcript(prompt: str) -> str:
    """Return what writing a prompt down gives: prompts are drawn as they are to be written, so the prompt itself."""
    return prompt


def typed(exchange: Exchange, rng: random.Random) -> str:
    """Draw a way to type the prompt: in figures where it has numbers, in lower case, without the last mark."""
    text = _in_figures(exchange, rng) if rng.random() < 0.5 else exchange.prompt
    if rng.random() < 0.4:
        text = text.lower()
    if rng.random() < 0.4:
        text = text.rstrip(".?")
    return text


def restated_sum(rng: random.Random) -> str:
    """Draw a sum Nano can count to, restated with its result: of all there are, since a table has no unseen part."""
    while True:
        operator: Operator = rng.choice(("plus", "minus"))
        first, second = _draw_operand(rng), _draw_operand(rng)
        if _result(first, operator, second) in range(100):
            return _sum_reply(first, operator, second)


def parse(sentence: str) -> Exchange | None:
    """Find the exchange that a sentence begins, by its words alone; None if it is outside the world.

    Without a picture: what is asked of one has the reply `NO_PICTURE`.
    """
    words = plain(sentence)
    if words in _fixed():
        return _fixed()[words]
    if found := read_sum(words):
        return Exchange("sums", sentence, _sum_reply(*found))
    if digits := read_digits(words):
        return Exchange("digits", sentence, f"You said {digits}.")
    return None


def examples() -> list[str]:
    """Return sentences that hold every word of the world in every place it has, in prompts, replies and instructions.

    Prompts come in lower case too, as they may be typed.
    """
    numbers = [in_words(number) for number in range(100)]
    operators = list(SUM_TEMPLATES)
    sums = [template for operator in operators for template in SUM_TEMPLATES[operator]]
    prompts = [exchange.prompt for exchange in _fixed().values()]
    prompts += [capital(template.format(a=number, b=number)) for number in numbers for template in sums]
    prompts += [capital(template.format(d=digit)) for template in DIGIT_TEMPLATES for digit in DIGITS]
    replies = [REFUSAL, NO_PICTURE, NOTHING_SAID, COUNT_LIMIT, *TALK]
    replies += [describe(colour, shape) for colour in COLOURS for shape in SHAPES]
    replies += [describe_move(direction) for direction in DIRECTIONS]
    replies += [capital(f"{number} {operator} {number} is {number}.") for number in numbers for operator in operators]
    replies += [f"You said {digit}." for digit in DIGITS]
    return [*prompts, *(prompt.lower() for prompt in prompts), *replies, *TRANSCRIPT_SYSTEM]


def vocabulary() -> list[str]:
    """Return every word of prompts, replies and instructions inside the world, as spelt: "what" and "What"."""
    return sorted({word for sentence in examples() for word in re.findall(r"\w+", sentence)})


def _draw_sum(rng: random.Random, split: Split) -> Exchange:
    operator: Operator = rng.choice(("plus", "minus"))
    out_of_range = rng.random() < _OUT_OF_RANGE_SHARE
    while True:
        first, second = _draw_operand(rng), _draw_operand(rng)
        in_range = _result(first, operator, second) in range(100)
        if in_range != out_of_range and _split_of_sum(first, operator, second) == split:
            break
    template = rng.choice(SUM_TEMPLATES[operator])
    prompt = capital(template.format(a=in_words(first), b=in_words(second)))
    return Exchange("sums", prompt, _sum_reply(first, operator, second))


def _draw_operand(rng: random.Random) -> int:
    return rng.randrange(10 if rng.random() < _SINGLE_DIGIT_SHARE else 100)


def _result(first: int, operator: Operator, second: int) -> int:
    return first + second if operator == "plus" else first - second


def _sum_reply(first: int, operator: Operator, second: int) -> str:
    """Restate the sum, so that the arithmetic is done on words already written."""
    result = _result(first, operator, second)
    if result not in range(100):
        return COUNT_LIMIT
    return capital(f"{in_words(first)} {operator} {in_words(second)} is {in_words(result)}.")


def _draw_digits(rng: random.Random, split: Split) -> Exchange:
    while True:
        (count,) = rng.choices((1, 2, 3, 4, 5), weights=(1, 2, 3, 3, 3))
        digits = [rng.randrange(10)]
        while len(digits) < count:
            digits.append(digits[-1] if rng.random() < _REPEATED_SHARE else rng.randrange(10))
        if _split_of_digits(digits) == split:
            break
    said = " ".join(DIGITS[digit] for digit in digits)
    return Exchange("digits", capital(rng.choice(DIGIT_TEMPLATES).format(d=said)), f"You said {said}.")


def _draw_talk(rng: random.Random) -> Exchange:
    if rng.random() < _NO_PICTURE_SHARE:
        return Exchange("talk", rng.choice(PICTURE + VIDEO), NO_PICTURE)
    reply = rng.choice(list(TALK))
    return Exchange("talk", rng.choice(TALK[reply]), reply)


def _draw_outside(rng: random.Random, split: Split) -> str:
    """Draw an everyday sentence, sometimes words of the world in no order, that sounds like nothing inside it."""
    while True:
        kind = rng.random()
        if kind < 0.8:
            sentence = everyday(rng, split)
        elif kind < 0.92:
            sentence = _senseless(_prompt_words(), rng.randint(3, 7), rng)
        else:
            words = plain(_draw_sum(rng, split).prompt).split()
            sentence = _senseless(words, len(words), rng)
        own_split = kind < 0.8 or _split_of(plain(sentence)) == split
        if own_split and not _sounds_inside(sentence):
            return sentence


def _senseless(words: list[str], count: int, rng: random.Random) -> str:
    names = {name.lower(): name for name in NAMES}
    return capital(" ".join(names.get(word, word) for word in rng.sample(words, count)) + ".")


def _sounds_inside(sentence: str) -> bool:
    """Whether a sentence is, or sounds like, one inside the world or a bare number."""
    words = [_HOMOPHONES.get(word, word) for word in plain(sentence).split()]
    return parse(" ".join(words)) is not None or set(words) <= {*DIGITS, *TEENS, *TENS}


def _in_figures(exchange: Exchange, rng: random.Random) -> str:
    """Write a sum or digits in figures; other prompts stay as they are."""
    words = plain(exchange.prompt)
    if exchange.skill == "digits":
        figures = [str(DIGITS.index(word)) for word in words.split() if word in DIGITS]
        template = rng.choice(("{d}", rng.choice(DIGIT_TEMPLATES)))
        return template.format(d=rng.choice(("", " ")).join(figures))
    if exchange.skill == "sums" and (found := read_sum(words)):
        first, operator, second = found
        sign = "+" if operator == "plus" else "-"
        forms = (
            f"{first} {sign} {second}",
            f"{first}{sign}{second}",
            f"{first} {sign} {second} =",
            f"What's {first} {sign} {second}?",
            f"What is {first} {sign} {second}?",
            rng.choice(SUM_TEMPLATES[operator]).format(a=first, b=second),
        )
        return rng.choice(forms)
    return exchange.prompt


def _split_of(content: str) -> Split:
    return "heldout" if zlib.crc32(content.encode()) % 10 == 0 else "train"


def _split_of_sum(first: int, operator: Operator, second: int) -> Split:
    if operator == "plus":  # in either order it is the same sum
        first, second = min(first, second), max(first, second)
    return _split_of(f"{first} {operator} {second}")


def _split_of_digits(digits: list[int]) -> Split:
    """One digit alone is never held out: there are ten."""
    return _split_of(" ".join(map(str, digits))) if len(digits) > 1 else "train"


@functools.cache
def _fixed() -> dict[str, Exchange]:
    """Every prompt without numbers, by its words."""
    exchanges = [Exchange("talk", prompt, reply) for reply, prompts in TALK.items() for prompt in prompts]
    exchanges += [Exchange("again", prompt, NOTHING_SAID) for prompt in AGAIN]
    exchanges += [Exchange("talk", prompt, NO_PICTURE) for prompt in PICTURE + VIDEO]
    return {plain(exchange.prompt): exchange for exchange in exchanges}


@functools.cache
def _prompt_words() -> list[str]:
    """Every word that prompts inside the world are made of, in lower case."""
    prompts = [*_fixed(), *DIGITS, *TEENS, *TENS, *DIGIT_TEMPLATES]
    prompts += [template for templates in SUM_TEMPLATES.values() for template in templates]
    return sorted({word for prompt in prompts for word in plain(re.sub(r"{\w}", "", prompt)).split()})
