"""The screen of a spoken conversation in a terminal: who has the word, the level of the microphone, captions, how long
the last answer took, trouble in plain words, and the keys.

It is drawn on the terminal's other screen, so that what was there before is there again afterwards: whole lines over
the old ones and nothing cleared, so nothing flickers; at most 15 times a second, and only when something changed.
What matters least is left out first where there is little room. No meaning hangs on a colour alone, and NO_COLOR is
heeded.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.control import Control
from rich.screen import Screen as WholeScreen
from rich.text import Text

from ..voice.notices import Notice
from .shown import Caption, Mood, Shown, devices_text, meter, one_line, printable, stages_text

DRAW_INTERVAL_S = 1 / 15
_ROOMY = (60, 16)  # columns and rows from which on everything is there
_USUAL_SIZE = (80, 24)  # of a terminal that does not tell
_KEYS = (
    ("SPACE", "interrupt"),
    ("M", "mute"),
    ("P", "push-to-talk"),
    ("V", "voice"),
    ("A", "picture"),
    ("T", "what it heard"),
    ("S", "save"),
)
_QUIT = ("Q", "quit")
_ENTRY_KEYS = (("ENTER", "attach"), ("ESC", "never mind"))


@dataclass(frozen=True)
class Glyphs:
    """What lines and marks are drawn with."""

    moods: dict[Mood, str]
    rule: str
    full: str
    empty: str
    more: str
    """At the end of a line that was cut: one cell."""
    between: str


DRAWN = Glyphs(
    {"ready": "○", "muted": "×", "listening": "●", "thinking": "◆", "speaking": "▶", "trouble": "!"},
    rule="─",
    full="█",
    empty="░",
    more="…",
    between="·",
)
TYPED = Glyphs(
    {"ready": "o", "muted": "x", "listening": "*", "thinking": "~", "speaking": ">", "trouble": "!"},
    rule="-",
    full="#",
    empty=".",
    more="~",
    between="|",
)
"""For terminals whose encoding has nothing else."""

_STYLES: dict[Mood, str] = {
    "ready": "bold cyan",
    "muted": "bold yellow",
    "listening": "bold green",
    "thinking": "bold magenta",
    "speaking": "bold blue",
    "trouble": "bold red",
}


class Screen:
    """Draws what is `shown`; a context manager, within which nothing else may write to `out`."""

    def __init__(self, shown: Shown, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown, self._clock, self._out = shown, clock, out
        self._console = Console(file=out, force_terminal=True, legacy_windows=False, highlight=False)
        self._looked_s = float("-inf")
        self._drawn: tuple[object, ...] = ()
        self._context = self._console.screen(hide_cursor=True)

    def __enter__(self) -> Self:
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a terminal that was closed needs no putting right
            self._context.__exit__(kind, error, traceback)

    def take(self, notice: Notice) -> None:
        """Something happened."""
        self._shown.take(notice, self._clock())

    def tell(self, text: str, *, trouble: bool = False) -> None:
        """Show a line about what a key did."""
        self._shown.tell(text, self._clock(), trouble=trouble)

    def draw(self) -> None:
        """Draw, unless it was drawn a moment ago or nothing changed. Raises `OSError` when the terminal is gone."""
        now_s = self._clock()
        if now_s - self._looked_s < DRAW_INTERVAL_S:
            return
        self._looked_s = now_s
        size = terminal_size(self._out)
        lines = frame(self._shown, self._console, size, now_s)
        drawn = (size, *((line.plain, tuple(line.spans)) for line in lines))
        if drawn == self._drawn:
            return
        self._drawn = drawn
        self._console.size = size
        with self._console:  # one write for the whole screen
            self._console.control(Control.home())
            self._console.print(WholeScreen(*lines), end="")


def can_draw(out: TextIO) -> bool:
    """Whether `out` is a terminal that understands more than lines."""
    console = Console(file=out)
    return out.isatty() and not console.is_dumb_terminal and not console.legacy_windows


def terminal_size(out: TextIO) -> tuple[int, int]:
    """Columns and rows of the terminal as it is now. COLUMNS and LINES are not asked: they do not follow its window."""
    try:
        columns, rows = os.get_terminal_size(out.fileno())
    except (OSError, ValueError):
        return _USUAL_SIZE
    return (columns, rows) if columns and rows else _USUAL_SIZE


def frame(shown: Shown, console: Console, size: tuple[int, int], now_s: float) -> list[Text]:
    """The lines of the screen, `size` columns and rows, at most one a row and none wider than the screen."""
    width, height = size
    pen = _Pen(console, width, height, TYPED if console.options.ascii_only else DRAWN)
    roomy = width >= _ROOMY[0] and height >= _ROOMY[1]
    top = _state(shown, pen, now_s)
    if roomy:
        top = [_title(shown, pen), Text(), *top, pen.rule()]
    bottom = _bottom(shown, pen, now_s, roomy)[: max(0, height - len(top) - 1)]
    room = max(0, height - len(top) - len(bottom))
    captions = _captions(shown, pen, room)
    lines = [*top, *captions, *[Text()] * (room - len(captions)), *bottom]
    for line in lines:
        line.truncate(width, overflow="crop")
    return lines[:height]


@dataclass(frozen=True)
class _Pen:
    """Lays text out for one size of screen."""

    console: Console
    width: int
    height: int
    glyphs: Glyphs

    def rule(self) -> Text:
        return Text(self.glyphs.rule * self.width, style="dim")

    def wrap(self, text: str, style: str = "", *, width: int | None = None, most: int | None = None) -> list[Text]:
        """Lines of at most `width` cells; of more than `most` the rest is cut, and said to be."""
        width = self.width if width is None else width
        lines = [*self.text(text, style).wrap(self.console, max(width, 2), overflow="fold")]
        if most is not None and len(lines) > most:
            lines = lines[:most]
            lines[-1].truncate(width - 1)
            lines[-1].append(self.glyphs.more, style)
        return lines

    def text(self, text: str, style: str = "") -> Text:
        """Text with its style as a span, so that two texts are equal only if they look alike."""
        if self.console.options.ascii_only:
            text = text.encode(self.console.encoding, "replace").decode(self.console.encoding)
        drawn = Text()
        return drawn.append(text, style)

    def sides(self, left: Text, right: Text) -> Text:
        """One at each end of a line; where both do not fit the right one is left out."""
        gap = self.width - left.cell_len - right.cell_len
        return Text.assemble(left, " " * gap, right) if gap > 0 else left

    def shorten(self, text: Text, width: int) -> Text:
        """One line of at most `width` cells."""
        if text.cell_len > width:
            text.truncate(max(0, width - 1), overflow="crop")
            text.append(self.glyphs.more)
        return text


def _title(shown: Shown, pen: _Pen) -> Text:
    between = f" {pen.glyphs.between} "
    settings = [one_line(shown.bundle), one_line(shown.voice), f"on {shown.device}"]
    settings += [f"push-to-talk: {shown.push_to_talk}"] if shown.push_to_talk != "off" else []
    settings += ["muted"] if shown.muted else []
    return pen.sides(pen.text("Nearfield", "bold"), pen.text(between.join(settings), "dim"))


def _state(shown: Shown, pen: _Pen, now_s: float) -> list[Text]:
    """Who has the word, and how loud it is; trouble is told in as many lines as it takes."""
    headline = shown.headline(now_s)
    word = pen.text(f"{pen.glyphs.moods[headline.mood]} {headline.word}", _STYLES[headline.mood])
    if headline.mood == "trouble":
        return [word, *pen.wrap(headline.hint, "red", most=3)]
    loud = _meter(shown, pen) if shown.sound is not None else Text()
    hint = pen.text(f"  {headline.hint}", "dim")
    if word.cell_len + hint.cell_len + loud.cell_len < pen.width:
        word.append_text(hint)
    return [pen.sides(word, loud)]


def _meter(shown: Shown, pen: _Pen) -> Text:
    cells = min(24, pen.width // 4)
    full = meter(shown.level, cells)
    drawn = pen.text("mic ", "dim") if pen.width >= _ROOMY[0] else Text()
    drawn.append(pen.glyphs.full * full, "dim" if shown.muted else "green")
    return drawn.append(pen.glyphs.empty * (cells - full), "dim")


def _captions(shown: Shown, pen: _Pen, room: int) -> list[Text]:
    """The last lines of the conversation that fit, the newest at the bottom of them."""
    lines: list[Text] = []
    name = one_line(shown.bundle)
    label = min(10, max(cell_len(name), len("You")))
    for caption in reversed(shown.captions):
        before = _caption(caption, name, pen, label)
        lines = [*before, *([Text()] if lines and pen.width >= _ROOMY[0] else []), *lines]
        if len(lines) >= room:
            break
    return lines[-room:] if room else []


def _caption(caption: Caption, name: str, pen: _Pen, label: int) -> list[Text]:
    """What was asked and what was answered, the names beside the text or, on a narrow screen, in it."""
    if caption.heard is not None:
        question = pen.text(caption.heard)
    else:
        seconds = "" if caption.question_s is None else f"{caption.question_s:.1f} s of speech"
        question = pen.text(seconds or pen.glyphs.more, "dim")
    for picture in caption.pictures:
        question.append_text(pen.text(f"  [picture: {picture}]", "dim"))
    lines = _spoken("You", question, "bold green", pen, label)
    if caption.reply or caption.interrupted:
        reply = pen.text(caption.reply.strip())
        if caption.interrupted:
            reply.append_text(pen.text(" (interrupted)", "dim"))
        lines += _spoken(name, reply, "bold blue", pen, label)
    return lines


def _spoken(name: str, text: Text, style: str, pen: _Pen, label: int) -> list[Text]:
    if pen.width < _ROOMY[0]:
        whole = Text.assemble(pen.text(f"{name}: ", style), text)
        return [*whole.wrap(pen.console, pen.width, overflow="fold")]
    named = pen.shorten(pen.text(name, style), label)
    lines = text.wrap(pen.console, pen.width - label - 3, overflow="fold")
    first = Text.assemble(" " * (1 + label - named.cell_len), named, "  ")
    return [Text.assemble(first if index == 0 else " " * (label + 3), line) for index, line in enumerate(lines)]


def _bottom(shown: Shown, pen: _Pen, now_s: float, roomy: bool) -> list[Text]:
    """From what is most to what is least pressing: trouble, how long the answer took, the devices, the keys."""
    lines = [pen.rule()] if roomy else []
    note = shown.current_note(now_s)
    if note is not None:
        lines += pen.wrap(note, "red" if shown.trouble else "yellow", most=3 if roomy else 2)
    if shown.sound is not None and shown.sound.working and shown.sound.trouble:  # not, but something to know
        lines += pen.wrap(printable(shown.sound.trouble), "yellow", most=2)
    if shown.latency is not None:
        texts = [shown.latency.in_words(), stages_text(shown.latency) if roomy else ""]
        for text in filter(None, texts):
            lines += pen.wrap(text, "dim", most=2 if pen.height >= 10 else 1)
    if roomy and shown.sound is not None:
        lines.append(pen.shorten(pen.text(devices_text(shown.sound), "dim"), pen.width))
    if shown.entry is not None:
        lines.append(_entry(shown.entry, pen))
    return [*lines, *_keys(shown, pen, 2 if roomy else 1)]


def _entry(entry: str, pen: _Pen) -> Text:
    """The line a file's name is typed into; of a long one the end is shown, where the typing goes on."""
    prompt = pen.text("Picture, a file: ", "bold")
    name = printable(entry).replace("\n", " ").replace("\t", " ")
    while name and cell_len(name) > pen.width - prompt.cell_len - 1:
        name = name[1:]
    return Text.assemble(prompt, pen.text(name), pen.text(" ", "reverse"))


def _keys(shown: Shown, pen: _Pen, rows: int) -> list[Text]:
    """The keys in at most so many rows, of which the last key, how to leave, is never left out."""
    if shown.entry is not None:
        return _rows(_ENTRY_KEYS, pen, rows)
    talking = {"off": "interrupt", "hold": "hold to talk", "toggle": "talk"}[shown.push_to_talk]
    keys = [
        (key, talking if key == "SPACE" else "unmute" if key == "M" and shown.muted else name) for key, name in _KEYS
    ]
    for count in range(len(keys), -1, -1):
        lines = _rows([*keys[:count], _QUIT], pen, rows + 1)
        if len(lines) <= rows:
            return lines
    return []


def _rows(keys: Iterable[tuple[str, str]], pen: _Pen, most: int) -> list[Text]:
    lines: list[Text] = []
    for key, name in keys:
        item = Text.assemble((key, "bold"), (f" {name}", "dim"))
        if lines and lines[-1].cell_len + 3 + item.cell_len <= pen.width:
            lines[-1].append("   ").append_text(item)
        elif len(lines) < most:
            lines.append(item)
    return lines
