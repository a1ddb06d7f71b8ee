"""The judge of nano's voice: words, their edit distance, and a grammar that holds every reply."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import NearfieldError
from nearfield.nano.heldout import NATURAL_READERS
from nearfield.nano.questions import HELDOUT, INDEX, load
from nearfield.nano.recogniser import Recogniser, grammar, word_errors, words
from nearfield.nano.world import Skill, draw
from nearfield.runtime.audio import SAMPLE_RATE_HZ, read_audio

_WORDS = st.lists(st.sampled_from(["seven", "plus", "four", "is"]), max_size=6)
_SKILLS: tuple[Skill, ...] = ("sums", "digits", "talk", "again", "picture", "video", "refusal")


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return Recogniser()


def test_words_are_what_is_heard_of_a_sentence() -> None:
    assert words("Sorry, I did not understand.") == ["sorry", "i", "did", "not", "understand"]


@pytest.mark.parametrize(
    ("heard", "errors"),
    [("you said four two", 0), ("you said four", 1), ("you said four two two", 1), ("you said five two", 1), ("", 4)],
)
def test_word_errors_counts_what_is_put_in_left_out_and_replaced(heard: str, errors: int) -> None:
    assert word_errors(words("You said four two."), words(heard)) == errors


@given(_WORDS, _WORDS, _WORDS)
def test_word_errors_is_a_distance(first: list[str], second: list[str], third: list[str]) -> None:
    assert word_errors(first, second) == word_errors(second, first)
    assert (word_errors(first, second) == 0) == (first == second)
    assert word_errors(first, third) <= word_errors(first, second) + word_errors(second, third)


def test_the_grammar_has_every_word_of_every_reply() -> None:
    rng = random.Random(0)
    replies = {draw(skill, rng, "train").reply for skill in _SKILLS for _ in range(200)}
    spoken = set(words(grammar()))
    assert {word for reply in replies for word in words(reply)} <= spoken


def test_a_word_without_pronunciation_is_named() -> None:
    with pytest.raises(NearfieldError, match="xyzzyq"):
        Recogniser("#JSGF V1.0;\ngrammar replies;\npublic <reply> = hello | xyzzyq;")


def test_silence_is_no_error(recogniser: Recogniser) -> None:
    assert isinstance(recogniser.hear(np.zeros(24_000, np.float32), 24_000), list)


@pytest.mark.skipif(not (HELDOUT / INDEX).exists(), reason="nano/heldout is not made yet")
@pytest.mark.parametrize("voice", sorted(NATURAL_READERS))
def test_natural_speech_is_understood_in_any_order_and_at_another_rate(recogniser: Recogniser, voice: str) -> None:
    items = [item for item in load() if item.task == "ceiling" and item.voice == voice][:3]
    sounds = [read_audio(HELDOUT / str(item.recording)) for item in items]
    forwards = [recogniser.hear(sound, SAMPLE_RATE_HZ) for sound in sounds]
    backwards = [recogniser.hear(sound, SAMPLE_RATE_HZ) for sound in reversed(sounds)][::-1]
    assert forwards == backwards
    wrong = sum(word_errors(words(item.reply), heard) for item, heard in zip(items, forwards, strict=True))
    assert wrong <= 1
