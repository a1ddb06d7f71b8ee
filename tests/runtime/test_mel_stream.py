"""A sound heard as it comes beside the same sound heard whole."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from input_settings import AUDIO
from nearfield.runtime.mel import audio_tokens, log_mel, log_power, mel_frames, scale
from nearfield.runtime.mel_stream import MelStream
from numpy.typing import NDArray
from sounds import KINDS, sound
from tolerances import FEATURES

Samples = NDArray[np.float32]


def heard(samples: Samples, cuts: list[int]) -> list[Samples]:
    """All blocks of a sound that comes in pieces."""
    stream = MelStream(AUDIO)
    blocks = [block for piece in np.split(samples, sorted(cuts)) for block in stream.push(piece)]
    return [*blocks, *stream.rest()]


def heard_at_once(samples: Samples) -> list[Samples]:
    """The rule, written down for a whole sound: each block's floor goes by the loudest frame up to its end."""
    frames, seeing = mel_frames(samples.size, AUDIO), mel_frames(samples.size + 200, AUDIO)
    padded = np.pad(np.pad(samples, (0, 400 + 160 * seeing)), 200, mode="reflect")
    power = log_power(padded, seeing, AUDIO)
    whole = max(0, samples.size - 40) // 32_000  # blocks whose windows are full
    ends = [*range(200, 200 * whole + 1, 200)]
    blocks = [scale(power[:, end - 200 : end], float(power[:, :end].max())) for end in ends]
    rest = [(start, min(start + 200, frames)) for start in range(200 * whole, frames, 200)]
    return blocks + [scale(power[:, start:end], float(power.max())) for start, end in rest]


@given(
    st.sampled_from(KINDS), st.integers(1, 100_000), st.integers(0, 9), st.lists(st.integers(0, 100_000), max_size=5)
)
@example("noise", 1, 0, [])
@example("noise", 32_000, 0, [])
@example("noise", 32_039, 0, [32_000])
@example("noise", 32_040, 0, [32_039])
@example("loud end", 64_041, 0, [3, 64_040])
def test_however_a_sound_is_cut_it_is_heard_the_same(kind: str, length: int, seed: int, cuts: list[int]) -> None:
    samples = sound(kind, length, seed)
    blocks, expected = heard(samples, cuts), heard_at_once(samples)
    assert [block.shape for block in blocks] == [block.shape for block in expected]
    for block, whole in zip(blocks, expected, strict=True):
        np.testing.assert_array_equal(block, whole)


def test_where_the_beginning_is_loudest_it_is_the_whole_clips_mel() -> None:
    samples = sound("fading sweep", 70_000, 0)
    np.testing.assert_allclose(np.concatenate(heard(samples, [1_000]), 1), log_mel(samples, AUDIO), atol=FEATURES / 100)


def test_a_loud_end_lowers_no_block_before_it() -> None:
    samples = sound("loud end", 70_000, 0)
    streamed, whole = np.concatenate(heard(samples, []), 1), log_mel(samples, AUDIO)
    assert np.abs(streamed[:, :200] - whole[:, :200]).max() > 0.1
    np.testing.assert_allclose(streamed[:, 400:], whole[:, 400:], atol=FEATURES / 100)


def test_asking_for_the_rest_changes_nothing() -> None:
    samples, stream = sound("noise", 50_000, 0), MelStream(AUDIO)
    blocks = stream.push(samples[:20_000])
    assert sum(audio_tokens(block.shape[1]) for block in stream.rest()) == audio_tokens(125)
    blocks += stream.push(samples[20_000:])
    for block, expected in zip([*blocks, *stream.rest()], heard(samples, []), strict=True):
        np.testing.assert_array_equal(block, expected)


def test_nothing_heard_has_no_blocks() -> None:
    assert MelStream(AUDIO).rest() == []
    assert MelStream(AUDIO).push(np.empty(0, np.float32)) == []
