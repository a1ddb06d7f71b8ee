"""A spoken conversation as plain lines, where there is no terminal to draw on: one line an event and no escape codes.

Each line begins with what it is: `state:`, `device:`, `you:`, the model's name, `timing:`, `trouble:`, `note:`. Levels,
and a reply while it grows, are no lines: a reply is one when it was heard, or as far as it was.
"""

from __future__ import annotations

from typing import TextIO

from ..voice.notices import DeviceNotice, HeardText, Level, Notice, ReplyText, StateChanged, Trouble, TurnDone
from .shown import devices_text, one_line, stages_text


class Lines:
    """Writes lines to `out`, each at once. Raises `OSError` when it cannot be written any more."""

    def __init__(self, bundle: str, out: TextIO) -> None:
        self._bundle, self._out = bundle, out

    def take(self, notice: Notice) -> None:
        """Something happened."""
        match notice:
            case StateChanged(state=state):
                self._line("state", state.value)
            case HeardText(text=text):
                self._line("you", text)
            case TurnDone():
                self._turn(notice)
            case DeviceNotice(device=sound):
                self._line("device", devices_text(sound) if sound.working else "no sound")
                if sound.trouble:
                    self._line("trouble", sound.trouble)
            case Trouble(text=text):
                self._line("trouble", text)
            case Level() | ReplyText():
                pass

    def tell(self, text: str, *, trouble: bool = False) -> None:
        """Say what a key did."""
        self._line("trouble" if trouble else "note", text)

    def draw(self) -> None:
        """Everything stands there already."""

    def _turn(self, notice: TurnDone) -> None:
        self._line(self._bundle, notice.reply_text + (" (interrupted)" if notice.interrupted else ""))
        parts = [f"question {notice.question_s:.1f} s", notice.latency.in_words(), stages_text(notice.latency)]
        self._line("timing", "; ".join(filter(None, parts)))

    def _line(self, kind: str, text: str) -> None:
        self._out.write(f"{one_line(kind)}: {one_line(text)}\n")
        self._out.flush()
