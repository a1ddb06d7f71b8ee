"""The audio process dies, stands still, sends nonsense, finds no device: it is told, and begun anew; nothing hangs."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from nearfield.apps.voice.sound_device import DeviceChoice, DeviceState, SoundDevice
from nearfield.errors import AudioDeviceError
from sound_listener import Listener

FAKE = Path(__file__).with_name("fake_audio_process.py")
WORKING = DeviceState(True, "Fake microphone", "Fake speaker", None)


def device(manner: str, folder: Path) -> SoundDevice:
    return SoundDevice(DeviceChoice(), command=[sys.executable, str(FAKE), manner, str(folder)])


def played_something(sound: SoundDevice, reply: int) -> bool:
    return sound.played(reply).samples > 0


def test_frames_come_in_order_and_with_them_what_is_in_use(tmp_path: Path) -> None:
    with Listener(device("works", tmp_path)) as listener:
        listener.wait(lambda: len(listener.frames) > 20, 5)
    assert [state for _, state in listener.states] == [WORKING]
    assert [int(frame.samples[0]) for _, frame in listener.frames[:20]] == list(range(20))


@pytest.mark.parametrize(
    ("manner", "trouble"),
    [
        ("dies", "the audio process ended: exit code 3; something broke; trying again"),
        ("falls silent", "the audio process does not answer; trying again"),
        (
            "sends nonsense",
            "the audio process ended: it sent nonsense: expected a message, found b'ALSA lib'; trying again",
        ),
        ("tells", "the microphone (Fake) is gone; trying again"),
    ],
)
def test_when_it_fails_that_is_told_and_the_next_goes_on_with_the_reply(
    manner: str, trouble: str, tmp_path: Path
) -> None:
    with Listener(device(manner, tmp_path)) as listener:
        listener.device.play(7, np.ones(4800, np.float32))
        listener.device.finish(7)
        listener.device.hold()
        listener.wait(lambda: len(listener.states) == 3, 8)
        listener.wait(lambda: listener.device.played(7).finished, 5)
        assert listener.device.played(7).samples == 4800
        assert listener.device.played(7).first_sample_s == 5.0
        frames = len(listener.frames)
        listener.wait(lambda: len(listener.frames) > frames + 10, 5)
    assert [state for _, state in listener.states] == [WORKING, DeviceState(False, None, None, trouble), WORKING]
    noticed_s = listener.states[1][0] - max(at_s for at_s, _ in listener.frames if at_s < listener.states[1][0])
    assert noticed_s < 1.2
    second = (tmp_path / "run-1").read_text(encoding="utf-8").split("\n")
    assert [line.strip() for line in second if line] == ["DeviceChoice", "Hold", "Play 2400", "Finish"]


def test_a_reply_that_was_dropped_does_not_come_back(tmp_path: Path) -> None:
    with Listener(device("dies", tmp_path)) as listener:
        listener.device.play(7, np.ones(4800, np.float32))
        listener.device.drop()
        listener.device.play(7, np.ones(4800, np.float32))
        listener.wait(lambda: len(listener.states) == 3, 8)
        listener.wait(lambda: len(listener.frames) > 80, 5)
        assert not listener.device.played(7).finished
    assert (tmp_path / "run-0").read_text(encoding="utf-8").split() == ["DeviceChoice", "Play", "4800", "Drop"]
    assert (tmp_path / "run-1").read_text(encoding="utf-8").split() == ["DeviceChoice"]


def test_how_far_a_reply_has_got_is_known_for_the_latest_few(tmp_path: Path) -> None:
    with Listener(device("works", tmp_path)) as listener:
        for reply in range(12):
            listener.device.play(reply, np.ones(100 + reply, np.float32))
            listener.wait(partial(played_something, listener.device, reply), 5)
        listener.device.play(3, np.ones(5, np.float32))  # an earlier one: ignored
        assert listener.device.played(10).samples == 110
        assert listener.device.played(2).samples == 0


def test_without_a_device_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(AudioDeviceError, match=r"^no microphone was found$"):
        device("no device", tmp_path).start()


def test_a_command_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    with pytest.raises(AudioDeviceError, match="the audio process cannot be started"):
        SoundDevice(DeviceChoice(), command=[str(tmp_path / "nothing")]).start()


def test_closing_never_waits_for_a_process_that_does_nothing(tmp_path: Path) -> None:
    sound = device("falls silent", tmp_path)
    sound.start()
    (process,) = psutil.Process().children()
    for _ in range(100):  # more than the pipe holds
        sound.play(1, np.ones(240_000, np.float32))
    process.suspend()
    began_s = time.monotonic()
    sound.close()
    assert time.monotonic() - began_s < 6  # it promises two, on a machine with time for it
    assert not process.is_running()
    sound.close()


def test_reading_never_waits_longer_than_told(tmp_path: Path) -> None:
    sound = device("falls silent", tmp_path)
    sound.start()
    began_s = time.monotonic()
    while sound.read(0.2) is not None:
        assert time.monotonic() < began_s + 10
    sound.close()
    began_s = time.monotonic()
    assert sound.read(0.05) is None
    assert time.monotonic() - began_s < 1
