"""Keys from a terminal, as they are pressed and without waiting for one: the one file that knows which system it is on.

A key is the character it writes, or one of the names `enter`, `escape`, `backspace`, `clear` (Ctrl-U) and `closed`
(Ctrl-D, or the terminal is gone). Arrows and other keys that write no character are left out. Ctrl-C is
`KeyboardInterrupt` as anywhere.

A terminal tells when a key is pressed, and again and again while it is held, but never that it was let go. `HeldKey`
therefore takes a key for held until its repetition stops, which costs `RELEASE_S` at the end of every question; and
a key that was let go before its first repetition counts as held for `FIRST_REPEAT_S`. Where that is too slow there is
push-to-talk by two presses, which is exact.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

if sys.platform == "win32":
    import msvcrt
else:
    import select
    import termios

FIRST_REPEAT_S = 1.1
"""A held key is repeated after 0.2 … 0.7 s as systems are delivered, after 1 s at the slowest setting of Windows."""
RELEASE_S = 0.25
"""Repetitions follow each other within 30 … 90 ms; more is allowed for a busy machine or a connection."""

_NAMES = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace", "\x15": "clear", "\x04": "closed"}
_INTERRUPT = "\x03"
_ESCAPE = "\x1b"
# What a terminal sends for keys without a character: ESC [ … letter, ESC O letter, ESC letter (with Alt).
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[^\[O\x1b])", re.DOTALL)
_UNFINISHED = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")


class Keys(Protocol):
    """Where keys come from."""

    def pressed(self) -> list[str]:
        """The keys since the last call, in order; returns at once. Raises `KeyboardInterrupt` for Ctrl-C."""
        ...


class NoKeys:
    """Nobody can press anything: there is no terminal."""

    def pressed(self) -> list[str]:
        """Nothing, ever."""
        return []


@contextlib.contextmanager
def open_keys(stream: TextIO | None) -> Iterator[Keys]:
    """Keys of the terminal `stream`, which is as it was when the context is left. What is no terminal has none."""
    if stream is None or stream.closed or not stream.isatty():
        yield NoKeys()
    elif sys.platform == "win32":
        yield ConsoleKeys(msvcrt)
    else:
        with _key_by_key(stream.fileno()):
            yield TerminalKeys(stream.fileno())


class HeldKey:
    """Whether a key is held down, told from its repetition; times in seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        self._until_s: float | None = None

    def press(self, now_s: float) -> bool:
        """The key came, for the first time or again; True if that is the beginning of holding it."""
        begins = self._until_s is None
        self._until_s = now_s + (FIRST_REPEAT_S if begins else RELEASE_S)
        return begins

    def let_go(self, now_s: float) -> bool:
        """True, once, when it does not come any more."""
        if self._until_s is None or now_s < self._until_s:
            return False
        self._until_s = None
        return True


class KeyReader:
    """Characters as a terminal sends them → keys. A sequence may come in pieces, and ESC alone may be one's beginning:
    nothing but time tells, so it waits for the next call."""

    def __init__(self) -> None:
        self._rest = ""

    def read(self, text: str) -> list[str]:
        """The keys in `text` and in what was left before; call it with nothing when nothing came."""
        if not text:
            rest, self._rest = self._rest, ""
            return ["escape"] if rest == _ESCAPE else []
        text = self._rest + text
        unfinished = _UNFINISHED.search(text)
        end = len(text) if unfinished is None else unfinished.start()
        self._rest = text[end:]
        keys = []
        for part in _split(text[:end]):
            keys += _key(part)
        return keys


def _split(text: str) -> Iterator[str]:
    """Characters and whole sequences."""
    start = 0
    while start < len(text):
        sequence = _SEQUENCE.match(text, start)
        end = start + 1 if sequence is None else sequence.end()
        yield text[start:end]
        start = end


def _key(character: str) -> list[str]:
    """The key that writes a character, none for a sequence or a control character without a use here."""
    if character == _INTERRUPT:
        raise KeyboardInterrupt
    if character == _ESCAPE:
        return ["escape"]
    if character in _NAMES:
        return [_NAMES[character]]
    return [character] if len(character) == 1 and character.isprintable() else []


class Console(Protocol):
    """What of `msvcrt` is used; a protocol so that it can be tested where that module does not exist."""

    def kbhit(self) -> bool:
        """Whether a key waits."""
        ...

    def getwch(self) -> str:
        """Half a key that writes none, or a unit of UTF-16."""
        ...


class ConsoleKeys:
    """Keys of a Windows console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._half = ""  # of a character beyond 16 bits whose other half did not come yet

    def pressed(self) -> list[str]:
        """See `Keys`."""
        keys = []
        while self._console.kbhit():
            unit = self._half + self._console.getwch()
            self._half = ""
            if unit == "\0" or (unit == "\xe0" and self._console.kbhit()):  # an arrow …; without a follower, à
                self._console.getwch()
            elif len(unit) == 1 and "\ud800" <= unit < "\udc00":
                self._half = unit
            else:
                keys += _key(unit.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
        return keys


if sys.platform != "win32":

    class TerminalKeys:
        """Keys of a terminal that hands on every character at once."""

        def __init__(self, descriptor: int) -> None:
            self._descriptor = descriptor
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
            self._reader = KeyReader()

        def pressed(self) -> list[str]:
            """See `Keys`."""
            if not select.select([self._descriptor], [], [], 0)[0]:
                return self._reader.read("")
            try:
                sent = os.read(self._descriptor, 4096)
            except OSError:  # how a terminal that was closed answers
                sent = b""
            return self._reader.read(self._decoder.decode(sent)) if sent else ["closed"]

    _INPUT_FLAGS, _LOCAL_FLAGS, _SPECIAL = 0, 3, 6  # places in what tcgetattr returns

    @contextlib.contextmanager
    def _key_by_key(descriptor: int) -> Iterator[None]:
        """Let a terminal hand on every character at once and show none; afterwards it is as it was.

        Ctrl-C stays an interrupt. Ctrl-Z would leave a stopped program with a live microphone, and Ctrl-S would stop
        output and with it everything: they do nothing.
        """
        before, wanted = termios.tcgetattr(descriptor), termios.tcgetattr(descriptor)
        wanted[_INPUT_FLAGS] &= ~termios.IXON
        wanted[_LOCAL_FLAGS] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        off = bytes([os.fpathconf(descriptor, "PC_VDISABLE")])
        wanted[_SPECIAL][termios.VSUSP] = off
        wanted[_SPECIAL][termios.VMIN], wanted[_SPECIAL][termios.VTIME] = 1, 0
        try:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, wanted)
            yield
        finally:
            with contextlib.suppress(termios.error):  # the terminal is gone: nothing is left to be put right
                termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)  # what was typed is not for the shell
