"""What a screen shows of a spoken conversation: notices in, one after the other → what stands there now, in words.

Nothing here draws, and nothing asks a clock: times are handed in, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from ..voice.notices import (
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
from ..voice.sound_device import DeviceState
from ..voice.turn_taking import PushToTalk, State

Mood = Literal["ready", "muted", "listening", "thinking", "speaking", "trouble"]
"""What a state is drawn as."""

SILENT_AFTER_S = 2.0
"""Without a level for so long no state that claims to hear is shown: a second line behind the device's own watchdog."""
NOTE_S = 10.0
"""How long a line about something that happened stays."""
QUIETEST_DB = -60.0
"""Where the level meter begins; speech near a microphone is between −40 and −15."""
_MOST_CAPTIONS = 200
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """Text that cannot steer a terminal: control characters but newline and tab are shown as such."""
    return text.translate(_CONTROLS)


def one_line(text: str) -> str:
    """A name in one line, as `printable` as the rest."""
    return " ".join(printable(text).split())


@dataclass
class Caption:
    """A turn as it stands there."""

    turn: int
    heard: str | None = None
    """What the model says it heard, if it was asked."""
    question_s: float | None = None
    """How long the question was; known when the turn is over."""
    pictures: list[str] = field(default_factory=list)
    reply: str = ""
    interrupted: bool = False


@dataclass(frozen=True)
class Headline:
    """Who has the word, in words."""

    mood: Mood
    word: str
    hint: str


@dataclass
class Shown:
    """All that stands on a screen. `take` changes it by what happens, the keys by what they set."""

    bundle: str
    """What the model is called here."""
    device: str
    """Where its graphs run."""
    voice: str
    muted: bool = False
    push_to_talk: PushToTalk = "off"
    transcribe: bool = False
    entry: str | None = None
    """The name of a picture's file, as far as it is typed; None when none is asked for."""

    state: State = State.IDLE
    state_since_s: float = 0.0
    level: float = 0.0
    """RMS, 0 … 1."""
    level_at_s: float | None = None
    """When the last one came, or when the devices began to work; None before."""
    sound: DeviceState | None = None
    latency: Latency | None = None
    captions: deque[Caption] = field(default_factory=lambda: deque(maxlen=_MOST_CAPTIONS))
    note: str | None = None
    note_at_s: float = 0.0
    trouble: bool = False
    """Whether the note is about something that went wrong."""
    _waiting_pictures: list[str] = field(default_factory=list)

    def take(self, notice: Notice, now_s: float) -> None:
        """Change what stands there by what happened."""
        match notice:
            case StateChanged(state=state):
                self.state, self.state_since_s = state, now_s
            case Level(microphone=level):
                self.level, self.level_at_s = level, now_s
            case ReplyText(turn=turn, text=text):
                self.caption(turn).reply = printable(text)
            case HeardText(turn=turn, text=text):
                self.caption(turn).heard = printable(text)
            case TurnDone():
                caption = self.caption(notice.turn)
                caption.question_s, caption.reply = notice.question_s, printable(notice.reply_text)
                caption.interrupted, self.latency = notice.interrupted, notice.latency
            case DeviceNotice(device=sound):
                self.sound, self.level = sound, 0.0
                self.level_at_s = now_s if sound.working else None
            case Trouble(text=text):
                self.tell(text, now_s, trouble=True)

    def tell(self, text: str, now_s: float, *, trouble: bool = False) -> None:
        """Leave a line about something that happened, in place of the one before."""
        self.note, self.note_at_s, self.trouble = printable(text), now_s, trouble

    def attached(self, name: str) -> None:
        """A picture belongs to the question that is asked next."""
        self._waiting_pictures.append(one_line(name))

    def caption(self, turn: int) -> Caption:
        """The caption of a turn, a new one for a new turn. Notices of a turn may come in any order, and late."""
        for caption in reversed(self.captions):
            if caption.turn == turn:
                return caption
        pictures, self._waiting_pictures = self._waiting_pictures, []
        self.captions.append(Caption(turn, pictures=pictures))
        return self.captions[-1]

    def current_note(self, now_s: float) -> str | None:
        """The line about what happened, as long as it is news."""
        return self.note if now_s - self.note_at_s < NOTE_S else None

    def headline(self, now_s: float) -> Headline:
        """Who has the word. Never that somebody listens while no sound arrives."""
        if self.sound is None:
            return Headline("ready", "Starting", "opening microphone and speaker")
        if not self.sound.working:
            return Headline("trouble", "No sound", printable(self.sound.trouble or "the devices do not work"))
        if self.level_at_s is not None and now_s - self.level_at_s > SILENT_AFTER_S:
            return Headline("trouble", "No sound", "nothing arrives from the microphone")
        match self.state:
            case State.IDLE | State.LISTENING | State.PAUSED if self.muted:
                return Headline("muted", "Muted", "M to be heard again")
            case State.IDLE:
                return Headline("ready", "Ready", _HOW_TO_BEGIN[self.push_to_talk])
            case State.LISTENING | State.PAUSED:
                return Headline("listening", "Listening", _HOW_TO_END[self.push_to_talk])
            case State.THINKING:
                seconds = int(now_s - self.state_since_s)
                return Headline("thinking", "Thinking", f"{seconds} s" if seconds > 1 else "")
            case State.SPEAKING:
                by_voice = self.push_to_talk == "off" and not self.muted
                return Headline("speaking", "Speaking", "speak to interrupt" if by_voice else "SPACE interrupts")
            case State.DOUBTFUL:
                return Headline("speaking", "Speaking", "waits: did you say something?")


_HOW_TO_BEGIN: dict[PushToTalk, str] = {
    "off": "speak whenever you like",
    "hold": "hold SPACE and speak",
    "toggle": "press SPACE and speak",
}
_HOW_TO_END: dict[PushToTalk, str] = {
    "off": "",
    "hold": "let go of SPACE to be answered",
    "toggle": "press SPACE to be answered",
}


def meter(level: float, cells: int) -> int:
    """How many of `cells` a level (RMS, 0 … 1) fills, in decibels: ears do not hear in volts."""
    if level <= 0:
        return 0
    decibels = 20 * math.log10(level)
    return max(0, min(cells, round(cells * (1 - decibels / QUIETEST_DB))))


def stages_text(latency: Latency) -> str:
    """How long the model took, from when it was asked: at the first pause, before the turn was over."""
    parts = []
    if latency.first_token_ms is not None:
        parts.append(f"first token {latency.first_token_ms:.0f} ms")
    if latency.first_audio_ms is not None:
        parts.append(f"first sound made {latency.first_audio_ms:.0f} ms")
    return f"model: {', '.join(parts)}, from when it was asked" if parts else ""


def devices_text(sound: DeviceState) -> str:
    """The devices in use, in one line."""
    return one_line(f"microphone {sound.microphone or 'none'}, speaker {sound.speaker or 'none'}")
