"""Speech codes: mels, clusters and what becomes of an utterance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nearfield.nano import codec
from nearfield.nano.codec import CODE_SAMPLES, HOP_SAMPLES, Codec, log_mel, nearest
from nearfield.nano.voices.speech import Speech


@pytest.fixture
def clusters() -> Codec:
    centroids = torch.randn(1024, 160, generator=torch.Generator().manual_seed(1))
    centroids[0] = 0
    return Codec(centroids)


def test_a_mel_has_a_frame_for_every_240_samples() -> None:
    assert log_mel(torch.zeros(2, 10 * HOP_SAMPLES)).shape == (2, 10, 80)


def test_silence_is_the_floor() -> None:
    mel = log_mel(torch.zeros(1, 4 * HOP_SAMPLES))
    np.testing.assert_allclose(mel, np.log(1e-3), atol=1e-5)


def test_a_tone_is_loudest_in_its_bin_and_rises_with_the_level() -> None:
    time_s = torch.arange(40 * HOP_SAMPLES) / codec.SAMPLE_RATE_HZ
    low, high = (log_mel(0.1 * torch.sin(2 * torch.pi * hz * time_s)[None])[0, 20] for hz in (300.0, 3000.0))
    assert int(low.argmax()) < int(high.argmax())
    louder = log_mel(0.2 * torch.sin(2 * torch.pi * 300.0 * time_s)[None])[0, 20]
    assert float(louder.max() - low.max()) == pytest.approx(np.log(2), abs=0.01)


def test_codes_are_never_zero_and_survive_decoding(clusters: Codec) -> None:
    codes = np.array([1, 5, 1023, 7])
    np.testing.assert_array_equal(clusters.encode(clusters.decode(codes)), codes)
    assert clusters.encode(torch.zeros(2, 80)).min() > 0  # row 0 would be nearest


def test_neighbours_are_the_nearest_others(clusters: Codec) -> None:
    closest = clusters.neighbours(3)
    distances = (clusters.centroids - clusters.centroids[9]).norm(dim=1)
    distances[[0, 9]] = torch.inf
    np.testing.assert_array_equal(closest[9], distances.argsort()[:3])


def test_nearest_is_the_smallest_distance() -> None:
    generator = torch.Generator().manual_seed(3)
    points, centres = torch.randn(50, 6, generator=generator), torch.randn(7, 6, generator=generator)
    assert torch.equal(nearest(points, centres), torch.cdist(points, centres).argmin(1))


def test_an_utterance_is_trimmed_to_whole_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = np.zeros(32_000, np.float32)
    sound[8000:16_000] = 0.5 * np.sin(np.arange(8000) / 5)  # half a second, half a second in
    monkeypatch.setattr(codec, "speak", lambda *_: Speech(sound, 16_000, None))
    utterance = codec.say(0, "Hello.")
    assert utterance.samples.dtype == np.int16 and len(utterance.samples) % CODE_SAMPLES == 0
    assert 0.5 < len(utterance.samples) / codec.SAMPLE_RATE_HZ < 0.75
    assert np.abs(utterance.audio).max() == pytest.approx(0.5 * codec.SPEAKERS[0].gain, rel=0.05)
