"""The machinery of `make nano-eval`: what is counted, what is missed, and how the recordings are changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
from nearfield.nano.conditions import CONDITIONS
from nearfield.nano.evaluate import AIMS, Judge
from nearfield.nano.questions import HELDOUT, INDEX, Item, Turn, load, messages
from nearfield.nano.scores import Score, Scores
from nearfield.runtime.audio import SAMPLE_RATE_HZ
from nearfield.runtime.messages import Audio, Image, Message, Text, Video
from numpy.typing import NDArray

SUM = Item("typed", "sums", "7 + 4", "Seven plus four is eleven.")


def _tone(seconds: float = 0.5) -> NDArray[np.float32]:
    times = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    return (0.2 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def _score(right: int, total: int, limit: float | None = None, reference_right: int | None = None) -> Score:
    return Score("a task", "as recorded", "answers", right, total, limit, 1.0, reference_right)


def _scores(*scores: Score, quick: bool = False) -> Scores:
    return Scores("0" * 64, 1, "a machine", 2, quick, False, 1.0, 2.0, 3.0, list(scores))


def _judge(*replies: str) -> Judge:
    """Answers one reply after the other."""
    left = iter(replies)

    def answer(_: Sequence[Message]) -> str:
        return next(left)

    return Judge(answer)


def test_only_exact_answers_count() -> None:
    judge = _judge("Seven plus four is eleven.", "Seven plus four is eleven", "seven plus four is eleven.", "")
    score = judge.score([SUM] * 4)
    assert (score.right, score.total, score.unit) == (1, 4, "answers")
    assert [miss.found for miss in judge.misses] == ["Seven plus four is eleven", "seven plus four is eleven.", ""]


def test_transcripts_count_words_whatever_their_marks() -> None:
    item = msgspec.structs.replace(SUM, task="transcript", reply="What is seven plus four?")
    score = _judge("what is eleven plus", "What is seven plus four").score([item] * 2)
    assert (score.right, score.total, score.unit) == (8, 10, "words")


def test_more_wrong_words_than_there_are_is_a_score_of_none() -> None:
    item = msgspec.structs.replace(SUM, task="transcript", reply="Four.")
    assert _judge("one two three").score([item]).right == 0


def test_the_reference_is_asked_the_same_and_counted_beside() -> None:
    asked: list[Sequence[Message]] = []

    def reference(conversation: Sequence[Message]) -> str:
        asked.append(conversation)
        return SUM.reply

    score = _judge("", SUM.reply).score([SUM] * 2, reference=reference)
    assert (score.right, score.reference_right, score.reference_difference) == (1, 2, -0.5)
    assert [_texts(conversation)[-1] for conversation in asked] == ["7 + 4", "7 + 4"]


def test_a_reply_is_listened_to_word_by_word() -> None:
    heard = [(SUM, SUM.reply, ["seven", "plus", "five", "is", "eleven"]), (SUM, SUM.reply, [])]
    score = _judge().heard("speech", "Ethan", heard)
    assert (score.right, score.total, score.condition) == (4, 10, "Ethan")


def test_replies_without_words_are_no_success() -> None:
    assert _judge().heard("speech", "Ethan", [(SUM, "", [])]).share == 0


def test_every_task_has_an_aim_and_those_of_the_issue_their_limits() -> None:
    limits = {name: aim.limit for name, aim in AIMS.items() if aim.limit is not None}
    assert limits == {
        "sentences": 0.97,
        "voices": 0.90,
        "transcript": 0.95,
        "again": 0.95,
        "picture": 0.98,
        "video": 0.95,
        "refusal": 0.90,
        "speech": 0.95,
    }


@pytest.mark.parametrize(("right", "missed"), [(97, False), (96, True)])
def test_a_score_below_its_limit_is_a_miss(right: int, missed: bool) -> None:
    assert _score(right, 100, 0.97).misses() is missed
    assert bool(_scores(_score(right, 100, 0.97)).missed()) is missed


def test_a_quick_look_misses_only_what_is_surely_too_low() -> None:
    assert not _scores(_score(9, 10, 0.97), quick=True).missed()
    assert _scores(_score(2, 10, 0.97), quick=True).missed()


def test_what_is_only_told_is_never_missed() -> None:
    assert not _score(0, 10).misses()


def test_the_interval_is_wilsons() -> None:
    low, high = _score(90, 100).interval
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)  # Newcombe 1998's method 3 gives the same
    assert _score(10, 10).interval[1] == 1.0
    assert _score(0, 10).interval[0] == 0.0


def test_scores_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    scores = _scores(_score(9, 10, 0.9, 10), _score(1, 2))
    scores.save(tmp_path / "new" / "scores.json")
    assert Scores.load(tmp_path / "new" / "scores.json") == scores


def test_the_table_shows_share_limit_reference_and_verdict() -> None:
    lines = _scores(_score(9, 10, 0.95, 10)).table().splitlines()
    assert lines[1].split() == [
        *("a", "task", "as", "recorded", "9", "10", "answers", "90.0", "59.6", "–", "98.2"),
        *("95.0", "100.0", "-10.0", "1", "too", "low"),
    ]


@pytest.mark.parametrize("name", list(CONDITIONS))
def test_changed_recordings_stay_sound_the_runtime_takes(name: str) -> None:
    tone = _tone()
    changed = CONDITIONS[name](tone)
    assert changed.dtype == np.float32
    assert abs(len(changed) - len(tone)) <= 4
    assert np.abs(changed).max() <= 1.01
    assert np.array_equal(changed, CONDITIONS[name](tone))


def test_levels_and_noise_are_what_they_are_called() -> None:
    tone = _tone()
    assert CONDITIONS["−12 dB"](tone).std() == pytest.approx(tone.std() * 10 ** (-12 / 20), rel=1e-3)
    assert CONDITIONS["+12 dB"](tone).std() == pytest.approx(tone.std() * 10 ** (12 / 20), rel=1e-3)
    noise = CONDITIONS["noise 15 dB below"](tone) - tone
    assert 20 * np.log10(tone.std() / noise.std()) == pytest.approx(15, abs=0.2)


def test_nothing_above_half_the_lower_rate_is_left() -> None:
    times = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    high = (0.5 * np.sin(2 * np.pi * 6000 * times)).astype(np.float32)
    assert CONDITIONS["8 kHz"](high)[200:-200].std() < 0.01 * high.std()
    assert CONDITIONS["48 kHz"](high)[200:-200].std() == pytest.approx(high.std(), rel=0.02)


def test_a_conversation_is_system_history_and_prompt(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "0.ogg", _tone(), SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    item = Item(
        "again",
        "again",
        "Say that again.",
        "Hello, I am Nano.",
        recording="0.ogg",
        history=(Turn("Hi.", "Hello, I am Nano."),),
    )
    conversation = messages(item, tmp_path, CONDITIONS["−12 dB"])
    assert [message.role for message in conversation] == ["system", "user", "assistant", "user"]
    assert _texts(conversation)[1:] == ["Hi.", "Hello, I am Nano."]
    (said,) = conversation[-1].content
    assert isinstance(said, Audio)
    assert np.abs(said.samples).max() < 0.06


def test_pictures_and_clips_are_drawn_again_from_their_seeds() -> None:
    picture = Item("picture", "picture", "What is this?", "A red circle.", seed=3)
    (one, _), (same, _) = (messages(picture)[-1].content for _ in range(2))
    assert isinstance(one, Image) and isinstance(same, Image)
    assert np.array_equal(one.pixels, same.pixels)
    shown, asked = messages(Item("video", "video", "Where does it go?", "It moves up.", seed=3))[-1].content
    assert isinstance(shown, Video) and isinstance(asked, Text)


@pytest.mark.skipif(not (HELDOUT / INDEX).exists(), reason="nano/heldout is not made yet")
def test_the_repository_holds_all_recordings_and_enough_of_each_task() -> None:
    items = load()
    files = {item.recording for item in items} | {turn.recording for item in items for turn in item.history}
    assert {file.name for file in HELDOUT.glob("*.ogg")} == files - {None}
    assert {item.task for item in items} == set(AIMS)
    assert min(sum(item.task == task for item in items) for task in AIMS) >= 40
    assert sum(file.stat().st_size for file in HELDOUT.iterdir()) <= 3_000_000


def _texts(conversation: Sequence[Message]) -> list[str]:
    return [part.text for message in conversation for part in message.content if isinstance(part, Text)]
