"""Stand-ins for `nearfield talk`: an assistant that tells a script, and devices that are simply there."""

from __future__ import annotations

import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nearfield.apps.cli import devices
from nearfield.apps.cli.devices import Devices
from nearfield.apps.voice.notices import (
    DeviceNotice,
    HeardText,
    Latency,
    Notice,
    ReplyText,
    StateChanged,
    TurnDone,
)
from nearfield.apps.voice.saving import save_conversation
from nearfield.apps.voice.sound_device import DeviceChoice, DeviceState
from nearfield.apps.voice.store import Turn
from nearfield.apps.voice.turn_taking import PushToTalk, State
from nearfield.errors import NearfieldError

HEADSET = Devices(["USB Headset", "Laptop"], ["Laptop"], "USB Headset", "Laptop")
SCRIPT: tuple[Notice, ...] = (
    DeviceNotice(DeviceState(True, "USB Headset", "Laptop", None)),
    StateChanged(State.LISTENING),
    StateChanged(State.THINKING),
    ReplyText(1, "Seven plus"),
    HeardText(1, "What is seven plus four?"),
    StateChanged(State.SPEAKING),
    TurnDone(1, 1.9, "Seven plus four is eleven.", False, Latency(640.0, 45.0, 110.0, 812.0)),
    StateChanged(State.IDLE),
)


class Assistant:
    """Tells its script, then ends as it was told to: by Ctrl-C, by an error, or by a key that the test presses."""

    script: Sequence[Notice] = SCRIPT
    end: BaseException | None = KeyboardInterrupt()
    latest: Assistant | None = None

    def __init__(self, omni: object, device: object, **options: Any) -> None:
        self.options, self.calls = options, list[object]()
        self._notices = list(type(self).script)
        type(self).latest = self

    def notice(self, timeout_s: float) -> Notice | None:
        if self._notices:
            return self._notices.pop(0)
        if self.end is not None:
            raise self.end
        time.sleep(timeout_s)
        return None

    def push_to_talk(self, mode: PushToTalk) -> None:
        self.calls.append(("push-to-talk", mode))

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def mute(self, on: bool) -> None:
        self.calls.append(("mute", on))

    def save(self, folder: Path) -> list[Path]:
        assert "close" not in self.calls, "what is not kept is gone once it is closed"
        sound = np.zeros(100, np.float32)
        said = any(isinstance(notice, TurnDone) for notice in self.script)
        return save_conversation(folder, [Turn(sound, None, None, "Yes.", "Yes.", False, sound)] * said)

    def close(self) -> None:
        self.calls.append("close")


def find_headset(_choice: DeviceChoice) -> Devices:
    """In place of `find_devices`."""
    return HEADSET


def module_of(assistant: type[Assistant]) -> types.ModuleType:
    """A module in place of apps/voice/assistant.py."""
    module = types.ModuleType("nearfield.apps.voice.assistant")
    module.Assistant = assistant  # type: ignore[attr-defined]
    return module


class UntilQuit(Assistant):
    """Goes on until a key ends it, and disturbs the screen when it is muted."""

    end = None

    def mute(self, on: bool) -> None:
        """As a library would that warns."""
        sys.stderr.write("a library is unhappy\n")


class Breaks(Assistant):
    """Ends by an error."""

    end = NearfieldError("the ear broke")


def install(assistant: type[Assistant]) -> None:
    """Put the stand-ins in place, for good: for a process of its own."""
    module = module_of(assistant)
    sys.modules[module.__name__] = module
    setattr(devices, "find_devices", find_headset)  # noqa: B010  # mypy minds a plain assignment
