"""Replies on their way through the ring to the device: all of it, in order, counted when it is heard; held and dropped.

The device is played by hand: it takes blocks of 10 ms, and is heard 40 ms later.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from nearfield.apps.voice.replies import Replies
from nearfield.apps.voice.speaker import Output
from nearfield.apps.voice.wire import Played

Float32 = npt.NDArray[np.float32]

BLOCK_S = 0.01
DELAY_S = 0.04


class Device:
    """A device at 24 kHz, so that nothing is resampled, with a clock that moves by blocks."""

    def __init__(self, channels: int = 1) -> None:
        self.output = Output(24_000)
        self.replies = Replies(self.output)
        self.now_s = 10.0
        self._channels = channels
        self._blocks: list[Float32] = []

    @property
    def sound(self) -> Float32:
        """All that was given to the device, float32 `(n, channels)`."""
        return np.concatenate(self._blocks)

    def run(self, blocks: int, *, dry: bool = False) -> Float32:
        """Let so many blocks pass and return them, `(n,)`."""
        for _ in range(blocks):
            self.replies.feed(self.now_s)
            block = np.full((240, self._channels), 9, np.float32)
            self.output.fill(block, self.now_s + DELAY_S, device_ran_dry=dry)
            self._blocks.append(block)
            self.now_s += BLOCK_S
        return np.concatenate(self._blocks[-blocks:])[:, 0]

    def play(self, number: int, samples: Float32) -> None:
        """Sound comes now."""
        self.replies.play(number, samples, self.now_s)

    def played(self) -> Played:
        progress = self.replies.progress(self.now_s)
        assert progress is not None
        return progress.played


def ramp(count: int) -> Float32:
    """Samples that are all different and none is 0."""
    return np.linspace(0.1, 1, count, dtype=np.float32)


def test_all_of_it_is_played_on_every_channel_and_counted_when_it_is_heard() -> None:
    device, reply = Device(channels=2), ramp(9600)
    device.play(1, reply)
    device.replies.finish(1)
    counts = []
    for _ in range(50):
        device.run(1)
        counts.append(device.played().samples)
    np.testing.assert_array_equal(device.sound[:9600], np.stack([reply, reply], axis=1))
    assert not device.sound[9600:].any()
    # After block n, n blocks less the delay have been heard.
    assert counts == [min(9600, max(0, 240 * (block + 1 - 4))) for block in range(50)]
    played = device.played()
    assert (played.finished, played.underruns) == (True, 0)
    assert played.first_sample_s is not None
    assert abs(played.first_sample_s - 10.04) < 1e-9


@given(st.lists(st.tuples(st.sampled_from(["play", "run", "hold", "resume"]), st.integers(0, 2000)), max_size=30))
def test_whatever_happens_every_sample_is_played_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    device, sent = Device(), 0
    for step, count in steps:
        match step:
            case "play":
                device.play(1, np.arange(sent, sent + count, dtype=np.float32) + 1)
                sent += count
            case "run":
                device.run(1 + count // 200)
            case "hold":
                device.output.held = True
            case "resume":
                device.output.held = False
    device.output.held = False
    device.replies.finish(1)
    device.run(sent // 240 + 40)
    sound = device.sound[:, 0]
    expected = np.arange(sent, dtype=np.float32) + 1
    heard = sound[sound != 0]
    # Faded samples are quieter; a sample at the very end of a fade may be 0.
    assert len(expected) - 4 * len(steps) <= len(heard) <= len(expected)
    assert heard.max(initial=0) <= sent
    assert device.played() == Played(
        sent, finished=True, first_sample_s=device.played().first_sample_s, underruns=device.played().underruns
    )
    loud = heard[np.isin(heard, expected)]
    assert (np.diff(loud) >= 0).sum() >= 0.4 * len(loud)


def test_held_it_fades_within_ten_milliseconds_and_goes_on_with_the_next_sample() -> None:
    device = Device()
    device.play(1, np.ones(24_000, np.float32))
    device.run(20)
    device.output.held = True
    faded = device.run(3)
    assert (np.diff(faded[:240]) < 0).all()
    assert not faded[240:].any()
    device.now_s += 1
    count = device.played().samples
    assert count == 21 * 240
    device.output.held = False
    assert (np.diff(device.run(1)) > 0).all()
    assert (device.run(5) == 1).all()
    device.replies.finish(1)
    device.run(100)
    assert device.played().samples == 24_000
    assert device.played().finished


def test_held_before_it_begins_nothing_is_heard() -> None:
    device = Device()
    device.output.held = True
    device.run(2)
    device.play(1, np.ones(4800, np.float32))
    assert not device.run(20).any()
    assert device.played() == Played(0, finished=False, first_sample_s=None, underruns=0)


def test_dropped_it_is_silent_and_the_next_reply_is_whole() -> None:
    device = Device()
    device.play(1, np.full(24_000, 0.5, np.float32))
    device.run(10)
    device.replies.drop()
    device.play(1, np.full(2400, 0.5, np.float32))  # late
    assert not device.run(10)[240:].any()
    device.run(5)
    played = device.played()
    assert (played.samples, played.finished) == (11 * 240, False)
    device.play(2, ramp(2400))
    device.play(1, np.ones(2400, np.float32))  # later still
    device.replies.finish(2)
    np.testing.assert_array_equal(device.run(10), ramp(2400))
    assert not device.run(10).any()
    assert device.played().samples == 2400


def test_dropped_while_held_nothing_is_heard_of_it_any_more() -> None:
    device = Device()
    device.play(1, np.full(24_000, 0.5, np.float32))
    device.run(10)
    device.output.held = True
    device.run(2)
    device.replies.drop()
    device.output.held = False
    assert not device.run(10).any()


def test_a_new_reply_takes_the_place_of_the_one_before() -> None:
    device = Device()
    device.play(1, np.full(24_000, 0.5, np.float32))
    device.run(10)
    device.play(2, np.ones(2400, np.float32))
    device.replies.finish(2)
    sound = device.run(20)
    assert np.count_nonzero(sound == 1) >= 2400 - 240
    assert not sound[2880:].any()
    assert device.played().finished


def test_sound_that_comes_too_late_is_an_underrun_but_the_end_is_none() -> None:
    device = Device()
    device.play(1, ramp(2400))
    device.run(20)
    assert device.played().underruns == 0
    device.play(1, ramp(2400))
    assert device.played().underruns == 1
    assert not device.run(10).any(), "after an underrun more is collected first"
    device.play(1, ramp(2400))
    assert device.run(20).any()
    device.replies.finish(1)
    device.run(20)
    assert device.played() == Played(7200, finished=True, first_sample_s=10.04, underruns=1)


def test_where_sound_comes_too_late_the_next_reply_begins_later_and_has_no_gap() -> None:
    device, underruns, waited = Device(), [], []
    for number in (1, 2):
        asked_s = device.now_s
        for blocks in (18, 30, 0):  # from one piece to the next: the second comes 80 ms after the first has been heard
            device.play(number, ramp(2400 if blocks == 18 else 12_000))
            device.run(blocks or 1)
        device.replies.finish(number)
        device.run(150)
        played = device.played()
        assert (played.samples, played.finished, played.first_sample_s is None) == (26_400, True, False)
        underruns.append(played.underruns)
        waited.append((played.first_sample_s or 0.0) - asked_s - DELAY_S)
    assert underruns == [1, 0]
    assert waited[0] < 0.01
    assert 0.08 < waited[1] < 0.2


def test_a_device_that_runs_dry_itself_is_an_underrun_too() -> None:
    device = Device()
    device.run(3, dry=True)  # nothing is playing
    device.play(1, ramp(4800))
    device.run(2)
    device.run(1, dry=True)
    assert device.played().underruns == 1


def test_a_reply_without_sound_is_finished_at_once() -> None:
    device = Device()
    device.replies.finish(4)
    device.run(1)
    assert device.played() == Played(0, finished=True, first_sample_s=None, underruns=0)


def test_what_the_device_got_is_known_to_the_last_sample() -> None:
    device = Device()
    device.play(1, ramp(4800))
    device.run(30)
    np.testing.assert_array_equal(device.output.given.take(), device.sound[:, 0])
