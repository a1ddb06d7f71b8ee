"""What a Linux desktop's sound server (PulseAudio, PipeWire) says of its devices and of this process's streams.

PortAudio reaches such a server through ALSA and sees one device that never changes. When a headset goes, the server
moves its streams to another device without a word, a microphone's even to what the speaker plays; only the server
itself can tell. It is asked with its own tool, `pactl`; where there is none (Windows, macOS, bare ALSA), all of this
says None.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any

_SECONDS_TO_ANSWER = 2.0
_SECONDS_BETWEEN = 0.35


@dataclass(frozen=True)
class Device:
    """A microphone or speaker of the server."""

    name: str
    """Its name for the server."""
    title: str
    """Its name for people."""
    is_monitor: bool = False
    """Not a microphone, but what a speaker plays."""


@dataclass(frozen=True)
class Server:
    """What there is."""

    microphones: tuple[Device, ...]
    speakers: tuple[Device, ...]
    default_microphone: Device | None
    """None also where the default is what a speaker plays."""
    default_speaker: Device | None


@dataclass(frozen=True)
class Streams:
    """What this process's streams are connected to; None for one that is not."""

    microphone: Device | None
    speaker: Device | None


def look() -> Server | None:
    """Ask what devices there are; None without a server."""
    listed, info = _ask("list"), _ask("info")
    if listed is None or info is None:
        return None
    microphones = tuple(device for device in _devices(listed["sources"]) if not device.is_monitor)
    speakers = tuple(_devices(listed["sinks"]))
    return Server(
        microphones,
        speakers,
        next((device for device in microphones if device.name == info["default_source_name"]), None),
        next((device for device in speakers if device.name == info["default_sink_name"]), None),
    )


def streams() -> Streams | None:
    """Ask what this process's streams are connected to; None without an answer."""
    listed = _ask("list")
    if listed is None:
        return None
    return Streams(
        _connected(listed["source_outputs"], "source", listed["sources"]),
        _connected(listed["sink_inputs"], "sink", listed["sinks"]),
    )


class Watch:
    """Asks again and again, in a thread of its own."""

    def __init__(self) -> None:
        self.streams: Streams | None = None
        """The latest answer."""
        threading.Thread(target=self._run, name="pulse watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.streams = streams() or self.streams
            time.sleep(_SECONDS_BETWEEN)


def _ask(what: str) -> Any:  # noqa: ANN401  # pactl's JSON
    """The answer of `pactl`; None where it has none."""
    program = shutil.which("pactl")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "--format=json", what],
            env={**os.environ, "LC_ALL": "C"},  # with a decimal comma it would write no JSON
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS_TO_ANSWER,
            check=True,
        )
        return json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None  # no server, or a pactl from before it could speak JSON


def _devices(entries: list[dict[str, Any]]) -> list[Device]:
    return [_device(entry) for entry in entries]


def _device(entry: dict[str, Any]) -> Device:
    is_monitor = entry.get("properties", {}).get("device.class") == "monitor"
    return Device(entry["name"], entry.get("description") or entry["name"], is_monitor)


def _connected(streams: list[dict[str, Any]], kind: str, devices: list[dict[str, Any]]) -> Device | None:
    """The device that this process's stream is connected to."""
    for stream in streams:
        if stream.get("properties", {}).get("application.process.id") == str(os.getpid()):
            return next((_device(device) for device in devices if device["index"] == stream[kind]), None)
    return None
