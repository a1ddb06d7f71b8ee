"""Microphone and speaker on virtual devices: what is said is heard, what is played is played, and every fault is told.

Faults are noticed within a second and over within three, or said plainly for as long as they last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from audio_rig import RATE_HZ, AudioRig, Recorder
from nearfield.apps.voice.sound_device import DeviceChoice, DeviceState, SoundDevice
from nearfield.errors import AudioDeviceError
from sound_listener import Listener, right

Float32 = npt.NDArray[np.float32]

NOTICED_S = 1.0
OVER_S = 3.0
SLOW = Path(__file__).with_name("slow_audio_process.py")


def speech(seconds: float, rate_hz: int, seed: int = 0) -> Float32:
    """Noise with the rhythm of syllables, float32 `(n,)`: every moment of it is unlike every other."""
    count = round(seconds * rate_hz)
    noise = np.random.default_rng(seed).standard_normal(count)
    noise = np.convolve(noise, np.ones(4) / 4, mode="same")  # most of it where speech is
    rhythm = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(count) / rate_hz)
    return (0.25 * noise * rhythm).astype(np.float32)


def lag(of: Float32, within: Float32) -> tuple[int, float]:
    """Where `of` lies in `within`, and how like it that piece is, 0 … 1."""
    size = 1 << (len(of) + len(within)).bit_length()
    product = np.fft.irfft(np.fft.rfft(within, size) * np.conj(np.fft.rfft(of, size)), size)
    place = int(np.argmax(product[: max(1, len(within) - len(of) + 1)]))
    piece = within[place : place + len(of)]
    return place, float(np.dot(of, piece) / (np.linalg.norm(of) * np.linalg.norm(piece) + 1e-9))


def rms_db(sound: Float32) -> float:
    return float(10 * np.log10(np.mean(np.square(sound)) + 1e-12))


def loud(recorder: Recorder, start: int = 0) -> npt.NDArray[np.int64]:
    """Numbers of the recording's samples, from `start` on, that are more than the room's noise."""
    return np.flatnonzero(np.abs(recorder.samples(start)) > 5e-3) + start


def sounds(recorder: Recorder, start: int) -> bool:
    """Whether a tenth of a second of sound was recorded since sample `start`."""
    return len(loud(recorder, start)) > RATE_HZ // 10


@pytest.fixture
def listener(rig: AudioRig) -> Listener:  # noqa: ARG001  # it has to be there
    return Listener(SoundDevice(DeviceChoice(echo_cancellation=False)))


def test_what_is_said_is_heard_in_full_and_in_time(rig: AudioRig, listener: Listener) -> None:
    said = speech(1.5, 16_000)
    with rig.room_noise(), listener:
        listener.wait(lambda: len(listener.frames) > 10, 3)
        before = len(listener.frames)
        rig.say(said).wait()
        time.sleep(0.5)
    heard = np.concatenate([frame.samples for _, frame in listener.frames])
    place, likeness = lag(said, heard)
    assert likeness > 0.98
    assert place > before * 512 - 8000
    assert {len(frame.samples) for _, frame in listener.frames} == {512}
    # The time of capture: where the rig's own recording has the same sound.
    fed = lag(
        np.interp(np.arange(3 * len(said)) / 3, np.arange(len(said)), said).astype(np.float32), rig.feed.samples()
    )
    frame, offset = divmod(place, 512)
    captured_s = listener.frames[frame][1].captured_s - (511 - offset) / 16_000
    assert abs(captured_s - rig.feed.time_s(fed[0])) < 0.1
    waits = [at_s - frame.captured_s for at_s, frame in listener.frames]
    assert -0.02 < np.median(waits) < 0.1


def test_a_reply_is_played_in_full_and_the_count_agrees_with_the_recording(rig: AudioRig, listener: Listener) -> None:
    reply = speech(2.0, 24_000)
    with rig.room_noise(), listener:
        called_s = time.monotonic()
        for piece in np.array_split(reply, 7):
            listener.device.play(3, piece)
        listener.device.finish(3)
        counts = []
        while not (played := listener.device.played(3)).finished:
            assert time.monotonic() < called_s + 8
            counts.append((time.monotonic(), played.samples))
            time.sleep(0.02)
        time.sleep(0.2)
    recorded = rig.speaker.samples()
    doubled = np.interp(np.arange(2 * len(reply)) / 2, np.arange(len(reply)), reply).astype(np.float32)
    pieces = [lag(piece, recorded) for piece in np.array_split(doubled, 20)]
    whole = [place - number * len(doubled) // 20 for number, (place, likeness) in enumerate(pieces) if likeness > 0.95]
    assert played.samples == len(reply)
    # Of 100 ms each, all are there; but where the machine was too busy, and that is counted.
    assert len(whole) >= 20 - 2 * played.underruns
    assert played.underruns <= 3
    assert max(whole) - min(whole) <= 5 or played.underruns
    first_s = rig.speaker.time_s(whole[0])
    assert played.first_sample_s is not None
    assert abs(played.first_sample_s - first_s) < 0.08
    assert first_s - called_s < 0.3
    errors = [samples / 24_000 - (now_s - first_s) for now_s, samples in counts if samples]
    assert abs(float(np.median(errors[: len(errors) // 2]))) < 0.06


def test_held_it_is_silent_soon_and_nothing_is_lost(rig: AudioRig, listener: Listener) -> None:
    reply = speech(3.0, 24_000)
    silent_after_s = []
    with rig.room_noise(), listener:
        listener.device.play(1, reply)
        listener.device.finish(1)
        for _ in range(3):
            start = rig.speaker.count
            listener.wait(partial(sounds, rig.speaker, start), 3)
            held_s = time.monotonic()
            listener.device.hold()
            time.sleep(0.4)
            silent_after_s.append(rig.speaker.time_s(int(loud(rig.speaker)[-1])) - held_s)
            count = listener.device.played(1).samples
            time.sleep(0.1)
            assert listener.device.played(1).samples == count
            listener.device.resume()
        listener.wait(lambda: listener.device.played(1).finished, 6)
        time.sleep(0.2)
    assert max(silent_after_s) < 0.25
    assert listener.device.played(1).samples == len(reply)
    sounding_s = np.count_nonzero(np.convolve(np.abs(rig.speaker.samples()) > 1e-3, np.ones(240)) > 0) / RATE_HZ
    assert 2.9 < sounding_s < 3.15


def test_dropped_it_is_silent_soon_and_the_next_reply_is_whole(rig: AudioRig, listener: Listener) -> None:
    first, second = speech(5.0, 24_000, seed=1), speech(1.0, 24_000, seed=2)
    with rig.room_noise(), listener:
        listener.device.play(1, first)
        listener.wait(lambda: listener.device.played(1).samples > 12_000, 4)
        dropped_s = time.monotonic()
        listener.device.drop()
        listener.device.play(1, first)  # comes late, and is ignored
        time.sleep(0.4)
        assert rig.speaker.time_s(int(loud(rig.speaker)[-1])) - dropped_s < 0.25
        played = listener.device.played(1)
        assert not played.finished
        assert 12_000 < played.samples < 12_000 + 24_000 * 0.4
        listener.device.play(2, second)
        listener.device.finish(2)
        listener.wait(lambda: listener.device.played(2).finished, 4)
        time.sleep(0.2)
    doubled = np.interp(np.arange(2 * len(second)) / 2, np.arange(len(second)), second).astype(np.float32)
    assert lag(doubled, rig.speaker.samples())[1] > 0.95


def test_its_own_voice_is_not_heard(rig: AudioRig) -> None:
    pytest.importorskip("pywebrtc_audio")
    rig.echo(-6)
    reply = speech(6.0, 24_000)
    with rig.room_noise(), Listener(SoundDevice(DeviceChoice())) as listener:
        listener.device.play(1, reply)
        listener.device.finish(1)
        listener.wait(lambda: listener.device.played(1).samples > 24_000 * 3, 6)
        began_s = time.monotonic()
        listener.wait(lambda: listener.device.played(1).finished, 6)
        frames = [frame for at_s, frame in listener.frames if at_s > began_s]
        said = speech(1.0, 16_000, seed=5)
        began_s = time.monotonic()
        rig.say(said).wait()
        time.sleep(0.3)
    echo_db = 20 * np.log10([frame.level for frame in frames])
    assert np.median(echo_db) > -30, "there was no echo to cancel"
    left_db = np.array([rms_db(frame.samples) for frame in frames])
    # By most frames: where the rig's loop stumbles, the echo is suddenly elsewhere, and has to be found again.
    assert np.median(echo_db - left_db) > 25
    assert rms_db(listener.sound(began_s)) > rms_db(said) - 6


# faults


def wrong(state: DeviceState) -> bool:
    return not state.working


Fault = Callable[[AudioRig], object]


@pytest.mark.parametrize(
    ("fault", "repair"),
    [
        (lambda rig: rig.unload("ci_mic"), lambda rig: rig.load("ci_mic")),
        (lambda rig: rig.suspend("ci_mic"), lambda rig: rig.suspend("ci_mic", on=False)),
        (lambda rig: rig.suspend("ci_speaker"), lambda rig: rig.suspend("ci_speaker", on=False)),
        (lambda rig: rig.kill_server(), lambda rig: rig.start()),
    ],
    ids=["microphone unplugged", "microphone asleep", "speaker asleep", "server killed"],
)
@pytest.mark.parametrize("choice", [DeviceChoice(), DeviceChoice("ci_mic", "ci_speaker")], ids=["default", "by name"])
def test_a_device_that_goes_is_told_and_found_again(
    rig: AudioRig, fault: Fault, repair: Fault, choice: DeviceChoice
) -> None:
    with Listener(SoundDevice(choice)) as listener:
        with rig.room_noise():
            listener.wait(lambda: listener.states and right(listener.state), 3)
            since = len(listener.states)
            fault(rig)
            listener.wait_for_state(wrong, NOTICED_S, since)
        time.sleep(1.5)
        assert wrong(listener.state), "it cannot work: the device is not there"
        quiet_from_s = time.monotonic()
        repair(rig)
        with rig.room_noise():
            listener.wait(lambda: right(listener.state), OVER_S)
            listener.wait(lambda: any(at_s > quiet_from_s for at_s, _ in listener.frames), OVER_S)


def test_a_speaker_that_goes_is_replaced_by_the_next(rig: AudioRig, listener: Listener) -> None:
    rig.load("ci_other")
    reply = speech(4.0, 24_000)
    with rig.room_noise(), listener:
        other = rig.record("ci_other.monitor")
        listener.device.play(1, reply)
        listener.device.finish(1)
        listener.wait(lambda: listener.device.played(1).samples > 24_000, 4)
        feed_from = rig.feed.count
        rig.unload("ci_speaker")
        listener.wait(lambda: listener.device.played(1).finished, 4 + OVER_S)
        assert right(listener.state)
        assert len(loud(other)) + len(loud(rig.feed, feed_from)) > RATE_HZ  # whichever of them is the default now


def test_the_devices_named_are_used_and_no_others(rig: AudioRig) -> None:
    rig.load("ci_other")
    with rig.room_noise(), Listener(SoundDevice(DeviceChoice("ci_mic", "other"))) as listener:
        other = rig.record("ci_other.monitor")
        listener.device.play(1, speech(1.0, 24_000))
        listener.device.finish(1)
        listener.wait(lambda: listener.device.played(1).finished, 4)
        assert len(loud(other)) > RATE_HZ / 2
        assert not len(loud(rig.speaker))
        since = len(listener.states)
        rig.unload("ci_other")
        listener.wait_for_state(wrong, NOTICED_S, since)
        time.sleep(1.0)
        assert wrong(listener.state)
        assert "other" in str(listener.state.trouble)


def test_a_default_that_changes_is_followed(rig: AudioRig, listener: Listener) -> None:
    rig.load("ci_other")
    with rig.room_noise(), listener:
        other = rig.record("ci_other.monitor")
        listener.wait(lambda: listener.states and right(listener.state), 3)
        rig.pactl("set-default-sink", "ci_other")
        time.sleep(NOTICED_S)
        listener.device.play(1, speech(1.0, 24_000))
        listener.device.finish(1)
        listener.wait(lambda: listener.device.played(1).finished, 4)
        assert right(listener.state)
        assert len(loud(other)) > RATE_HZ / 2


def test_a_device_that_changes_its_rate_goes_on(rig: AudioRig, listener: Listener) -> None:
    with rig.room_noise(), listener:
        listener.wait(lambda: listener.states and right(listener.state), 3)
        rig.change_rate("ci_speaker", 44_100)
        recorder = rig.record("ci_speaker.monitor")
        with rig.room_noise():  # the other may have moved
            time.sleep(OVER_S)
            assert right(listener.state)
            reply = speech(1.5, 24_000)
            listener.device.play(1, reply)
            listener.device.finish(1)
            listener.wait(lambda: listener.device.played(1).finished, 5)
            time.sleep(0.2)
    doubled = np.interp(np.arange(2 * len(reply)) / 2, np.arange(len(reply)), reply).astype(np.float32)
    assert lag(doubled, recorder.samples())[1] > 0.9


def test_digital_silence_is_told_and_frames_go_on(rig: AudioRig, listener: Listener) -> None:
    with listener:
        with rig.room_noise():
            listener.wait(lambda: listener.states and right(listener.state), 3)
            listener.wait(lambda: np.any(listener.frames[-1][1].samples), 3)
            since, began_s = len(listener.states), time.monotonic()
        listener.wait_for_state(lambda state: "digital silence" in (state.trouble or ""), NOTICED_S, since)
        assert listener.state.working
        time.sleep(0.5)
        assert len(listener.sound(began_s)) > 8000
        with rig.room_noise():
            listener.wait(lambda: right(listener.state), OVER_S)


def test_a_process_that_stands_still_is_replaced_and_the_reply_goes_on(rig: AudioRig, listener: Listener) -> None:
    reply = speech(4.0, 24_000)
    with rig.room_noise(), listener:
        listener.device.play(1, reply)
        listener.device.finish(1)
        listener.wait(lambda: listener.device.played(1).samples > 24_000, 4)
        (child,) = [child for child in psutil.Process().children() if "audio_process" in " ".join(child.cmdline())]
        since = len(listener.states)
        child.send_signal(signal.SIGSTOP)
        listener.wait_for_state(wrong, NOTICED_S, since)
        listener.wait(lambda: right(listener.state), OVER_S)
        assert not child.is_running()
        listener.wait(lambda: listener.device.played(1).finished, 6)
        assert listener.device.played(1).samples == len(reply)


def test_a_slow_callback_is_told_and_over_when_it_is(rig: AudioRig, tmp_path: Path) -> None:
    switch = tmp_path / "slow"
    device = SoundDevice(DeviceChoice(), command=[sys.executable, str(SLOW), str(switch)])
    with rig.room_noise(), Listener(device) as listener:
        listener.wait(lambda: listener.states and right(listener.state), 3)
        since = len(listener.states)
        switch.touch()
        listener.wait_for_state(wrong, NOTICED_S, since)
        switch.unlink()
        listener.wait(lambda: right(listener.state), OVER_S)


def test_without_a_server_it_says_so_at_the_start(rig: AudioRig) -> None:
    rig.kill_server()
    device = SoundDevice(DeviceChoice())
    began_s = time.monotonic()
    with pytest.raises(AudioDeviceError, match=r"no (microphone|speaker) was found"):
        device.start()
    assert time.monotonic() - began_s < 10


@pytest.mark.usefixtures("rig")
def test_a_name_nobody_has_is_told_with_those_there_are() -> None:
    with pytest.raises(AudioDeviceError, match=r"there is no microphone 'Headset'; there is: .*\(ci_mic\)"):
        SoundDevice(DeviceChoice(microphone="Headset")).start()


@pytest.mark.usefixtures("rig")
def test_no_audio_process_outlives_who_started_it() -> None:
    code = (
        "from nearfield.apps.voice.sound_device import *; import time; d = SoundDevice(DeviceChoice()); d.start(); "
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = psutil.Process(parent.pid).children(recursive=True)
        assert any("audio_process" in " ".join(child.cmdline()) for child in children)
        os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive
