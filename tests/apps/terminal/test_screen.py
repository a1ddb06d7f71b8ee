"""The screen: what it says in every state and under every trouble, in any size."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.terminal.screen import frame
from nearfield.apps.terminal.shown import NOTE_S, SILENT_AFTER_S, Shown, meter
from nearfield.apps.voice.notices import (
    DeviceNotice,
    HeardText,
    Latency,
    Level,
    ReplyText,
    StateChanged,
    Trouble,
    TurnDone,
)
from nearfield.apps.voice.sound_device import DeviceState
from nearfield.apps.voice.turn_taking import PushToTalk, State
from rich.cells import cell_len
from rich.console import Console

WORKING = DeviceState(working=True, microphone="USB Headset", speaker="Laptop", trouble=None)
GONE = DeviceState(working=False, microphone=None, speaker="Laptop", trouble="the microphone (USB Headset) is gone")
LATENCY = Latency(silence_wait_ms=640.0, first_token_ms=45.0, first_audio_ms=110.0, first_sound_ms=812.0)


def new() -> Shown:
    """A conversation whose devices work, at time 0."""
    shown = Shown("nano", "cpu", "Chelsie")
    shown.take(DeviceNotice(WORKING), 0.0)
    return shown


def talked() -> Shown:
    """After two turns, the second interrupted."""
    shown = new()
    shown.take(HeardText(1, "What is seven plus four?"), 0.0)
    shown.take(ReplyText(1, "Seven plus"), 0.0)
    shown.take(ReplyText(1, "Seven plus four is eleven."), 0.0)
    shown.take(TurnDone(1, 1.9, "Seven plus four is eleven.", False, LATENCY), 0.0)
    shown.attached("star.png")
    shown.take(ReplyText(2, "I see a purple star."), 0.0)
    shown.take(TurnDone(2, 1.2, "I see a", True, LATENCY), 0.0)
    return shown


def draw(shown: Shown, width: int = 80, height: int = 24, now_s: float = 0.0, encoding: str = "utf-8") -> str:
    """What stands on a screen of this size."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, force_terminal=True, legacy_windows=False)
    return "\n".join(line.plain for line in frame(shown, console, (width, height), now_s))


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (State.IDLE, "Ready  speak whenever you like"),
        (State.LISTENING, "Listening"),
        (State.PAUSED, "Listening"),
        (State.THINKING, "Thinking"),
        (State.SPEAKING, "Speaking  speak to interrupt"),
        (State.DOUBTFUL, "Speaking  waits: did you say something?"),
    ],
)
def test_every_state_is_a_word(state: State, word: str) -> None:
    shown = new()
    shown.take(StateChanged(state), 0.0)
    assert word in draw(shown)


def test_before_the_devices_are_open_nothing_claims_to_listen() -> None:
    assert "Starting" in draw(Shown("nano", "cpu", "Chelsie"))


@pytest.mark.parametrize("state", State)
def test_without_frames_nothing_claims_to_listen(state: State) -> None:
    shown = new()
    shown.take(StateChanged(state), 0.0)
    shown.take(Level(0.1), 5.0)
    assert "No sound" not in draw(shown, now_s=5.0 + SILENT_AFTER_S)
    text = draw(shown, now_s=5.1 + SILENT_AFTER_S)
    assert "No sound" in text
    assert "nothing arrives from the microphone" in text
    assert "Listening" not in text


@pytest.mark.parametrize("size", [(80, 24), (40, 10)])
def test_a_lost_device_is_told_in_its_own_words_until_it_is_back(size: tuple[int, int]) -> None:
    shown = talked()
    shown.take(StateChanged(State.LISTENING), 0.0)
    shown.take(DeviceNotice(GONE), 1.0)
    text = draw(shown, *size, now_s=60.0)
    assert "No sound" in text
    assert "the microphone (USB Headset) is gone" in " ".join(text.split())
    assert "Listening" not in text
    shown.take(DeviceNotice(WORKING), 61.0)
    text = draw(shown, *size, now_s=61.0)
    assert "Listening" in text
    assert "is gone" not in text


def test_devices_that_work_may_still_have_something_to_tell() -> None:
    shown = new()
    shown.take(DeviceNotice(DeviceState(True, "Laptop", "Laptop", "USB Headset is gone: Laptop is used instead")), 0.0)
    text = draw(shown)
    assert "Ready" in text
    assert "USB Headset is gone: Laptop is used instead" in text


def test_captions_say_who_said_what_and_what_was_interrupted() -> None:
    text = draw(talked())
    assert "  You  What is seven plus four?\n nano  Seven plus four is eleven." in text
    assert "  You  1.2 s of speech  [picture: star.png]\n nano  I see a (interrupted)" in text


def test_what_was_heard_may_come_after_the_answer() -> None:
    shown = talked()
    shown.take(HeardText(2, "What do you see?"), 0.0)
    assert "  You  What do you see?  [picture: star.png]" in draw(shown)


def test_the_newest_words_are_always_there() -> None:
    shown = new()
    for turn in range(300):
        shown.take(ReplyText(turn, f"answer {turn} " * 20), 0.0)
    for size in ((80, 24), (40, 10), (25, 5)):
        assert "answer 299" in draw(shown, *size)
    assert len(shown.captions) < 300, "captions are kept without end"


def test_the_time_an_answer_took_is_split_and_waiting_stands_apart() -> None:
    text = draw(talked())
    assert "answered in 812 ms: 640 ms waiting for silence + 172 ms" in text
    assert "first token 45 ms, first sound made 110 ms" in text
    small = " ".join(draw(talked(), 40, 10).split())
    assert "answered in 812 ms: 640 ms waiting for silence + 172 ms" in small


def test_latency_is_only_told_as_far_as_it_is_known() -> None:
    shown = new()
    assert "answered" not in draw(shown)
    shown.take(TurnDone(1, 1.0, "Hello.", False, Latency(None, 45.0, None, 300.0)), 0.0)
    text = draw(shown)
    assert "answered in 300 ms\n" in text.replace(" \n", "\n")
    assert "model: first token 45 ms," in text
    shown.take(TurnDone(2, 1.0, "", True, Latency(None, None, None, None)), 0.0)
    text = draw(shown)
    assert "None" not in text
    assert "answered" not in text


def test_trouble_and_notes_are_news_and_then_they_go() -> None:
    shown = new()
    shown.take(Trouble("this question is longer than the context; it was dropped"), 1.0)
    assert "longer than the context" in draw(shown, now_s=1.0 + NOTE_S - 0.1)
    assert "longer than the context" not in draw(shown, now_s=1.0 + NOTE_S)


def test_long_thinking_is_counted() -> None:
    shown = new()
    shown.take(StateChanged(State.THINKING), 10.0)
    shown.take(Level(0.0), 17.5)
    assert "Thinking  7 s" in draw(shown, now_s=17.5)


@pytest.mark.parametrize(
    ("mode", "ready", "listening", "key"),
    [
        ("off", "speak whenever you like", "Listening", "SPACE interrupt"),
        ("hold", "hold SPACE and speak", "let go of SPACE", "SPACE hold to talk"),
        ("toggle", "press SPACE and speak", "press SPACE to be answered", "SPACE talk"),
    ],
)
def test_push_to_talk_says_what_to_do(mode: PushToTalk, ready: str, listening: str, key: str) -> None:
    shown = new()
    shown.push_to_talk = mode
    text = draw(shown)
    assert ready in text
    assert key in text
    shown.take(StateChanged(State.LISTENING), 0.0)
    assert listening in draw(shown)


@pytest.mark.parametrize("state", [State.IDLE, State.LISTENING])
def test_muted_is_not_listening(state: State) -> None:
    shown = new()
    shown.muted = True
    shown.take(StateChanged(state), 0.0)
    text = draw(shown)
    assert "Muted  M to be heard again" in text
    assert "M unmute" in text
    assert "Listening" not in text


def test_a_file_name_is_typed_at_the_bottom_and_its_end_is_seen() -> None:
    shown = new()
    shown.entry = "/a/long/way/to/" * 10 + "photo.jpg"
    for size in ((80, 24), (40, 10)):
        lines = draw(shown, *size).splitlines()
        assert lines[-2].startswith("Picture, a file: ")
        assert lines[-2].rstrip().endswith("photo.jpg")
        assert lines[-1] == "ENTER attach   ESC never mind"


def test_a_small_screen_still_has_state_words_time_and_the_way_out() -> None:
    lines = draw(talked(), 40, 10).splitlines()
    assert lines[0].startswith("○ Ready")
    assert "nano: I see a (interrupted)" in lines
    assert any("answered in 812 ms" in line for line in lines)
    assert lines[-1].endswith("Q quit")


ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=200) | st.text("a好😀 \n\t\x1b", max_size=300)


@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    words=st.lists(ANY_TEXT, min_size=4, max_size=4),
    state=st.sampled_from(State),
    level=st.floats(0, 2),
    entry=st.none() | ANY_TEXT,
    sound=st.sampled_from([None, WORKING, GONE]),
)
def test_nothing_is_ever_wider_or_higher_than_the_screen_nor_steers_it(
    width: int,
    height: int,
    words: list[str],
    state: State,
    level: float,
    entry: str | None,
    sound: DeviceState | None,
) -> None:
    shown = Shown(words[0] or "nano", "cpu", words[1])
    if sound is not None:
        shown.take(DeviceNotice(sound), 0.0)
    shown.attached(words[1])
    shown.take(HeardText(1, words[2]), 0.0)
    shown.take(ReplyText(1, words[3]), 0.0)
    shown.take(TurnDone(1, 1.0, words[3], True, LATENCY), 0.0)
    shown.take(ReplyText(2, words[2]), 0.0)
    shown.take(Trouble(words[0]), 0.0)
    shown.take(StateChanged(state), 0.0)
    shown.take(Level(level), 0.0)
    shown.entry = entry
    lines = draw(shown, width, height).split("\n")
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(lines))


def test_a_terminal_without_unicode_is_drawn_in_ascii() -> None:
    shown = talked()
    shown.take(ReplyText(3, "你好 – done"), 0.0)
    text = draw(shown, encoding="ascii")
    assert text.isascii()
    assert "?? ? done" in text
    assert "o Ready" in text


@pytest.mark.parametrize(("level", "cells"), [(0.0, 0), (1e-9, 0), (0.001, 0), (0.0316, 10), (1.0, 20), (2.0, 20)])
def test_the_meter_is_in_decibels(level: float, cells: int) -> None:
    assert meter(level, 20) == cells
