"""Which devices there are and which are meant, asked for real in a process of its own, on stand-ins for sounddevice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nearfield.apps.cli.common import install_command
from nearfield.apps.cli.devices import Devices, find_devices, listing
from nearfield.apps.voice.sound_device import DeviceChoice
from nearfield.errors import AudioDeviceError

SOUNDDEVICE = """
class PortAudioError(Exception):
    pass
class default:
    hostapi = 0
DEVICES = [
    {"name": "USB Headset", "max_input_channels": 1, "max_output_channels": 2, "default_samplerate": 48000.0},
    {"name": "Laptop", "max_input_channels": 2, "max_output_channels": 2, "default_samplerate": 44100.0},
]
def query_hostapis():
    return [{"name": "Core Audio", "devices": [0, 1], "default_input_device": 1, "default_output_device": 1}]
def query_devices(index=None):
    return DEVICES if index is None else DEVICES[index]
"""


def stand_in(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `source` the sounddevice that is asked, on a machine without a sound server."""
    (folder / "sounddevice.py").write_text(source, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PATH", str(folder))  # without pactl


def test_devices_are_listed_and_chosen_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, SOUNDDEVICE, monkeypatch)
    both = ["USB Headset", "Laptop"]
    assert find_devices(DeviceChoice()) == Devices(both, both, "Laptop", "Laptop")
    assert find_devices(DeviceChoice("headset", "LAPTOP")) == Devices(both, both, "USB Headset", "Laptop")
    assert listing(find_devices(DeviceChoice())).splitlines()[:3] == [
        "microphones:",
        "  USB Headset",
        "  Laptop  (used)",
    ]
    found = find_devices(DeviceChoice("piano"))
    assert found.microphone is None
    assert found.trouble is not None
    assert "no microphone 'piano'" in found.trouble
    assert "USB Headset, Laptop" in found.trouble


def test_a_machine_without_devices_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, SOUNDDEVICE.replace('"devices": [0, 1]', '"devices": []'), monkeypatch)
    found = find_devices(DeviceChoice())
    assert listing(found) == "microphones:\n  none was found\nspeakers:\n  none was found"
    assert found.trouble is not None
    assert found.trouble.startswith("no microphone was found")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ModuleNotFoundError('no module')", re.escape(f"no sounddevice; {install_command('voice')}")),
        ("raise OSError('PortAudio library not found')", "no PortAudio; on Debian and Ubuntu: apt install"),
        ("raise RuntimeError('unforeseen')", "the search for devices ended with code 1"),
        ("import time; time.sleep(60)", "the sound system does not respond"),
    ],
    ids=["package", "library", "unforeseen", "hangs"],
)
def test_what_hinders_the_search_is_told(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, source, monkeypatch)
    with pytest.raises(AudioDeviceError, match=reason):
        find_devices(DeviceChoice(), timeout_s=10.0)
