"""What is said of devices that stand still, end, fall silent, come too slowly or are not the ones asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from nearfield.apps.voice import pulse
from nearfield.apps.voice.device_names import Device
from nearfield.apps.voice.watchdog import Gone, Watchdog
from nearfield.apps.voice.wire import DeviceChoice, DeviceState

RATE_HZ = 1000


@dataclass
class Stream:
    """As `Microphone` and `Speaker` look to the watchdog."""

    device: Device
    ended: bool = False
    called_s: float = 0.0
    samples: int = 0
    error: Exception | None = None


class Bench:
    """A watchdog with two streams and a clock."""

    def __init__(self, choice: DeviceChoice | None = None, lasting_trouble: str | None = None) -> None:
        self.now_s = 0.0
        self.microphone = Stream(Device(0, "Headset", "headset", RATE_HZ, 1))
        self.speaker = Stream(Device(1, "Loudspeaker", "loud", RATE_HZ, 2))
        self.connected: pulse.Streams | None = None
        self.watchdog = Watchdog(
            choice or DeviceChoice(),
            self.microphone,
            self.speaker,
            lambda: self.connected,
            lasting_trouble=lasting_trouble,
        )

    def run(
        self, seconds: float, *, microphone: float = 1.0, speaker: float = 1.0, silent: bool = False
    ) -> DeviceState | None:
        """Let time pass with so much of the sound there should be; the last state of all."""
        state = None
        for _ in range(round(seconds * 100)):
            self.now_s += 0.01
            for stream, pace in ((self.microphone, microphone), (self.speaker, speaker)):
                if pace:
                    stream.samples += round(10 * pace)
                    stream.called_s = self.now_s
            if microphone:
                self.watchdog.heard(np.full(10, 0 if silent else 1e-4, np.float32), self.now_s)
            state = self.watchdog.check(self.now_s)
        return state


WORKING = DeviceState(True, "Headset", "Loudspeaker", None)


def test_nothing_is_said_before_both_have_begun_and_then_that_they_work() -> None:
    bench = Bench()
    assert bench.run(1.0, microphone=0) is None
    assert bench.run(0.1) is None
    assert bench.run(0.3) == WORKING
    assert bench.run(10) == WORKING


@pytest.mark.parametrize(
    ("microphone", "speaker", "message"),
    [
        (0.0, 1.0, r"the microphone \(Headset\) gives no sound"),
        (1.0, 0.0, r"the speaker \(Loudspeaker\) takes no sound"),
    ],
)
def test_a_stream_that_is_not_called_any_more_is_given_up_after_half_a_second(
    microphone: float, speaker: float, message: str
) -> None:
    bench = Bench()
    bench.run(1)
    bench.run(0.45, microphone=microphone, speaker=speaker)
    with pytest.raises(Gone, match=message):
        bench.run(0.15, microphone=microphone, speaker=speaker)


def test_a_stream_that_never_begins_is_given_longer() -> None:
    bench = Bench()
    bench.run(1.9, microphone=0)
    with pytest.raises(Gone, match="gives no sound"):
        bench.run(0.2, microphone=0)


def test_a_stream_that_ended_or_failed_is_given_up() -> None:
    bench = Bench()
    bench.run(1)
    bench.speaker.ended = True
    with pytest.raises(Gone, match=r"the speaker \(Loudspeaker\) is gone"):
        bench.run(0.01)
    bench = Bench()
    bench.microphone.error = ValueError("broken")
    with pytest.raises(Gone, match=r"the microphone \(Headset\) failed: ValueError\('broken'\)"):
        bench.run(0.01)


def test_digital_silence_is_told_while_it_lasts() -> None:
    bench = Bench(lasting_trouble="use headphones")
    bench.run(1)
    state = bench.run(0.9, silent=True)
    assert state is not None
    assert state.working
    assert state.trouble == "the microphone (Headset) gives only digital silence: is it muted?; use headphones"
    assert bench.run(0.1) == DeviceState(True, "Headset", "Loudspeaker", "use headphones")


@pytest.mark.parametrize(("microphone", "speaker"), [(0.5, 1.0), (1.0, 0.5)], ids=["microphone", "speaker"])
def test_too_little_sound_is_told_soon_and_while_it_lasts(microphone: float, speaker: float) -> None:
    bench = Bench()
    bench.run(2)
    state = bench.run(1.25, microphone=microphone, speaker=speaker)
    assert state is not None
    assert not state.working
    kind = "microphone" if microphone < 1 else "speaker"
    assert state.trouble == f"only 50% of the {kind}'s sound gets through: the computer is too busy"
    assert bench.run(1.25) == WORKING


@pytest.mark.parametrize("begins_s", np.arange(2.0, 2.7, 0.05))
def test_half_of_the_sound_missing_is_told_within_a_second_whenever_it_begins(begins_s: float) -> None:
    bench = Bench()
    bench.run(begins_s)
    state = bench.run(0.9, microphone=0.5)
    assert state is not None
    assert not state.working


def test_another_default_is_taken_note_of() -> None:
    bench = Bench()
    bench.run(1)
    bench.connected = pulse.Streams(pulse.Device("headset", "Headset"), pulse.Device("tv", "Television"))
    assert bench.run(0.01) == DeviceState(True, "Headset", "Television", None)


def test_another_device_than_asked_is_none() -> None:
    bench = Bench(DeviceChoice(speaker="loud"))
    bench.run(1)
    bench.connected = pulse.Streams(None, pulse.Device("tv", "Television"))
    with pytest.raises(Gone, match=r"the speaker \(Loudspeaker\) is gone; the system offers Television in its place"):
        bench.run(0.01)


def test_what_a_speaker_plays_is_no_microphone() -> None:
    bench = Bench()
    bench.run(1)
    bench.connected = pulse.Streams(pulse.Device("loud.monitor", "Monitor", is_monitor=True), None)
    with pytest.raises(Gone, match=r"the microphone \(Headset\) is gone, and there is no other"):
        bench.run(0.01)
