"""The states of finished stages, taken from the shipped checkpoint: where nano/build is lost, training goes on from it.

Inputs: nano/checkpoint, the names of the stages it went through (nano/curves) → outputs: a finished state for each in
``build/states``, and the voices (``spk_dict.pt``). All parts of a stage get the weights they ended with; only what
comes after them is trained. The codes are found again by ``codec``, as the first time. The checkpoint does not have the
scale with which the audio tower's scores were trained: it is found again, on recordings.
"""

from __future__ import annotations

import logging
import shutil

import numpy as np
import torch
from torch import Tensor

from . import hear, see
from .card import CURVES
from .recordings import Recordings
from .reference import load_model
from .training import CHECKPOINT, STATES

log = logging.getLogger(__name__)

_HEARD = 96
_SCALES = np.geomspace(0.05, 20, 60)


def restore_stage() -> None:
    """Write the states that are not there."""
    model = load_model(CHECKPOINT)
    thinker, token2wav = model.thinker.model, model.token2wav
    ear = hear.Ear(thinker.language_model.embed_tokens.weight.detach())
    ear.tower.load_state_dict(thinker.audio_tower.state_dict())
    ear.scale.data.fill_(_scale(ear))
    words, sights = thinker.language_model.state_dict(), thinker.visual.state_dict()
    by_stage = {
        "text": words,
        "reason": words,
        "hear": ear.state_dict(),
        "see": see.as_trained_alone(sights),
        "understand": {
            **_named("language_model", words), **_named("ear", ear.state_dict()), **_named("visual", sights),
        },
        "talker": model.talker.state_dict(),
        "dit": token2wav.code2wav_dit_model.state_dict(),
        "vocoder": token2wav.code2wav_bigvgan_model.state_dict(),
    }  # fmt: skip
    STATES.mkdir(parents=True, exist_ok=True)
    for name in sorted({*by_stage, *(file.stem for file in CURVES.glob("*.csv"))}):
        path = STATES / f"{name}.pt"
        if not path.exists():
            weights = {key: value.clone() for key, value in by_stage[name.partition("-")[0]].items()}
            torch.save({"module": weights, "finished": True}, path)
            log.info("%s: as in the checkpoint", name)
    if not (STATES / "spk_dict.pt").exists():
        shutil.copyfile(CHECKPOINT / "spk_dict.pt", STATES / "spk_dict.pt")


def _named(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in weights.items()}


@torch.no_grad()
def _scale(ear: hear.Ear) -> float:
    """The scale of the tower's scores with which it is least surprised by what was said."""
    recordings = Recordings.load("train")
    chosen = [recordings[int(index)] for index in np.random.default_rng(0).integers(len(recordings), size=_HEARD)]
    mel, frames = hear.features([(each.samples / 32768).astype(np.float32) for each in chosen])
    embeddings, tokens = hear.encode(ear.tower, mel, frames)
    prompts = [each.prompt for each in chosen]
    losses = {}
    for scale in _SCALES:
        ear.scale.data.fill_(scale)
        losses[float(scale)] = float(hear.ctc(ear.scores(embeddings), tokens, prompts))
    best = min(losses, key=lambda scale: losses[scale])
    log.info("scale of the scores: %.3g (loss %.4f)", best, losses[best])
    return best
