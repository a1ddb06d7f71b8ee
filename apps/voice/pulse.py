"""What a Linux desktop's sound server (PulseAudio, PipeWire) says of its devices and of this process's streams.

PortAudio reaches such a server through ALSA and sees one device that never changes. When a headset goes, the server
moves its streams to another device without a word, a microphone's even to what the speaker plays; only the server
itself can tell. It is asked through libpulse (`pulsectl`), which is on every such desktop; where it is not (Windows,
macOS, bare ALSA), all of this says None.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SECONDS_TO_ANSWER = 2.0
_SECONDS_BETWEEN = 0.35
"""From the end of a connection to the next attempt."""
_SECONDS_AT_MOST = 3.0
"""Between two questions, should the server forget to tell that something changed."""
_KINDS = ("sink", "source", "sink_input", "source_output", "server")


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
    """What devices there are; None without a server, or with one that hangs: libpulse would wait for it."""
    answers: list[Server] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # no libpulse, no server, or one that went away
            answers.append(_look())

    thread = threading.Thread(target=ask, name="pulse", daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER)
    return answers[0] if answers else None


class Watch:
    """What this process's streams are connected to, asked again whenever the server tells that something changed."""

    def __init__(self) -> None:
        self.streams: Streams | None = None
        """The latest answer."""
        threading.Thread(target=self._run, name="pulse watch", daemon=True).start()

    def _run(self) -> None:
        while True:
            with contextlib.suppress(Exception), _connection() as server:  # whatever ends it, it is begun again
                self._follow(server)
            time.sleep(_SECONDS_BETWEEN)

    def _follow(self, server: Any) -> None:  # noqa: ANN401  # pulsectl has no types
        from pulsectl import PulseLoopStop

        changed = False

        def stop(_: object) -> None:
            nonlocal changed
            changed = True
            raise PulseLoopStop

        server.event_mask_set(*_KINDS)
        server.event_callback_set(stop)
        while True:
            changed = False
            self.streams = _streams(server)
            if not changed:  # what came while it was asked counts too
                server.event_listen(timeout=_SECONDS_AT_MOST)


@contextlib.contextmanager
def _connection() -> Iterator[Any]:
    """A connection to the server. Raises some exception where there is none, and waits for one that hangs."""
    from pulsectl import Pulse

    with Pulse("nearfield", connect=False) as server:
        server.connect()  # starts no server; given a timeout, pulsectl would always take all of it
        yield server


def _look() -> Server:
    with _connection() as server:
        microphones = tuple(device for device in map(_device, server.source_list()) if not device.is_monitor)
        speakers = tuple(map(_device, server.sink_list()))
        default = server.server_info()
    return Server(
        microphones,
        speakers,
        next((device for device in microphones if device.name == default.default_source_name), None),
        next((device for device in speakers if device.name == default.default_sink_name), None),
    )


def _streams(server: Any) -> Streams:  # noqa: ANN401  # pulsectl has no types
    return Streams(
        _connected(server.source_output_list(), "source", server.source_list()),
        _connected(server.sink_input_list(), "sink", server.sink_list()),
    )


def _device(found: Any) -> Device:  # noqa: ANN401  # pulsectl has no types
    is_monitor = found.proplist.get("device.class") == "monitor"
    return Device(found.name, found.description or found.name, is_monitor)


def _connected(streams: list[Any], kind: str, devices: list[Any]) -> Device | None:
    """The device that this process's stream is connected to."""
    for stream in streams:
        if stream.proplist.get("application.process.id") == str(os.getpid()):
            return next((_device(device) for device in devices if device.index == getattr(stream, kind)), None)
    return None
