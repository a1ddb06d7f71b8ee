"""What the vocoder is trained to, in small."""

from __future__ import annotations

import numpy as np
import torch
from nearfield.nano.codec import HOP_SAMPLES
from nearfield.nano.model import build
from nearfield.nano.vocoder import VocoderLoss, distances, vocode


def test_a_sound_is_at_no_distance_from_itself() -> None:
    sound = 0.1 * torch.randn(2, 40 * HOP_SAMPLES, generator=torch.Generator().manual_seed(1))
    assert float(distances(sound, sound)["loss"]) == 0.0
    assert float(distances(0.5 * sound, sound)["mel"]) > 0.3


def test_a_frame_becomes_240_samples_and_the_loss_has_a_gradient() -> None:
    vocoder = build(seed=2).token2wav.code2wav_bigvgan_model
    assert vocode(vocoder, torch.full((2, 9, 80), -5.0)).shape == (2, 9 * HOP_SAMPLES)
    sounds = [0.1 * np.random.default_rng(3).standard_normal(60 * HOP_SAMPLES).astype(np.float32)]
    VocoderLoss(vocoder, sounds, 16)(0, np.random.default_rng(0))["loss"].backward()
    assert float(vocoder.conv_pre.weight.grad.abs().max()) > 0
