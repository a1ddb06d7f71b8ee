"""The audio process with callbacks that are slow for as long as a file exists: arguments: the file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import sounddevice
from nearfield.apps.voice import audio_process

SWITCH = Path(sys.argv[1])


class SlowStream(sounddevice.InputStream):  # type: ignore[misc]  # sounddevice has no types
    """Dawdles in every call."""

    def __init__(self, *, callback: Any, **settings: Any) -> None:
        def slow(*arguments: Any) -> None:
            if SWITCH.exists():
                time.sleep(0.1)
            callback(*arguments)

        super().__init__(callback=slow, **settings)


sounddevice.InputStream = SlowStream
audio_process.main()
