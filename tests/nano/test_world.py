"""Nano's sentences: one prompt has one reply, nothing held out is trained on, and nothing refused sounds right."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import get_args

import pytest
from nearfield.nano.outside import FRAMES, WORDS, everyday
from nearfield.nano.sentences import AGAIN, NO_PICTURE, NOTHING_SAID, PICTURE, TALK, VIDEO, plain, read_digits, read_sum
from nearfield.nano.world import (
    COUNT_LIMIT,
    REFUSAL,
    Exchange,
    Skill,
    Split,
    answer,
    close,
    draw,
    draw_hard,
    examples,
    hard,
    in_words,
    parse,
    transcript,
    typed,
    vocabulary,
)

SKILLS: tuple[Skill, ...] = get_args(Skill)
SPLITS: tuple[Split, ...] = ("train", "heldout")


def _draws(skill: Skill, split: Split, count: int = 3000) -> Iterator[Exchange]:
    rng = random.Random(f"{skill} {split}")
    return (draw(skill, rng, split) for _ in range(count))


def _content(exchange: Exchange) -> object:
    """What is held out of digits, or of a sum: its operands, in either order where that is the same."""
    words = plain(exchange.prompt)
    if exchange.skill == "digits":
        return read_digits(words)
    found = read_sum(words)
    assert found is not None
    first, operator, second = found
    return (operator, *sorted((first, second))) if operator == "plus" else found


def _figures_in_words(text: str) -> str:
    """Read figures aloud; a sign is its operator."""
    text = text.lower().replace("what's", "what is").replace("=", " ")
    text = re.sub(r"(\d)\s*\+\s*(\d)", r"\1 plus \2", text)
    text = re.sub(r"(\d)\s*-\s*(\d)", r"\1 minus \2", text)
    return re.sub(r"\d+", lambda figures: in_words(int(figures[0])), text)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("skill", ["sums", "digits", "talk", "again"])
def test_words_alone_give_the_reply(skill: Skill, split: Split) -> None:
    for exchange in _draws(skill, split):
        for heard in (exchange.prompt, plain(exchange.prompt)):
            found = parse(heard)
            assert found is not None and (found.skill, found.reply) == (skill, exchange.reply)


def test_fixed_prompts_are_of_one_skill() -> None:
    prompts = [*AGAIN, *PICTURE, *VIDEO, *(prompt for wordings in TALK.values() for prompt in wordings)]
    assert len({plain(prompt) for prompt in prompts}) == len(prompts)
    for prompt in PICTURE + VIDEO:
        assert parse(prompt) == Exchange("talk", prompt, NO_PICTURE)


def test_a_sentence_is_written_in_one_way() -> None:
    written: dict[str, str] = {}
    for skill in SKILLS:
        for split in SPLITS:
            for exchange in _draws(skill, split, 1000):
                assert written.setdefault(plain(exchange.prompt), exchange.prompt) == transcript(exchange.prompt)


@pytest.mark.parametrize("operator", ["plus", "minus"])
def test_every_sum_is_right(operator: str) -> None:
    for first in range(100):
        for second in range(100):
            result = first + second if operator == "plus" else first - second
            words = f"{in_words(first)} {operator} {in_words(second)}"
            found = parse(f"What is {words}?")
            right = f"{words} is {in_words(result)}.".capitalize() if 0 <= result <= 99 else COUNT_LIMIT
            assert found is not None and found.reply == right


def test_taking_from_turns_the_operands_round() -> None:
    for prompt in ("Take four from nine.", "Subtract four from nine.", "Can you take four from nine?"):
        found = parse(prompt)
        assert found is not None and found.reply == "Nine minus four is five."


def test_numbers_and_digits_in_words() -> None:
    assert [in_words(number) for number in (0, 7, 13, 20, 37, 99)] == [
        "zero", "seven", "thirteen", "twenty", "thirty seven", "ninety nine"
    ]  # fmt: skip
    assert len({in_words(number) for number in range(100)}) == 100
    assert parse("four two nine") == Exchange("digits", "four two nine", "You said four two nine.")
    assert parse("seven") == Exchange("digits", "seven", "You said seven.")
    assert parse("one two three four five six") is None
    assert parse("thirty seven") is None


@pytest.mark.parametrize("skill", ["sums", "digits"])
def test_no_held_out_numbers_are_trained_on(skill: Skill) -> None:
    train, heldout = ({_content(exchange) for exchange in _draws(skill, split, 15_000)} for split in SPLITS)
    assert train.isdisjoint(heldout)
    assert len(heldout) > 400


@pytest.mark.parametrize("skill", ["sums", "digits"])
@pytest.mark.parametrize("split", SPLITS)
def test_what_is_typed_is_what_is_said(skill: Skill, split: Split) -> None:
    rng = random.Random(0)
    for exchange in _draws(skill, split):
        text = typed(exchange, rng)
        if skill == "digits":
            text = re.sub(r"(?<=\d)(?=\d)", " ", text)
        found = parse(_figures_in_words(text))
        assert found is not None and found.reply == exchange.reply, text


def test_other_prompts_are_typed_in_their_own_words() -> None:
    rng = random.Random(0)
    for skill in ("talk", "again", "picture", "video", "refusal"):
        for exchange in _draws(skill, "train", 300):
            assert plain(typed(exchange, rng)) == plain(exchange.prompt)


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_refused_sounds_like_the_world(split: Split) -> None:
    homophones = {"for": "four", "to": "two", "ate": "eight"}
    numbers = {word for number in range(100) for word in in_words(number).split()}
    for exchange in _draws("refusal", split, 5000):
        assert exchange.reply == REFUSAL
        words = [homophones.get(word, word) for word in plain(exchange.prompt).split()]
        assert parse(" ".join(words)) is None
        assert not set(words) <= numbers


def test_held_out_sentences_have_words_or_frames_no_one_trained_on() -> None:
    rng = random.Random(0)
    train = [everyday(rng, "train") for _ in range(15_000)]
    trained_words = {word for sentence in train for word in plain(sentence).split()}
    heldout = {everyday(rng, "heldout") for _ in range(3000)}
    assert heldout.isdisjoint(train)
    own_words = Counter(bool(set(plain(sentence).split()) - trained_words) for sentence in heldout)
    assert own_words[True] > 1000
    listed = {word.lower() for words in WORDS.values() for entry in words.split() for word in entry.split("_")}
    assert len(listed - trained_words) > 30
    assert len(FRAMES) == len(set(FRAMES))


def test_again_repeats_the_reply_before() -> None:
    exchange = draw("again", random.Random(0), "train")
    assert answer(exchange, None) == NOTHING_SAID
    assert answer(exchange, "You said four two nine.") == "You said four two nine."
    assert answer(Exchange("talk", "Bye.", "Goodbye."), "Good morning.") == "Goodbye."


def test_what_is_hard() -> None:
    assert hard("You said four two two.")
    assert hard(COUNT_LIMIT)
    assert not hard("You said two four two.")
    assert not hard("Two plus two is four.")
    assert not hard("Nine minus nine is zero.")


def test_what_is_close() -> None:
    assert close("Ninety minus eighty five is five.")
    assert not close("Ninety one minus eighty five is six.")
    assert close("Forty five plus forty five is ninety.")
    assert not close("Forty five plus forty four is eighty nine.")
    assert not close("Zero plus zero is zero.")
    assert not close("Ninety nine minus five is ninety four.")
    assert close("Twenty one plus sixteen is thirty seven.")
    assert close("Sixty minus eight is fifty two.")
    assert not close("Sixty two minus eight is fifty four.")
    assert not close("Twenty plus eleven is thirty one.")
    assert not close(COUNT_LIMIT)
    assert not close("You said nine zero.")


@pytest.mark.parametrize("or_close", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_hard_exchanges_are_hard_and_of_their_split(split: Split, or_close: bool) -> None:
    rng = random.Random(f"hard {split}")
    drawn = [draw_hard(rng, split, or_close=or_close) for _ in range(600)]
    asked = [exchange.reply for exchange in drawn if exchange.skill != "again"]
    assert all(hard(reply) or (or_close and close(reply)) for reply in asked)
    assert any(close(reply) for reply in asked) == or_close
    assert {exchange.skill for exchange in drawn} == {"sums", "digits", "again"}
    other = {_content(exchange) for skill in ("sums", "digits") for exchange in _draws(skill, SPLITS[split == "train"])}
    assert other.isdisjoint(_content(exchange) for exchange in drawn if exchange.skill != "again")


@pytest.mark.parametrize("split", SPLITS)
def test_shares_of_sums(split: Split) -> None:
    replies = [exchange.reply for exchange in _draws("sums", split)]
    assert 0.12 < replies.count(COUNT_LIMIT) / len(replies) < 0.18


def test_draws_are_repeatable() -> None:
    for skill in SKILLS:
        assert list(_draws(skill, "train", 50)) == list(_draws(skill, "train", 50))


def test_vocabulary_holds_every_word_of_prompts_and_replies() -> None:
    known = set(vocabulary())
    assert known == {word for sentence in examples() for word in re.findall(r"\w+", sentence)}
    for skill in SKILLS:
        for exchange in _draws(skill, "train", 1000):
            assert set(re.findall(r"\w+", exchange.reply)) <= known
            if skill != "refusal":
                assert set(re.findall(r"\w+", exchange.prompt)) <= known
