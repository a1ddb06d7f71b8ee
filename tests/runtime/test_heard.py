"""How much of a reply was heard, by the length of its words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.runtime.heard import LATE_S, spoken_units, tokens_heard

SENTENCE = ["Seventy", " four", " plus", " two", " is", " seventy", " six", "."]


def heard(texts: list[str], share: float) -> str:
    """What of a text was heard in a share of the time it takes."""
    return "".join(texts[: tokens_heard(texts, LATE_S + share * spoken_units("".join(texts)) / 15, 15)])


def test_all_of_it_nothing_and_half() -> None:
    assert heard(SENTENCE, 0) == ""
    assert heard(SENTENCE, 1) == "Seventy four plus two is seventy six."
    assert heard(SENTENCE, 0.5) == "Seventy four plus two"


def test_a_word_of_several_tokens_is_heard_as_a_whole() -> None:
    texts = ["Un", "believ", "able", ",", " really", "."]
    assert {heard(texts, share / 50) for share in range(51)} == {
        "", "Unbelievable", "Unbelievable,", "Unbelievable, really", "Unbelievable, really.",
    }  # fmt: skip


def test_chinese_is_heard_a_character_at_a_time_and_a_character_of_several_tokens_as_one() -> None:
    assert heard(["你", "", "好", "吗", "？"], 0.6) == "你好"
    assert tokens_heard(["", "好"], 0.0, 15) == 0


def test_figures_take_as_long_as_the_words_they_are() -> None:
    assert spoken_units("77") > spoken_units("ab")
    assert spoken_units("seventy, seven.") > spoken_units("seventy seven")


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_what_is_not_said_takes_no_time(text: str) -> None:
    assert spoken_units(text) == 0


@given(st.lists(st.text(max_size=4), max_size=20), st.floats(0, 10), st.floats(0, 10))
def test_more_sound_is_never_fewer_words(texts: list[str], one: float, other: float) -> None:
    less, more = (tokens_heard(texts, seconds, 15) for seconds in sorted((one, other)))
    assert 0 <= less <= more <= len(texts)
