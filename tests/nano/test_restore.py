"""Training goes on from the shipped checkpoint: each stage's module takes what is restored for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nearfield.nano import hear, restore, see
from nearfield.nano.card import CURVES
from nearfield.nano.model import build
from nearfield.nano.reference import load_model
from nearfield.nano.training import CHECKPOINT, finished


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(restore, "STATES", folder)
        patch.setattr(restore, "_scale", lambda _: 2.5)  # is found on recordings, which are made in minutes
        restore.restore_stage()
    return folder


def test_every_stage_the_checkpoint_went_through_is_finished(states: Path) -> None:
    names = sorted(file.stem for file in CURVES.glob("*.csv"))
    assert {"text", "reason", "hear", "see", "understand-seventh", "talker-final", "dit", "vocoder"} <= set(names)
    assert {file.stem for file in states.iterdir()} == {*names, "understand", "spk_dict"}
    assert all(finished(name, states) for name in [*names, "understand"])
    assert (states / "spk_dict.pt").read_bytes() == (CHECKPOINT / "spk_dict.pt").read_bytes()


def test_modules_take_their_states(states: Path) -> None:
    fresh = build()
    model = fresh.thinker.model
    model.language_model.load_state_dict(finished("reason", states))
    ear = hear.Ear(model.language_model.embed_tokens.weight.detach())
    ear.load_state_dict(finished("hear", states))
    assert ear.scale.item() == 2.5
    fresh.talker.load_state_dict(finished("talker-final", states))
    fresh.token2wav.code2wav_dit_model.load_state_dict(finished("dit", states))
    fresh.token2wav.code2wav_bigvgan_model.load_state_dict(finished("vocoder", states))
    mind = finished("understand-seventh", states)
    assert {name.partition(".")[0] for name in mind} == {"language_model", "ear", "visual"}
    shipped = load_model(CHECKPOINT).thinker.model.visual.state_dict()
    for name, value in see.as_in_the_thinker(finished("see", states)).items():
        torch.testing.assert_close(value, shipped[name])
        torch.testing.assert_close(mind[f"visual.{name}"], shipped[name])
