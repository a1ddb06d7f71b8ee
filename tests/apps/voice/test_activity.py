"""Speech is found where there is some, and nowhere else; how soon its beginning and its end are noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from nearfield.apps.cli.common import DEMO_DATA
from nearfield.apps.voice.activity import GRAPH, VoiceActivity
from nearfield.apps.voice.frames import FRAME_MS, FRAME_SAMPLES, RATE_HZ
from nearfield.apps.voice.patience import Patience
from nearfield.apps.voice.turn_taking import Changed, State, TurnTaking
from nearfield.errors import AudioError
from nearfield.nano.conditions import CONDITIONS
from nearfield.nano.questions import HELDOUT, load
from nearfield.runtime.audio import read_audio
from tolerances import FP32_RELATIVE, relative_error

Float32 = npt.NDArray[np.float32]

# What silero-vad 6.2.3 says of the first demo question, with its own code, torch, and its larger graph of both rates.
PUBLISHED = {
    0: 0.001669794, 1: 0.00688386, 2: 0.008910686, 3: 0.007857174, 4: 0.08170614, 5: 0.7987322, 6: 0.9835833,
    30: 0.9996178, 60: 0.9943177, 61: 0.9171706, 62: 0.695745, 63: 0.07395536, 64: 0.02042964, 65: 0.01069137,
}  # fmt: skip


@pytest.fixture(scope="module")
def activity() -> VoiceActivity:
    return VoiceActivity()


@pytest.fixture(scope="module")
def recordings() -> list[Float32]:
    """Questions of other voices than those nano was trained on, of every engine in turn."""
    return [read_audio(HELDOUT / item.recording) for item in load() if item.task == "voices" and item.recording][:12]


def probabilities(activity: VoiceActivity, samples: Float32) -> npt.NDArray[np.float64]:
    activity.reset()
    ends = range(FRAME_SAMPLES, len(samples) + 1, FRAME_SAMPLES)
    return np.array([activity.probability(samples[end - FRAME_SAMPLES : end]) for end in ends])


def silence(time_ms: int) -> Float32:
    return np.zeros(time_ms * RATE_HZ // 1000, np.float32)


def bounds_ms(samples: Float32) -> tuple[int, int]:
    """Where speech begins and ends: within 35 dB of its loudest hundredth of a second."""
    energy = np.mean(samples[: len(samples) // 160 * 160].reshape(-1, 160) ** 2, axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10**-3.5)
    return 10 * int(loud[0]), 10 * int(loud[-1] + 1)


def turns_begun(activity: VoiceActivity, samples: Float32) -> int:
    taking = TurnTaking(Patience.of("high"))
    begun = 0
    for index, probability in enumerate(probabilities(activity, samples)):
        frame = samples[index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES]
        actions = taking.heard(frame, float(probability))
        begun += Changed(State.LISTENING) in actions
        if Changed(State.THINKING) in actions:
            taking.reply_played()
    return begun


def test_a_recording_gives_what_the_publisher_says(activity: VoiceActivity) -> None:
    found = probabilities(activity, read_audio(DEMO_DATA / "question-1.flac"))
    assert relative_error(found[list(PUBLISHED)], list(PUBLISHED.values())) < FP32_RELATIVE
    quiet = [frame for frame, probability in PUBLISHED.items() if probability < 0.5]
    assert relative_error(found[quiet], [PUBLISHED[frame] for frame in quiet]) < FP32_RELATIVE


def test_frames_give_what_the_graph_gives_when_stepped_by_hand(
    activity: VoiceActivity, recordings: list[Float32]
) -> None:
    session = onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])
    samples = recordings[0]
    padded, state, expected = np.concatenate([silence(4), samples]), np.zeros((2, 1, 128), np.float32), []
    for start in range(0, len(samples) - FRAME_SAMPLES + 1, FRAME_SAMPLES):
        probability, state = session.run(["output", "stateN"], {"input": padded[None, start:][:, :576], "state": state})
        expected.append(probability.item())
    assert len(expected) > 20
    assert relative_error(probabilities(activity, samples), expected) < FP32_RELATIVE


def test_what_was_heard_is_remembered_until_it_is_forgotten(activity: VoiceActivity, recordings: list[Float32]) -> None:
    samples = np.concatenate(recordings[:2])
    first = probabilities(activity, samples)
    assert activity.probability(samples[:FRAME_SAMPLES]) != first[0], "the same frame behind others"
    np.testing.assert_array_equal(probabilities(activity, samples), first)


def test_a_frame_may_be_overwritten_by_who_gave_it(activity: VoiceActivity, recordings: list[Float32]) -> None:
    expected = probabilities(activity, recordings[0])
    activity.reset()
    buffer, found = np.zeros(FRAME_SAMPLES, np.float32), []
    for index in range(len(expected)):
        buffer[:] = recordings[0][index * FRAME_SAMPLES : (index + 1) * FRAME_SAMPLES]
        found.append(activity.probability(buffer))
        buffer[:] = np.nan
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("heard", ["as recorded", "−12 dB", "+12 dB", "noise 15 dB below"])
def test_speech_is_found_in_speech_and_its_bounds_are_noticed_soon(
    activity: VoiceActivity, recordings: list[Float32], heard: str
) -> None:
    onsets, offsets, shares = [], [], []
    for recording in recordings:
        begins_ms, ends_ms = bounds_ms(recording)
        samples = np.concatenate([silence(1000), recording, silence(1000)])
        if heard in CONDITIONS:
            samples = CONDITIONS[heard](samples)
        found = probabilities(activity, samples)
        voice = np.flatnonzero(found >= 0.5)
        begins_ms, ends_ms = begins_ms + 1000, ends_ms + 1000
        onsets.append(FRAME_MS * (voice[0] + 1) - begins_ms)
        offsets.append(FRAME_MS * (np.flatnonzero(found >= 0.35)[-1] + 1) - ends_ms)
        shares.append(np.mean(found[begins_ms // FRAME_MS + 2 : ends_ms // FRAME_MS - 1] >= 0.35))
    assert min(shares) > 0.8
    assert np.mean(shares) > 0.95
    assert np.median(onsets) <= 96
    assert max(onsets) < Patience.of("high").preroll_ms, "or a first syllable would be lost"
    assert min(offsets) >= -200, "or the last word would be part of the pause"
    assert np.median(np.abs(offsets)) <= 128
    assert max(offsets) < 320


@pytest.mark.parametrize("level_db", [-60, -40, -20, -10])
def test_no_speech_is_found_in_noise(activity: VoiceActivity, level_db: int) -> None:
    rng, length = np.random.default_rng(-level_db), 10 * RATE_HZ
    white = rng.standard_normal(length)
    spectrum = np.fft.rfft(white) / np.sqrt(np.maximum(1, np.arange(length // 2 + 1)))
    pink = np.fft.irfft(spectrum, length)
    for noise in (white, pink / pink.std()):
        samples = np.clip(10 ** (level_db / 20) * noise, -1, 1).astype(np.float32)
        assert probabilities(activity, samples).max() < 0.35


def test_no_speech_is_found_in_silence(activity: VoiceActivity) -> None:
    assert probabilities(activity, silence(10_000)).max() < 0.05


@pytest.mark.parametrize("peak", [0.05, 0.3, 1.0])
def test_a_door_and_keys_begin_no_turn(activity: VoiceActivity, peak: float) -> None:
    rng = np.random.default_rng(0)
    seconds = np.arange(RATE_HZ) / RATE_HZ
    thump = np.sin(2 * np.pi * 90 * seconds) * np.exp(-seconds / 0.06)
    bang = thump + rng.standard_normal(RATE_HZ) * np.exp(-seconds / 0.008)
    keys = np.zeros(RATE_HZ)
    keys[rng.integers(0, RATE_HZ, 8)] = rng.choice([-1, 1], 8)
    hum = 0.001 * rng.standard_normal(RATE_HZ)
    for sound in (bang / np.abs(bang).max(), keys):
        samples = np.concatenate([hum, peak * sound + hum, hum]).astype(np.float32)
        assert turns_begun(activity, samples) == 0


def test_questions_begin_turns(activity: VoiceActivity, recordings: list[Float32]) -> None:
    questions = [piece for recording in recordings[:3] for piece in (silence(500), recording, silence(1500))]
    assert turns_begun(activity, np.concatenate(questions)) == 3


@pytest.mark.parametrize(
    "samples",
    [np.zeros(480, np.float32), np.zeros(512), np.zeros((1, 512), np.float32)],
    ids=["length", "type", "axes"],
)
def test_what_is_no_frame_is_refused(activity: VoiceActivity, samples: Float32) -> None:
    with pytest.raises(AudioError, match=r"a frame is float32 \(512,\)"):
        activity.probability(samples)


def test_the_licence_lies_beside_the_graph() -> None:
    licence = Path(GRAPH).with_name("silero_vad.LICENSE.txt").read_text(encoding="utf-8")
    assert licence.startswith("MIT License")
    assert "Silero Team" in licence
