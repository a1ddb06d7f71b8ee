"""The sentences of Nano's world as tables: what it is asked, in how many wordings, and what it replies.

Slots: {a} and {b} are numbers in words, {d} is a string of digits in words. A template's marks and capitals are the
ones a transcript has. Once training has begun, a change here changes the tokenizer, and with it what is trained.
"""

from __future__ import annotations

import functools
import re
from typing import Literal

Operator = Literal["plus", "minus"]

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = ("left", "right", "up", "down")

REFUSAL = "Sorry, I did not understand."
NO_PICTURE = "I do not see a picture."
NOTHING_SAID = "I have not said anything yet."
COUNT_LIMIT = "I only count from zero to ninety nine."

TRANSCRIPT_SYSTEM = (
    "Write down what you hear.",
    "Write down the words you hear.",
    "Write what is said.",
    "Transcribe the speech.",
    "Please transcribe what you hear.",
    "You are a speech recognition model.",
)

SUM_TEMPLATES: dict[Operator, tuple[str, ...]] = {
    "plus": (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "{a} plus {b}.",
        "Add {a} and {b}.",
        "Tell me {a} plus {b}.",
        "What does {a} plus {b} make?",
        "Please add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "Can you add {a} and {b}?",
    ),
    "minus": (
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "{a} minus {b}.",
        "Take {b} from {a}.",
        "Tell me {a} minus {b}.",
        "What does {a} minus {b} make?",
        "Subtract {b} from {a}.",
        "Please take {b} from {a}.",
        "Can you take {b} from {a}?",
    ),
}

DIGIT_TEMPLATES = (
    "{d}.",
    "Say {d}.",
    "Repeat {d}.",
    "Please say {d}.",
    "Please repeat {d}.",
    "Can you say {d}?",
    "Repeat after me, {d}.",
)

TALK = {  # reply: wordings
    "Hello, I am Nano.": ("Hello.", "Hi.", "Hello Nano.", "Hi Nano.", "Hello there.", "Hi there.", "Hey Nano."),
    "Good morning.": ("Good morning.", "Good morning Nano."),
    "Good afternoon.": ("Good afternoon.", "Good afternoon Nano."),
    "Good evening.": ("Good evening.", "Good evening Nano."),
    "Good night.": ("Good night.", "Good night Nano."),
    "I am fine, thank you.": ("How are you?", "How are you today?", "How do you do?", "Are you well?"),
    "My name is Nano.": (
        "What is your name?",
        "Who are you?",
        "Tell me your name.",
        "What are you called?",
        "Do you have a name?",
        "May I have your name?",
    ),
    "I am a very small model.": ("What are you?", "Are you a robot?", "Are you a person?", "Are you human?"),
    "I can count, repeat, talk and see shapes.": (
        "What can you do?",
        "What do you do?",
        "What do you know?",
        "Can you help me?",
        "Help me.",
        "Tell me what you can do.",
    ),
    "You are welcome.": ("Thank you.", "Thanks.", "Thank you very much.", "Thanks a lot.", "Thank you Nano."),
    "Goodbye.": ("Goodbye.", "Bye.", "Bye bye.", "Goodbye Nano.", "See you later.", "See you soon."),
    "On your own computer.": ("Where do you run?", "Where are you?", "Where do you live?"),
    "Yes, I hear you.": ("Can you hear me?", "Do you hear me?", "Are you there?", "Are you listening?"),
    "No, I work offline.": ("Are you online?", "Do you need the internet?", "Do you use the internet?"),
    "I come from the Nearfield project.": ("Who made you?", "Who built you?", "Where do you come from?"),
    "Yes, I can speak.": ("Can you speak?", "Can you talk?", "Do you speak?"),
    "I am quite new.": ("How old are you?", "Are you old?", "Are you new?"),
    "Yes, show me a picture.": ("Can you see?", "Can you see pictures?", "Do you have eyes?"),
    "I am glad.": ("Well done.", "Very good.", "That is right."),
}

AGAIN = (
    "Say that again.",
    "Say it again.",
    "Please say that again.",
    "Can you say that again?",
    "Repeat that.",
    "Please repeat that.",
    "Can you repeat that?",
    "Pardon?",
    "What did you say?",
    "Once more please.",
)

PICTURE = (
    "What is this?",
    "What do you see?",
    "What can you see?",
    "What does the picture show?",
    "What is in the picture?",
    "What do you see in the picture?",
    "Describe the picture.",
    "Tell me what you see.",
    "Which shape is this?",
)

VIDEO = (
    "Which way does it move?",
    "Which way is it moving?",
    "Which way does it go?",
    "Where does it go?",
    "Where is it going?",
    "In which direction does it move?",
    "Which way does the shape move?",
    "What happens in the video?",
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NAMES = ("I", "Nano", "Nearfield")  # written with a capital wherever they stand


def describe(colour: str, shape: str) -> str:
    """Return the reply to a picture."""
    return f"{'An' if colour[0] in 'aeiou' else 'A'} {colour} {shape}."


def describe_move(direction: str) -> str:
    """Return the reply to a video."""
    return f"It moves {direction}."


def in_words(number: int) -> str:
    """Spell 0–99 as it is said: "thirty seven"."""
    tens, unit = divmod(number, 10)
    if tens < 2:
        return (DIGITS + TEENS)[number]
    return TENS[tens - 2] + (f" {DIGITS[unit]}" if unit else "")


def plain(sentence: str) -> str:
    """Return the words of a sentence as they sound: lower case, no marks."""
    return " ".join(re.findall(r"\w+", sentence.lower()))


def capital(text: str) -> str:
    """Return the text with its first letter a capital."""
    return text[0].upper() + text[1:]


def read_sum(words: str) -> tuple[int, Operator, int] | None:
    """Find the sum that plain words ask for, None if they ask for none."""
    for operator, pattern in _sum_patterns():
        if match := pattern.fullmatch(words):
            return _number_of()[match["a"]], operator, _number_of()[match["b"]]
    return None


def read_digits(words: str) -> str | None:
    """Find the one to five digits, in words, that plain words ask to say back, None if they ask for none."""
    matches = (pattern.fullmatch(words) for pattern in _digit_patterns())
    return next((match["d"] for match in matches if match), None)


@functools.cache
def _number_of() -> dict[str, int]:
    return {in_words(number): number for number in range(100)}


@functools.cache
def _sum_patterns() -> list[tuple[Operator, re.Pattern[str]]]:
    number = "|".join(_number_of())
    return [
        (operator, _pattern(template, a=number, b=number))
        for operator, templates in SUM_TEMPLATES.items()
        for template in templates
    ]


@functools.cache
def _digit_patterns() -> list[re.Pattern[str]]:
    digit = "|".join(DIGITS)
    return [_pattern(template, d=f"(?:{digit})(?: (?:{digit})){{0,4}}") for template in DIGIT_TEMPLATES]


def _pattern(template: str, **slots: str) -> re.Pattern[str]:
    """Turn a template into a pattern over plain words, a named group for each slot."""
    words = re.sub(r"[^\w\s{}]", "", template.lower())
    return re.compile(words.format(**{name: f"(?P<{name}>{pattern})" for name, pattern in slots.items()}))
