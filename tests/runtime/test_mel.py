"""The log-mel front end beside the reference's feature extractor, as the reference's processor calls it."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from input_settings import AUDIO
from msgspec.structs import replace
from nearfield.errors import AudioError
from nearfield.runtime.mel import log_mel, log_power, mel_frames
from numpy.typing import NDArray
from sounds import KINDS, sound
from tolerances import FEATURES
from transformers import Qwen2_5OmniProcessor, WhisperFeatureExtractor

Samples = NDArray[np.float32]
SHORT = replace(AUDIO, max_frames=200)  # the reference always computes the whole padded clip: keep it at two seconds
EXTRACTOR = WhisperFeatureExtractor(feature_size=128, chunk_length=2, return_attention_mask=True)


def expected(samples: Samples) -> Samples:
    """The reference's features, which it computes in single precision with torch."""
    out = EXTRACTOR(
        samples, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="np"
    )
    features: Samples = out["input_features"][0][:, : int(out["attention_mask"][0].sum())]
    return features


def expected_exactly(samples: Samples) -> Samples:
    """The reference's other implementation, NumPy in double precision, which it takes where torch is missing."""
    padded = np.zeros((1, 32_000))
    padded[0, : min(samples.size, 32_000)] = samples[:32_000]
    features: Samples = EXTRACTOR._np_extract_fbank_features(padded, "cpu")[0]
    return features[:, : -(-min(samples.size, 32_000) // 160)]


@given(st.sampled_from(KINDS), st.integers(1, 35_000), st.integers(0, 9))
@example("noise", 1, 0)
@example("noise", 199, 0)
@example("noise", 200, 0)
@example("noise", 201, 0)
@example("click at the end", 16_000, 0)  # the loudest window is behind the last frame
@example("loud end", 31_840, 0)  # one hop, half a window and one sample from the limit, where the padding ends
@example("loud end", 31_800, 0)
@example("loud end", 31_999, 0)
@example("noise", 32_000, 0)
@example("noise", 32_001, 0)
def test_features_equal_the_reference(kind: str, length: int, seed: int) -> None:
    samples = sound(kind, length, seed)
    found = log_mel(samples, SHORT)
    assert found.dtype == np.float32
    assert found.shape == (128, mel_frames(length, SHORT))
    reference = expected(samples)
    assert found.shape == reference.shape
    assert np.abs(found - expected_exactly(samples)).max() <= FEATURES / 100
    if kind != "tone":  # 80 dB below a pure tone there is only the rounding of torch's FFT: up to 3.5e-4
        assert np.abs(found - reference).max() <= FEATURES


def test_features_equal_the_processor(processor_3b: Qwen2_5OmniProcessor) -> None:
    clips = [sound("noise", 12_345, 0), 3 * sound("fading sweep", 40_000, 1)]
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>" * 2
    out = processor_3b(text=text, audio=clips, return_tensors="np", padding=True)
    for index, clip in enumerate(clips):
        frames = int(out["feature_attention_mask"][index].sum())
        assert np.abs(log_mel(clip, AUDIO) - out["input_features"][index][:, :frames]).max() <= FEATURES


def test_a_long_clip_is_cut_like_the_reference_cuts_it() -> None:
    samples = sound("noise", 50_000, 0)
    assert np.array_equal(log_mel(samples, SHORT), log_mel(samples[: 200 * 160], SHORT))
    assert log_mel(samples, SHORT).shape == (128, 200)


def test_blocks_of_a_long_clip_join_without_a_seam() -> None:
    samples = sound("noise", 160 * 2_500 + 240, 0)
    whole = log_power(samples, 2_500, AUDIO)
    part = log_power(samples[160 * 900 :], 1_600, AUDIO)  # blocks begin at other frames
    assert part.shape == (128, 1_600)
    assert np.abs(whole[:, 900:] - part).max() < 1e-9


def test_cost_follows_the_clip_and_not_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    transformed, rfft = 0, np.fft.rfft

    def counting(windows: Samples) -> NDArray[Any]:
        nonlocal transformed
        transformed += len(windows)
        return rfft(windows)

    monkeypatch.setattr(np.fft, "rfft", counting)
    log_mel(sound("noise", 16_000, 0), replace(AUDIO, max_frames=30_000))  # a second of five minutes
    assert 100 <= transformed < 110


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros((2, 400), np.float32), np.zeros(400, np.int16)])
def test_wrong_arrays(samples: NDArray[Any]) -> None:
    with pytest.raises(AudioError, match=r"samples must be float \(N,\), at least one, found"):
        log_mel(samples, AUDIO)
