"""What the DiT is trained to: the conventions of the sampler that will use it, and a speaker encoder that is alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from nearfield.export.voices import read_voices
from nearfield.nano.codec import SPEAKERS, Utterance
from nearfield.nano.dit import moved, prepare, speaker_vectors, write_voices
from nearfield.nano.model import build
from nearfield.nano.talker import voice_tokens

MEAN = torch.full((80,), -5.0)


@pytest.fixture(scope="module")
def dit() -> Any:
    dit = build(seed=1).token2wav.code2wav_dit_model
    prepare(dit, MEAN)
    return dit.eval()


def _mels(count: int, frames: int) -> torch.Tensor:
    return MEAN + 2 * torch.randn(count, frames, 80, generator=torch.Generator().manual_seed(count + frames))


@torch.no_grad()
def test_the_unconditional_half_is_all_zeros(dit: Any) -> None:
    """What training puts in place of the conditions is what the sampler's null half is given."""
    state, reference = torch.randn(1, 48, 80), _mels(1, 60)
    codes, vector = torch.arange(1, 25)[None], speaker_vectors()[:1, None].expand(-1, 48, -1)
    torch.nn.init.normal_(dit.norm_out.linear.weight, std=0.1)
    both = dit(state, reference, vector, codes, torch.tensor(0.3), apply_cfg=True)
    null = dit(
        state, torch.zeros_like(reference), torch.zeros_like(vector), torch.zeros_like(codes), torch.tensor([0.3]),
        apply_cfg=False,
    )  # fmt: skip
    assert tolerances.relative_error(both[1:], null) < tolerances.FP32_RELATIVE
    assert tolerances.relative_error(both[:1], null) > 0.01


@torch.no_grad()
def test_the_speaker_encoder_hears_at_the_start(dit: Any) -> None:
    encoder = dit.input_embed.spk_encoder
    first, second = encoder(_mels(2, 90))
    assert float((first - second).norm() / first.norm()) > 0.05
    active = encoder.blocks[0](_mels(3, 90).transpose(1, 2)) > 0
    share = active.float().mean((0, 2))  # of the time, for each channel
    assert float(share.min()) > 0.05 and float(share.max()) < 0.95


@torch.no_grad()
def test_blocks_change_nothing_at_the_start() -> None:
    dit = build(seed=1).token2wav.code2wav_dit_model
    prepare(dit, MEAN)
    block = dit.transformer_blocks[0]
    gates = block.attn_norm.linear(torch.randn(2, 128))
    assert float(gates.abs().max()) == 0.0
    assert all(module.p == 0 for module in dit.modules() if isinstance(module, torch.nn.Dropout))


def test_moved_multiplies_frequencies() -> None:
    mel = np.zeros((3, 80), np.float32)
    mel[:, 40] = 1
    np.testing.assert_array_equal(moved(mel, 1.0), mel)
    assert moved(mel, 1.1).argmax(1).tolist() == [44] * 3
    assert moved(mel, 0.9).argmax(1).tolist() == [36] * 3


def test_the_voices_file_is_read_by_the_export(tmp_path: Path) -> None:
    utterances = [Utterance(index % 2, "text", np.zeros(0, np.int16)) for index in range(4)]
    mels = [mel.numpy() for mel in _mels(4, 150)]
    write_voices(utterances, mels, tmp_path / "spk_dict.pt")
    voices = read_voices(tmp_path / "spk_dict.pt")
    assert list(voices) == [speaker.name for speaker in SPEAKERS]
    assert [voice.bos_token_id for voice in voices.values()] == list(voice_tokens())
    ethan = voices["Ethan"]
    np.testing.assert_array_equal(ethan.ref_mel[0], np.concatenate([mels[1], mels[3]]))
    np.testing.assert_array_equal(ethan.cond, speaker_vectors()[1:])
