import random

import numpy as np
import pytest
import torch
from nearfield.nano import hear
from nearfield.nano.chat import front
from nearfield.nano.model import build
from nearfield.nano.recordings import Entry, Recordings
from nearfield.nano.sentences import plain
from nearfield.nano.world import Skill, draw
from nearfield.runtime.mel import log_mel
from torch import nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder


@pytest.fixture(scope="module")
def tower() -> Qwen2_5OmniAudioEncoder:
    return build().thinker.model.audio_tower


def test_the_batched_forward_is_the_reference_s(tower: Qwen2_5OmniAudioEncoder) -> None:
    frames = torch.tensor([37, 200, 201, 399, 2])
    mel = torch.randn(5, 128, 400, generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(frames.tolist()):
        mel[row, :, length:] = 0
    with torch.no_grad():
        ours, tokens = hear.encode(tower, mel, frames)
        clips = torch.cat([mel[row, :, :length] for row, length in enumerate(frames.tolist()) if length > 2], 1)
        theirs = tower(clips, feature_lens=frames[:-1]).last_hidden_state
    assert tokens.tolist() == [9, 50, 50, 100, 0]
    mine = torch.cat([ours[row, :count] for row, count in enumerate(tokens[:-1].tolist())])
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)


def test_heads_begin_by_looking_at_their_offsets() -> None:
    fresh = build().thinker.model.audio_tower
    hear.look_nearby(fresh)
    positions = fresh.positional_embedding.positional_embedding[:100]
    attention = fresh.layers[1].self_attn
    query, key = (project.weight.detach().unflatten(0, (4, -1)) for project in (attention.q_proj, attention.k_proj))
    for head, offset in enumerate((-6, -2, 2, 6)):
        scores = (positions @ query[head].T) @ (positions @ key[head].T).T
        best = scores.argmax(-1)[20:80] - torch.arange(20, 80)
        assert best.median().item() == offset


def test_classes_are_the_world_s_words_and_one_for_all_others() -> None:
    seven, unknown = hear.classes("Seven, umbrella!")
    assert seven > 1
    assert unknown == 1


def test_every_word_of_every_prompt_has_a_class_of_its_own() -> None:
    rng = random.Random(0)
    skills: tuple[Skill, ...] = ("sums", "digits", "talk", "again", "picture", "video")
    said = {word for skill in skills for _ in range(500) for word in plain(draw(skill, rng, "train").prompt).split()}
    assert {"where", "tell", "subtract"} < said, "some words only ever begin a sentence"
    kinds = [hear.classes(word)[0] for word in said]
    assert min(kinds) > 1
    assert len(set(kinds)) == len(kinds)


def test_heard_drops_repeats_and_blanks() -> None:
    two = hear.classes("two")[0]
    path = torch.tensor([[0, two, two, 0, two, 1, 0, 0]])
    scores = nn.functional.one_hot(path, 300).float()
    assert hear.heard(scores, torch.tensor([7])) == ["two two ?"]


def test_a_longer_throat_moves_a_tone_down_and_leaves_time_alone() -> None:
    seconds = np.arange(16000) / 16000
    high, low = (np.sin(2 * np.pi * hz * seconds).astype(np.float32) for hz in (2240.0, 2000.0))
    moved = hear._throats(0.12)[-1] @ log_mel(high, front().audio)
    wanted = log_mel(low, front().audio)
    assert moved.shape == wanted.shape
    assert abs(int(moved[:, 50].argmax()) - int(wanted[:, 50].argmax())) <= 1


def test_features_pad_to_whole_blocks() -> None:
    mel, frames = hear.features([np.zeros(1600, np.float32), np.ones(33000, np.float32)])
    assert mel.shape == (2, 128, 400)
    assert frames.tolist() == [10, 207]
    assert not mel[0, :, 10:].any()


def test_the_teacher_of_noise_is_the_tower_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = (3000 * np.sin(np.arange(16000) / 5)).astype(np.int16)
    said = Recordings([([Entry("", "digits", "Seven one.", "", 0, 16000, None)], sound)])
    ear = hear.Ear(build().thinker.model.language_model.embed_tokens.weight.detach())
    loss = hear.SteadyLoss(ear, said)
    monkeypatch.setattr(hear, "heard", lambda scores, _: ["seven one"] * len(scores))

    def apart() -> float:
        losses = loss(0, np.random.default_rng(0))
        assert losses["right"].item() == 1.0
        return losses["apart"].item()

    disturbed = apart()
    monkeypatch.setattr(hear, "disturb_beside", lambda samples, *_: (samples / np.float32(32768),) * 2)
    monkeypatch.setattr(hear, "_mask", lambda *_: None)
    monkeypatch.setattr(hear, "_throats", lambda _: [np.eye(128, dtype=np.float32)])
    assert apart() < 1e-6 < disturbed
    with torch.no_grad():
        ear.tower.ln_post.weight.mul_(1.5)
    assert apart() == pytest.approx(2 * 0.25, rel=0.2), "of words and of pauses: the teacher stays, the tower moves"
    monkeypatch.setattr(hear, "heard", lambda scores, _: ["nine"] * len(scores))
    assert loss(0, np.random.default_rng(0))["apart"].item() == 0.0, "who hears wrongly teaches nothing"
