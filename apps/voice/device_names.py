"""Which microphone and which speaker: by name among those the system has.

On Linux desktops PortAudio sees no devices, only doors to the sound server; `pulse.py` knows what is behind them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sounddevice

from ...errors import AudioDeviceError
from . import pulse

Kind = Literal["microphone", "speaker"]

_WINDOWS = "Windows WASAPI"  # PortAudio lists a device once for every way to it; the others take 100 ms and more
_DOORS = ("pulse", "pipewire", "default")  # ALSA's names for the way to the sound server
_ALSA_RATE_HZ = 48_000  # PortAudio names 44.1 kHz for all of ALSA's devices; servers and most hardware run at this
_CHANNELS = {"microphone": "max_input_channels", "speaker": "max_output_channels"}
_SERVER_VARIABLES = {"microphone": "PULSE_SOURCE", "speaker": "PULSE_SINK"}


@dataclass(frozen=True)
class Device:
    """One that can be opened."""

    index: int
    """Its number in PortAudio's list."""
    title: str
    """Its name for people."""
    name: str
    """Its name for the sound server, if there is one."""
    rate_hz: int
    channels: int
    """1, or 2 where the device itself has more than one."""


def find(kind: Kind, wanted: str | None, server: pulse.Server | None) -> Device:
    """The device of this name, or the default one. Raises `AudioDeviceError` when there is none, or more than one."""
    if server is not None:
        return _behind_server(kind, wanted, server)
    host = _host()
    candidates = [index for index in host["devices"] if sounddevice.query_devices(index)[_CHANNELS[kind]] > 0]
    if not candidates:
        raise _none(kind)
    if wanted is None:
        index = host["default_input_device" if kind == "microphone" else "default_output_device"]
        index = index if index in candidates else candidates[0]
    else:
        index = candidates[choose(kind, wanted, [sounddevice.query_devices(index)["name"] for index in candidates])]
    device = sounddevice.query_devices(index)
    rate_hz = round(device["default_samplerate"])
    channels = min(2, device[_CHANNELS[kind]])
    if host["name"] == "ALSA" and _takes(kind, index, channels):
        rate_hz = _ALSA_RATE_HZ
    return Device(index, device["name"], device["name"], rate_hz, channels)


def names(kind: Kind, server: pulse.Server | None) -> list[str]:
    """All there are. Two may have one title, so where a server has names of its own these stand behind it."""
    if server is not None:
        return [both_names(device) for device in (server.microphones if kind == "microphone" else server.speakers)]
    entries = (sounddevice.query_devices(index) for index in _host()["devices"])
    return [entry["name"] for entry in entries if entry[_CHANNELS[kind]] > 0]


def choose(kind: Kind, wanted: str, names: Sequence[str]) -> int:
    """The place of the device meant: of that very name, or the only one with that in it. Raises `AudioDeviceError`."""
    lower = wanted.casefold()
    tests: list[Callable[[str], bool]] = [lambda name: name.casefold() == lower, lambda name: lower in name.casefold()]
    for test in tests:
        found = [place for place, name in enumerate(names) if test(name)]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(names[place] for place in found)
            raise AudioDeviceError(f"{wanted!r} is the name of more than one {kind}: {several}; give more of it")
    raise AudioDeviceError(f"there is no {kind} {wanted!r}; there is: {', '.join(names) or 'none'}")


def _behind_server(kind: Kind, wanted: str | None, server: pulse.Server) -> Device:
    """The same where a sound server has the devices: which one it is to be reaches it through the environment."""
    devices = server.microphones if kind == "microphone" else server.speakers
    device = server.default_microphone if kind == "microphone" else server.default_speaker
    os.environ.pop(_SERVER_VARIABLES[kind], None)
    if not devices:
        raise _none(kind)
    if wanted is not None:
        # Both of its names can be meant; one that has both in it is still one device.
        device = devices[choose(kind, wanted, [both_names(device) for device in devices])]
        os.environ[_SERVER_VARIABLES[kind]] = device.name
    if device is None:
        raise AudioDeviceError(f"no default {kind} was found; choose one in the system's sound settings")
    listed = list(enumerate(sounddevice.query_devices()))
    for door in _DOORS:
        for index, entry in listed:
            if entry["name"] == door and entry[_CHANNELS[kind]] > 0:
                return Device(index, device.title, device.name, _ALSA_RATE_HZ, channels=1)
    raise AudioDeviceError("ALSA does not reach the sound server; on Debian and Ubuntu: apt install libasound2-plugins")


def _host() -> dict[str, Any]:
    """The way to the devices: the system's usual one, but the quick one on Windows."""
    hosts: Sequence[dict[str, Any]] = sounddevice.query_hostapis()
    usual = hosts[max(sounddevice.default.hostapi, 0)]
    return next((host for host in hosts if host["name"] == _WINDOWS), usual)


def _takes(kind: Kind, index: int, channels: int) -> bool:
    """Whether the device runs at ALSA's usual rate."""
    check = sounddevice.check_input_settings if kind == "microphone" else sounddevice.check_output_settings
    try:
        check(device=index, channels=channels, dtype="float32", samplerate=_ALSA_RATE_HZ)
    except sounddevice.PortAudioError:
        return False
    return True


def both_names(device: Device | pulse.Device) -> str:
    """Its title, and where that is another its name for the server."""
    return device.name if device.name == device.title else f"{device.title} ({device.name})"


def _none(kind: Kind) -> AudioDeviceError:
    return AudioDeviceError(f"no {kind} was found; connect one, or switch it on in the system's sound settings")
