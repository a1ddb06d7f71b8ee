"""The benchmark: its arithmetic, and that what is told to be said is said, with all of the work."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from nearfield.apps.bench.first_sound import (
    Comparison,
    answer_length,
    compare,
    question_length,
    real_time_factor,
    scripted,
    set_answer,
)
from nearfield.apps.cli.common import DEMO_BUNDLE
from nearfield.runtime.events import AudioChunk, TurnEnd
from nearfield.runtime.messages import Text
from nearfield.runtime.omni import Omni


@pytest.fixture(scope="module")
def omni() -> Omni:
    return Omni.load(DEMO_BUNDLE, threads=1)


def test_a_ratio_is_the_median_of_the_pairs_ratios() -> None:
    comparison = Comparison("this", ("a", "b"), [1.0, 10.0, 2.0, 4.0], [2.0, 10.0, 3.0, 4.0], limit=1.2)
    assert comparison.ratio == 1.25
    assert comparison.spread[0] <= 1.25 <= comparison.spread[1]
    assert str(comparison).endswith("MISSED")
    assert str(Comparison("this", ("a", "b"), [1.0, 1.0], [1.0, 1.0], limit=1.0)).endswith("ok")


def test_each_way_goes_first_every_other_time() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return 1.0

    compare("this", ("a", "b"), lambda: way("a"), lambda: way("b"), limit=1.0, repeats=4)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_the_reply_is_what_was_told(omni: Omni) -> None:
    told, thinker = scripted(omni)
    thinker.say(omni.parts.tokenizer.encode("You said one two three."))
    conversation = told.conversation(seed=0, max_codes=200)
    conversation.attach(Text("What is two plus two?"))
    events = list(conversation.respond())
    end = events[-1]
    assert isinstance(end, TurnEnd)
    assert (end.text, end.stop_reason) == ("You said one two three.", "end")
    assert any(isinstance(event, AudioChunk) for event in events)
    assert (end.timing.codes, end.speech_stop_reason) == (200, "max_codes")  # more than these words take
    conversation.close()


def test_a_random_model_answers_at_the_length_it_is_told(bundle_3b: Path) -> None:
    conversation, [question] = set_answer(Omni.load(bundle_3b, threads=1))
    conversation.listen(question)
    end = list(conversation.respond())[-1]
    assert isinstance(end, TurnEnd)
    assert (end.timing.reply_tokens, end.timing.codes) == (16, 250)
    conversation.close()


def test_work_is_counted_for_a_second_of_speech(omni: Omni) -> None:
    conversation, questions = set_answer(omni)
    started = time.perf_counter()
    factor = real_time_factor(conversation, questions)
    assert 0 < factor * 5 < time.perf_counter() - started


@pytest.mark.parametrize("measure", [question_length, answer_length])
def test_a_comparison_has_a_time_for_each_way_and_repeat(omni: Omni, measure: object) -> None:
    assert callable(measure)
    comparison = measure(omni, 2)
    assert len(comparison.first_ms) == len(comparison.second_ms) == 2
    assert min(*comparison.first_ms, *comparison.second_ms) > 0
