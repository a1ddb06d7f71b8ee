"""A spoken conversation in a terminal: what the assistant tells goes to the screen, and keys go to the assistant.

notices ──▶ Display (Screen or Lines)          Keys ──▶ Controls ──▶ Assistant
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, get_args
from urllib.parse import unquote, urlsplit

from ...errors import NearfieldError
from ..voice.notices import Notice
from ..voice.turn_taking import PushToTalk
from .keys import HeldKey, Keys
from .shown import Shown

NOTHING_SAID = "nothing was said yet: there is nothing to save"
POLL_S = 0.03
"""How long a key may wait: far less than anybody notices, and next to no work."""


class Assistant(Protocol):
    """What of assistant.py the terminal uses."""

    def notice(self, timeout_s: float) -> Notice | None:
        """What happened next; None after the timeout."""
        ...

    def interrupt(self) -> None:
        """End the reply."""
        ...

    def mute(self, on: bool) -> None:
        """Take what the microphone hears for silence."""
        ...

    def push_to_talk(self, mode: PushToTalk) -> None:
        """Hear only what is said while the key is down."""
        ...

    def talk_key(self, down: bool) -> None:
        """The key for it is pressed, or let go; to "toggle" only the presses count."""
        ...

    def voice(self, name: str) -> None:
        """Speak in another voice from now on."""
        ...

    def attach(self, path: Path) -> None:
        """Show a picture with the next question."""
        ...

    def transcribe(self, on: bool) -> None:
        """Tell what was heard."""
        ...

    def save(self, folder: Path) -> list[Path]:
        """Write the conversation into a folder; the files, none when nothing was said."""
        ...


class Display(Protocol):
    """Where a person reads."""

    def take(self, notice: Notice) -> None:
        """Something happened."""
        ...

    def tell(self, text: str, *, trouble: bool = False) -> None:
        """A line about what a key did."""
        ...

    def draw(self) -> None:
        """Called many times a second."""
        ...


def hold_conversation(
    assistant: Assistant, display: Display, keys: Keys, controls: Controls, clock: Callable[[], float] = time.monotonic
) -> None:
    """Show what happens and do what the keys say, until one of them ends it. Raises what the assistant raises."""
    while True:
        notice = assistant.notice(POLL_S)
        if notice is not None:
            display.take(notice)
        for key in keys.pressed():
            if not controls.press(key, clock()):
                return
        controls.pass_time(clock())
        display.draw()


class Controls:
    """What each key does. What is on and off stands in `shown`."""

    def __init__(
        self, assistant: Assistant, shown: Shown, display: Display, *, voices: Sequence[str], save_folder: Path
    ) -> None:
        self._assistant, self._shown, self._display = assistant, shown, display
        self._voices, self._save_folder = list(voices), save_folder
        self._held = HeldKey()

    def press(self, key: str, now_s: float) -> bool:
        """Do what a key says; False when it ends the conversation."""
        if key == "closed":
            return False
        if self._shown.entry is not None:
            self._typed(key)
            return True
        match key.lower():
            case "q":
                return False
            case " ":
                self._space(now_s)
            case "escape":
                self._assistant.interrupt()
            case "m":
                self._mute()
            case "p":
                self._push_to_talk()
            case "v":
                self._next_voice()
            case "a":
                self._shown.entry = ""
                self._display.tell("which picture? type or drop its file here, then ENTER")
            case "t":
                self._transcribe()
            case "s":
                self._save()
        return True

    def pass_time(self, now_s: float) -> None:
        """Notice that the talk key was let go."""
        if self._held.let_go(now_s):
            self._assistant.talk_key(False)

    def _space(self, now_s: float) -> None:
        match self._shown.push_to_talk:
            case "off":
                self._assistant.interrupt()
            case "hold":
                if self._held.press(now_s):
                    self._assistant.talk_key(True)
            case "toggle":
                self._assistant.talk_key(True)

    def _mute(self) -> None:
        self._shown.muted = not self._shown.muted
        self._assistant.mute(self._shown.muted)
        self._display.tell("muted: M to be heard again" if self._shown.muted else "no longer muted")

    def _push_to_talk(self) -> None:
        """Off, by holding, by two presses, and off again."""
        modes: tuple[PushToTalk, ...] = get_args(PushToTalk)
        mode = modes[(modes.index(self._shown.push_to_talk) + 1) % len(modes)]
        self._held = HeldKey()  # a turn that the key began ends with the mode
        self._shown.push_to_talk = mode
        self._assistant.push_to_talk(mode)
        self._display.tell(_SAID[mode])

    def _next_voice(self) -> None:
        place = self._voices.index(self._shown.voice) if self._shown.voice in self._voices else -1
        name = self._voices[(place + 1) % len(self._voices)]
        if self._try(lambda: self._assistant.voice(name)):
            self._shown.voice = name
            self._display.tell(f"the next answer is spoken by {name}" if len(self._voices) > 1 else f"only {name} here")

    def _transcribe(self) -> None:
        self._shown.transcribe = not self._shown.transcribe
        self._assistant.transcribe(self._shown.transcribe)
        self._display.tell(
            "what it heard is written down from the next question on"
            if self._shown.transcribe
            else "what it heard is no longer written down"
        )

    def _save(self) -> None:
        def save() -> None:
            names = ", ".join(path.name for path in self._assistant.save(self._save_folder))
            self._display.tell(f"saved in {self._save_folder}: {names}" if names else NOTHING_SAID)

        self._try(save)

    def _typed(self, key: str) -> None:
        """A key while the name of a picture's file is typed."""
        entry = self._shown.entry or ""
        match key:
            case "enter" if entry.strip():
                self._shown.entry = None
                self._attach(typed_path(entry))
            case "enter" | "escape":
                self._shown.entry = None
                self._display.tell("no picture")
            case "backspace":
                self._shown.entry = entry[:-1]
            case "clear":
                self._shown.entry = ""
            case _ if len(key) == 1:
                self._shown.entry = entry + key

    def _attach(self, path: Path) -> None:
        if self._try(lambda: self._assistant.attach(path)):
            self._shown.attached(path.name)
            self._display.tell(f"{path.name} goes with your next question")

    def _try(self, action: Callable[[], None]) -> bool:
        """Do it; what a person can put right is told, and the conversation goes on."""
        try:
            action()
        except (NearfieldError, OSError) as error:
            self._display.tell(str(error), trouble=True)
            return False
        return True


_SAID: dict[PushToTalk, str] = {
    "off": "push-to-talk is off: speak whenever you like",
    "hold": "push-to-talk: hold SPACE while you speak",
    "toggle": "push-to-talk: SPACE before and after you speak",
}


def typed_path(entry: str) -> Path:
    """The file somebody typed, or dropped on the terminal, which then types it quoted, escaped or as an address."""
    text = entry.strip()
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
        return Path(text[1:] if text[2:3] == ":" else text)  # /C:/picture.png
    if text[:1] in "'\"" and text[-1:] == text[:1]:
        text = text[1:-1]
    elif os.name != "nt" and "\\" in text and not Path(text).exists():
        text = _unescaped(text)
    return Path(text).expanduser()


def _unescaped(text: str) -> str:
    """Without the backslashes a shell would take away; as it is where it is no word of a shell."""
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text
