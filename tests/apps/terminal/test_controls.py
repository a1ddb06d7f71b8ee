"""Keys and what they do, and the plain lines that stand in for the screen."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from nearfield.apps.terminal.controls import Controls, hold_conversation, typed_path
from nearfield.apps.terminal.keys import FIRST_REPEAT_S, RELEASE_S
from nearfield.apps.terminal.lines import Lines
from nearfield.apps.terminal.shown import Shown
from nearfield.apps.voice.notices import (
    DeviceNotice,
    HeardText,
    Latency,
    Level,
    Notice,
    ReplyText,
    StateChanged,
    Trouble,
    TurnDone,
)
from nearfield.apps.voice.sound_device import DeviceState
from nearfield.apps.voice.turn_taking import PushToTalk, State
from nearfield.errors import ImageError


class Assistant:
    """Notes what it is told, and tells what it was given to tell."""

    def __init__(self, *notices: Notice) -> None:
        self.told: list[object] = []
        self.files: list[Path] = []
        self._notices = list(notices)

    def notice(self, timeout_s: float) -> Notice | None:
        assert 0 < timeout_s <= 0.1, "a key may not wait longer"
        return self._notices.pop(0) if self._notices else None

    def interrupt(self) -> None:
        self.told.append("interrupt")

    def mute(self, on: bool) -> None:
        self.told.append(("mute", on))

    def push_to_talk(self, mode: PushToTalk) -> None:
        self.told.append(("push-to-talk", mode))

    def talk_key(self, down: bool) -> None:
        self.told.append(("talk key", down))

    def voice(self, name: str) -> None:
        self.told.append(("voice", name))

    def attach(self, path: Path) -> None:
        if path.name == "song.mp3":
            raise ImageError("song.mp3 is not an image")
        self.told.append(("attach", path))

    def transcribe(self, on: bool) -> None:
        self.told.append(("transcribe", on))

    def save(self, folder: Path) -> list[Path]:
        self.told.append(("save", folder))
        return self.files


class Person:
    """Keys, and what their owner can read."""

    def __init__(self, *notices: Notice) -> None:
        self.assistant, self.shown, self.out = Assistant(*notices), Shown("nano", "cpu", "Chelsie"), io.StringIO()
        self.display = Lines("nano", self.out)
        self.controls = Controls(
            self.assistant, self.shown, self.display, voices=["Chelsie", "Ethan"], save_folder=Path("talks") / "one"
        )

    def press(self, *keys: str, now_s: float = 0.0) -> list[object]:
        """What the assistant was told by these keys."""
        self.assistant.told.clear()
        for key in keys:
            assert self.controls.press(key, now_s)
        return list(self.assistant.told)

    def read(self) -> str:
        """What there is to read since the last time."""
        text = self.out.getvalue()
        self.out.truncate(0)
        self.out.seek(0)
        return text


def test_space_and_escape_interrupt() -> None:
    assert Person().press(" ", "escape") == ["interrupt", "interrupt"]


def test_mute_is_on_and_off_again_with_large_letters_too() -> None:
    person = Person()
    assert person.press("m") == [("mute", True)]
    assert person.shown.muted
    assert person.press("M") == [("mute", False)]
    assert not person.shown.muted


def test_voices_go_round() -> None:
    person = Person()
    assert person.press("v", "v") == [("voice", "Ethan"), ("voice", "Chelsie")]
    assert person.shown.voice == "Chelsie"
    assert "the next answer is spoken by Ethan" in person.read()


def test_what_is_heard_is_written_down_when_asked() -> None:
    person = Person()
    assert person.press("t", "t") == [("transcribe", True), ("transcribe", False)]


def test_push_to_talk_goes_round_and_says_how_to_talk() -> None:
    person = Person()
    assert person.press("p", "p", "p") == [("push-to-talk", mode) for mode in ("hold", "toggle", "off")]
    assert [line.split(": ", 1)[1] for line in person.read().splitlines()] == [
        "push-to-talk: hold SPACE while you speak",
        "push-to-talk: SPACE before and after you speak",
        "push-to-talk is off: speak whenever you like",
    ]


def test_a_held_key_talks_until_its_repetition_stops() -> None:
    person = Person()
    person.press("p")
    assert person.press(" ", now_s=0.0) == [("talk key", True)]
    now_s = 0.5
    while now_s < 3.0:
        assert person.press(" ", now_s=now_s) == []
        person.controls.pass_time(now_s)
        now_s += 0.03
    assert person.assistant.told == []
    person.controls.pass_time(now_s + RELEASE_S)
    assert person.assistant.told == [("talk key", False)]
    person.controls.pass_time(now_s + 10)
    assert person.assistant.told == [("talk key", False)]


def test_a_key_pressed_twice_talks_in_between() -> None:
    person = Person()
    person.press("p", "p")
    assert person.press(" ") == [("talk key", True)]
    person.controls.pass_time(2 * FIRST_REPEAT_S)
    assert person.press(" ", now_s=5.0) == [("talk key", True)], "a press is a press to the state machine"


def test_another_mode_forgets_a_held_key() -> None:
    person = Person()
    person.press("p", " ", "p")
    person.assistant.told.clear()
    person.controls.pass_time(10.0)
    assert person.assistant.told == []


def test_a_picture_is_attached_by_typing_its_name_whatever_letters_it_has(tmp_path: Path) -> None:
    person = Person()
    assert person.press("a") == []
    assert person.shown.entry == ""
    name = str(tmp_path / "quiet moving pictures qmvts 你好.png")
    assert person.press(*name, "x", "backspace", "enter") == [("attach", Path(name))]
    assert person.shown.entry is None
    assert "goes with your next question" in person.read()
    assert person.shown.caption(1).pictures == ["quiet moving pictures qmvts 你好.png"]
    assert person.shown.caption(2).pictures == []


@pytest.mark.parametrize("keys", [["enter"], ["escape"], ["x", "escape"], ["x", "clear", "enter"]])
def test_an_entry_can_be_left(keys: list[str]) -> None:
    person = Person()
    assert person.press("a", *keys) == []
    assert person.shown.entry is None
    assert person.press(" ") == ["interrupt"]


def test_what_is_no_picture_is_told_and_the_conversation_goes_on() -> None:
    person = Person()
    person.press("a", *"song.mp3", "enter")
    assert "trouble: song.mp3 is not an image" in person.read()
    assert person.shown.caption(1).pictures == []


def test_saving_says_where(tmp_path: Path) -> None:
    person = Person()
    assert person.press("s") == [("save", Path("talks") / "one")]
    assert "nothing was said yet" in person.read()
    person.assistant.files = [tmp_path / "conversation.txt", tmp_path / "conversation.wav"]
    person.press("s")
    assert person.read() == f"note: saved in {Path('talks') / 'one'}: conversation.txt, conversation.wav\n"


@pytest.mark.parametrize("key", ["q", "Q", "closed"])
def test_q_and_a_closed_terminal_end_it(key: str) -> None:
    assert not Person().controls.press(key, 0.0)


def test_other_keys_do_nothing() -> None:
    assert Person().press("x", "enter", "backspace", "好", "1") == []


@pytest.mark.parametrize(
    ("typed", "path"),
    [
        ("photo.jpg", "photo.jpg"),
        ("  photo.jpg ", "photo.jpg"),
        ("'my photo.jpg'", "my photo.jpg"),
        ('"my photo.jpg"', "my photo.jpg"),
        ("/pictures/my\\ photo\\(1\\).jpg", "/pictures/my photo(1).jpg"),
        ("file:///pictures/my%20photo.jpg", "/pictures/my photo.jpg"),
        ("file:///C:/pictures/photo.jpg", "C:/pictures/photo.jpg"),
        ("it's.jpg", "it's.jpg"),
    ],
)
def test_files_dropped_on_a_terminal_are_found(typed: str, path: str) -> None:
    assert typed_path(typed) == Path(path)


def test_a_home_folder_is_found() -> None:
    assert typed_path("~/photo.jpg") == Path.home() / "photo.jpg"


def test_events_are_one_line_each_without_escape_codes() -> None:
    out = io.StringIO()
    lines = Lines("nano", out)
    for notice in (
        DeviceNotice(DeviceState(True, "USB Headset", "Laptop", None)),
        StateChanged(State.LISTENING),
        Level(0.3),
        HeardText(1, "What is\nseven plus four?"),
        ReplyText(1, "Seven"),
        TurnDone(1, 1.94, "Seven plus \x1b[31mfour", True, Latency(640.0, 45.0, 110.0, 812.0)),
        DeviceNotice(DeviceState(False, None, "Laptop", "the microphone is gone")),
        Trouble("the question was too long"),
    ):
        lines.take(notice)
        lines.draw()
    assert out.getvalue().splitlines() == [
        "device: microphone USB Headset, speaker Laptop",
        "state: listening",
        "you: What is seven plus four?",
        "nano: Seven plus \N{REPLACEMENT CHARACTER}[31mfour (interrupted)",
        "timing: question 1.9 s; answered in 812 ms: 640 ms waiting for silence + 172 ms; "
        "model: first token 45 ms, first sound made 110 ms, from when it was asked",
        "device: no sound",
        "trouble: the microphone is gone",
        "trouble: the question was too long",
    ]


class Typed:
    """Keys that are pressed one a moment."""

    def __init__(self, *keys: str) -> None:
        self._keys = list(keys)

    def pressed(self) -> list[str]:
        return [self._keys.pop(0)] if self._keys else []


def test_a_conversation_shows_what_happens_and_does_what_is_pressed_until_it_is_ended() -> None:
    person = Person(StateChanged(State.LISTENING), StateChanged(State.THINKING))
    hold_conversation(person.assistant, person.display, Typed("m", "m", " ", "q", "v"), person.controls)
    assert person.assistant.told == [("mute", True), ("mute", False), "interrupt"]
    assert "state: listening\n" in person.read()


def test_what_ends_the_assistant_ends_the_conversation() -> None:
    class Broken(Assistant):
        def notice(self, timeout_s: float) -> Notice | None:
            raise RuntimeError("the ear broke")

    person = Person()
    with pytest.raises(RuntimeError, match="the ear broke"):
        hold_conversation(Broken(), person.display, Typed(), person.controls)
