"""Draws docs/talk.svg, the picture of `nearfield talk` in README.md, as a terminal of 80 × 24 shows it.

python docs/talk_picture.py
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from nearfield.apps.terminal.screen import frame
from nearfield.apps.terminal.shown import Shown
from nearfield.apps.voice.notices import (
    DeviceNotice,
    HeardText,
    Latency,
    Level,
    ReplyText,
    StateChanged,
    TurnDone,
)
from nearfield.apps.voice.sound_device import DeviceState
from nearfield.apps.voice.turn_taking import State
from rich.console import Console

SIZE = (80, 24)
LATENCY = Latency(silence_wait_ms=640.0, first_token_ms=38.0, first_audio_ms=121.0, first_sound_ms=724.0)
SAID = (
    ("What is seven plus four?", "Seven plus four is eleven.", False),
    ("Say that again.", "Seven plus four", True),
    ("What do you see?", "I see a purple star.", False),
)


def main() -> None:
    """Draw a conversation of three turns, the third being answered."""
    shown = Shown("nano", "cpu", "Chelsie", transcribe=True)
    shown.take(DeviceNotice(DeviceState(True, "USB Headset", "USB Headset", None)), 0.0)
    for turn, (heard, reply, interrupted) in enumerate(SAID, 1):
        if turn == len(SAID):
            shown.attached("purple_star.png")
        shown.take(HeardText(turn, heard), 0.0)
        shown.take(ReplyText(turn, reply), 0.0)
        if turn < len(SAID):
            shown.take(TurnDone(turn, 1.5, reply, interrupted, LATENCY), 0.0)
    shown.take(StateChanged(State.SPEAKING), 0.0)
    shown.take(Level(0.02), 0.0)
    console = Console(file=io.StringIO(), record=True, force_terminal=True, width=SIZE[0], height=SIZE[1])
    for line in frame(shown, console, SIZE, 0.0):
        console.print(line)
    path = Path(__file__).with_name("talk.svg")
    svg = console.export_svg(title="nearfield talk", unique_id="talk")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts from the network
    path.write_text(_LEADING.sub(_moved, svg), encoding="utf-8")


_CELL = 12.2  # how wide rich draws a character
_LEADING = re.compile(r'x="([0-9.]+)"( y="[0-9.]+") textLength="([0-9.]+)"([^>]*>)((?:&#160;)+)')


def _moved(text: re.Match[str]) -> str:
    """Text that begins with spaces, begun behind them: not every program that shows SVG draws spaces."""
    left = _CELL * text[5].count("&#160;")
    return f'x="{float(text[1]) + left:g}"{text[2]} textLength="{float(text[3]) - left:g}"{text[4]}'


if __name__ == "__main__":
    main()
