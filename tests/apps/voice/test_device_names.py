"""Devices are found by name, in part where that is enough; the sound server's by either of their names."""

from __future__ import annotations

import os

import pytest
from nearfield.apps.voice import pulse
from nearfield.errors import AudioDeviceError

try:
    from nearfield.apps.voice import device_names
except OSError:  # sounddevice without PortAudio
    pytest.skip("no PortAudio here", allow_module_level=True)

NAMES = ["USB Headset", "USB Headset Mono", "Built-in Audio", "USB Camera"]


@pytest.mark.parametrize(("wanted", "place"), [("USB Headset", 0), ("usb headset", 0), ("mono", 1), ("Built", 2)])
def test_a_device_is_meant_by_its_name_or_a_part_only_it_has(wanted: str, place: int) -> None:
    assert device_names.choose("microphone", wanted, NAMES) == place


def test_a_part_that_several_have_is_refused_with_their_names() -> None:
    message = "'usb' is the name of more than one speaker: USB Headset, USB Headset Mono, USB Camera; give more of it"
    with pytest.raises(AudioDeviceError, match=message):
        device_names.choose("speaker", "usb", NAMES)


def test_a_name_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        AudioDeviceError, match="there is no microphone 'Studio'; there is: USB Headset, USB Headset Mono"
    ):
        device_names.choose("microphone", "Studio", NAMES)
    with pytest.raises(AudioDeviceError, match="there is no microphone 'Studio'; there is: none"):
        device_names.choose("microphone", "Studio", [])


def test_without_a_microphone_the_speaker_s_monitor_is_none() -> None:
    loud = pulse.Device("loud", "Loudspeaker")
    server = pulse.Server((), (loud,), None, loud)
    with pytest.raises(AudioDeviceError, match="no microphone was found; connect one"):
        device_names.find("microphone", None, server)
    headset = pulse.Device("headset", "Headset")
    server = pulse.Server((headset,), (loud,), None, loud)
    with pytest.raises(AudioDeviceError, match="no default microphone was found; choose one"):
        device_names.find("microphone", None, server)


def test_the_choice_reaches_the_server_and_the_default_takes_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSE_SINK", "old")
    loud, other = pulse.Device("loud", "Loudspeaker"), pulse.Device("tv", "Television")
    server = pulse.Server((), (loud, other), None, loud)
    monkeypatch.setattr("sounddevice.query_devices", lambda: [{"name": "pulse", "max_output_channels": 32}])
    found = device_names.find("speaker", "televi", server)
    assert (found.index, found.title, found.name, found.channels) == (0, "Television", "tv", 1)
    assert os.environ["PULSE_SINK"] == "tv"
    assert device_names.find("speaker", None, server).name == "loud"
    assert "PULSE_SINK" not in os.environ
