"""Keys from a terminal: what is pressed arrives at once and in order, and the terminal is as it was afterwards.

The terminal is a real one (a pty); the Windows console is a stand-in with the two functions of msvcrt that are used.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.terminal.keys import FIRST_REPEAT_S, RELEASE_S, ConsoleKeys, HeldKey, KeyReader, open_keys

if sys.platform == "win32":
    pytest.skip("pseudo terminals are a thing of POSIX", allow_module_level=True)

import pty
import termios


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """A person's end of a terminal, and the program's."""
    person, program = pty.openpty()
    with os.fdopen(program, "r", encoding="utf-8") as stream:
        yield person, stream
    os.close(person)


def test_keys_arrive_in_order_and_nobody_waits_for_one(terminal: tuple[int, TextIO]) -> None:
    person, stream = terminal
    with open_keys(stream) as keys:
        assert keys.pressed() == []
        os.write(person, b"m \r\x7f\x15q")
        assert keys.pressed() == ["m", " ", "enter", "backspace", "clear", "q"]
        assert keys.pressed() == []


def test_letters_of_all_scripts_arrive_whole_though_their_bytes_come_one_by_one(terminal: tuple[int, TextIO]) -> None:
    person, stream = terminal
    with open_keys(stream) as keys:
        found = []
        for byte in "é好😀".encode():
            os.write(person, bytes([byte]))
            found += keys.pressed()
    assert found == ["é", "好", "😀"]


def test_arrows_are_no_keys_and_escape_is_one_once_nothing_follows(terminal: tuple[int, TextIO]) -> None:
    person, stream = terminal
    with open_keys(stream) as keys:
        os.write(person, b"\x1b[A\x1b[1;5D\x1bOP\x1b[15~\x1bqx")
        assert keys.pressed() == ["x"]
        os.write(person, b"\x1b")
        assert keys.pressed() == []
        assert keys.pressed() == ["escape"]
        os.write(person, b"\x1b")
        assert keys.pressed() == []
        os.write(person, b"[A")
        assert keys.pressed() == []
        assert keys.pressed() == []


def test_nothing_typed_is_shown_nor_stops_the_program_or_its_output(terminal: tuple[int, TextIO]) -> None:
    person, stream = terminal
    with open_keys(stream) as keys:
        os.write(person, b"a\x13\x1a")  # Ctrl-S, Ctrl-Z
        assert keys.pressed() == ["a"]
        os.write(stream.fileno(), b"|")  # what the person sees begins with this, not with an echo
        assert os.read(person, 10) == b"|"
        assert termios.tcgetattr(stream)[3] & termios.ISIG, "Ctrl-C must stay an interrupt"


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_the_terminal_is_as_it_was_however_it_ends(
    error: type[BaseException] | None, terminal: tuple[int, TextIO]
) -> None:
    _, stream = terminal
    before = termios.tcgetattr(stream)
    with contextlib.suppress(*([error] if error else [])), open_keys(stream):
        assert termios.tcgetattr(stream) != before
        if error is not None:
            raise error
    assert termios.tcgetattr(stream) == before


def test_what_was_typed_and_not_read_is_not_left_for_the_shell(terminal: tuple[int, TextIO]) -> None:
    person, stream = terminal
    with open_keys(stream):
        os.write(person, b"rm -r everything\r")
        assert select.select([stream], [], [], 10)[0]  # it has arrived
    assert select.select([stream], [], [], 0)[0] == []


def test_a_terminal_that_was_closed_says_so_and_hinders_nobody() -> None:
    person, program = pty.openpty()
    with os.fdopen(program, "r", encoding="utf-8") as stream, open_keys(stream) as keys:
        os.close(person)
        assert keys.pressed() == ["closed"]


def test_what_is_no_terminal_has_no_keys() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"q")
    with os.fdopen(reading, encoding="utf-8") as stream, open_keys(stream) as keys:
        assert keys.pressed() == []
    os.close(writing)
    with open_keys(None) as keys:
        assert keys.pressed() == []


@given(st.lists(st.sampled_from(["a", "好", "\x1b[A", "\x1bOP", "\x1b[12;3~", "\r", "\t", " ", "[", "O"])), st.data())
def test_it_does_not_matter_in_which_pieces_a_terminal_sends(sent: list[str], data: st.DataObject) -> None:
    text = "".join(sent)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    reader, found = KeyReader(), list[str]()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        if end > start:  # nothing at all would mean that time has passed
            found += reader.read(text[start:end])
    assert found == KeyReader().read(text)


class Console:
    """A Windows console on which was typed; None is a moment in which nothing waits."""

    def __init__(self, *units: str | None) -> None:
        self._units = list(units)

    def kbhit(self) -> bool:
        if self._units and self._units[0] is None:
            self._units.pop(0)
            return False
        return bool(self._units)

    def getwch(self) -> str:
        unit = self._units.pop(0)
        assert unit is not None, "read although nothing waited: this would block"
        return unit


def test_a_windows_console_gives_the_same_keys() -> None:
    keys = ConsoleKeys(Console("m", "\r", "\b", "\x15", "\x1b", "\t", "é", None, "q"))
    assert keys.pressed() == ["m", "enter", "backspace", "clear", "escape", "é"]
    assert keys.pressed() == ["q"]


def test_a_windows_console_sends_two_units_for_arrows_and_for_characters_beyond_16_bits() -> None:
    high, low = "\ud83d", "\ude00"
    keys = ConsoleKeys(Console("\xe0", "H", "\0", ";", "a", high, low, high, None, low, "\xe0", None, None, "b"))
    assert keys.pressed() == ["a", "😀"]
    assert keys.pressed() == ["😀", "à"]
    assert keys.pressed() == ["b"]


def test_ctrl_c_interrupts_on_a_windows_console_too() -> None:
    with pytest.raises(KeyboardInterrupt):
        ConsoleKeys(Console("\x03")).pressed()


@pytest.mark.parametrize(("delay_s", "interval_s"), [(0.2, 0.03), (0.66, 0.04), (1.0, 0.09)])
def test_a_held_key_is_held_from_its_first_to_its_last_repetition(delay_s: float, interval_s: float) -> None:
    held = HeldKey()
    presses = [0.0, *(delay_s + interval_s * count for count in range(40))]
    assert [held.press(now_s) for now_s in presses if not held.let_go(now_s)] == [True] + [False] * 40
    last_s = presses[-1]
    assert not held.let_go(last_s + RELEASE_S - 0.01)
    assert held.let_go(last_s + RELEASE_S)
    assert not held.let_go(last_s + 10), "it is let go once"
    assert held.press(last_s + 11)


def test_a_key_let_go_before_it_repeats_counts_as_held_until_it_would_have() -> None:
    held = HeldKey()
    assert held.press(5.0)
    assert not held.let_go(5.0 + FIRST_REPEAT_S - 0.01)
    assert held.let_go(5.0 + FIRST_REPEAT_S)
