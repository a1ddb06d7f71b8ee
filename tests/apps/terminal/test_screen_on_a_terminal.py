"""What reaches a real terminal (a pty) while the screen is drawn on it: whole screens, few, and no traces."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from typing import TextIO

import pytest
from nearfield.apps.terminal.screen import DRAW_INTERVAL_S, Screen, can_draw
from nearfield.apps.terminal.shown import Shown
from nearfield.apps.voice.notices import DeviceNotice, Latency, Level, ReplyText, TurnDone
from nearfield.apps.voice.sound_device import DeviceState
from rich.cells import cell_len


def talked() -> Shown:
    """After a turn."""
    shown = Shown("nano", "cpu", "Chelsie")
    shown.take(DeviceNotice(DeviceState(True, "USB Headset", "Laptop", None)), 0.0)
    shown.take(TurnDone(1, 1.9, "Seven plus four is eleven, 你好.", False, Latency(640.0, 45.0, 110.0, 812.0)), 0.0)
    return shown


class Terminal:
    """A real terminal of a size that can be changed."""

    def __init__(self, columns: int, rows: int) -> None:
        self._person, program = pty.openpty()
        self.out: TextIO = os.fdopen(program, "w", encoding="utf-8")
        self.resize(columns, rows)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._person, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> str:
        """Everything that reached the terminal."""
        self.out.close()
        self._reader.join()
        os.close(self._person)
        return self._seen.decode()

    def _read(self) -> None:
        while True:
            try:
                found = os.read(self._person, 65536)
            except OSError:
                return
            self._seen += found


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "33")  # not to be believed
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal(80, 24)
    yield terminal
    if not terminal.out.closed:
        terminal.close()


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


HOME, ENTER, LEAVE, SHOW_CURSOR = "\x1b[H", "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"


def frames(sent: str) -> list[list[str]]:
    """The screens that were drawn, each as its rows without colours."""
    drawn = sent.split(LEAVE)[0].split(HOME)[2:]  # entering goes home as well
    return [re.sub(r"\x1b\[[0-9;]*m", "", each).replace("\r", "").split("\n") for each in drawn]


def test_each_drawing_covers_the_whole_terminal_whatever_size_it_has_now(terminal: Terminal) -> None:
    clock = Clock()
    with Screen(talked(), terminal.out, clock) as screen:
        for columns, rows in ((80, 24), (40, 10), (120, 40)):
            terminal.resize(columns, rows)
            clock.now_s += 0.1
            screen.draw()
    found = frames(terminal.close())
    assert [(len(rows), {cell_len(row) for row in rows}) for rows in found] == [
        (24, {80}),
        (10, {40}),
        (40, {120}),
    ]


def test_nothing_is_drawn_twice_nor_more_than_15_times_a_second(terminal: Terminal) -> None:
    clock, shown = Clock(), talked()
    with Screen(shown, terminal.out, clock) as screen:
        for _ in range(100):  # 10 s in which nothing happens
            shown.take(Level(0.1), clock.now_s)
            screen.draw()
            clock.now_s += 0.1
        for step in range(1000):  # 1 s in which everything changes
            screen.take(ReplyText(1, f"word {step}"))
            screen.draw()
            clock.now_s += 0.001
    sent = terminal.close()
    assert 2 <= len(frames(sent)) <= 2 + 1 / DRAW_INTERVAL_S
    assert "\x1b[2J" not in sent, "clearing the screen flickers"


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_terminal_is_left_as_it_was_found(error: type[BaseException] | None, terminal: Terminal) -> None:
    def use() -> None:
        with Screen(talked(), terminal.out, Clock()) as screen:
            screen.draw()
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    sent = terminal.close()
    assert sent.count(ENTER) == sent.count(LEAVE) == 1
    assert sent.index(ENTER) < sent.index(LEAVE)
    assert sent.endswith(SHOW_CURSOR)


def test_a_terminal_that_is_closed_ends_the_screen_with_that_error_only() -> None:
    person, program = pty.openpty()
    os.close(person)
    out = os.fdopen(program, "w", encoding="utf-8")
    with pytest.raises(OSError, match="Input/output"), Screen(talked(), out, Clock()) as screen:
        screen.draw()
    with contextlib.suppress(OSError):  # what it still holds cannot be written either
        out.close()


def test_colours_are_left_out_where_nobody_wants_them(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    with Screen(talked(), terminal.out, Clock()) as screen:
        screen.draw()
    sent = terminal.close()
    codes = {code for codes in re.findall(r"\x1b\[([0-9;]*)m", sent) for code in codes.split(";")}
    assert codes <= {"", "0", "1", "2", "7"}, "only bold, dim and reverse are no colours"


def test_drawing_is_for_terminals_that_can(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_draw(terminal.out)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(terminal.out)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not can_draw(io.StringIO())
