"""The trained parts → a checkpoint as the publisher writes one, and from it the bundle that ships in the package.

Inputs: the states of the last stages, the calibration data → outputs: ``nano/checkpoint/`` (configuration, one
safetensors shard, tokenizer, processor settings, ``spk_dict.pt``) and the bundle of ``nearfield demo``. The Thinker and
the Talker are stored in bfloat16 and Token2Wav in float32, as published.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from ..apps.cli.common import DEMO_BUNDLE
from ..calibrate.quantize import Settings, quantize_checkpoint
from ..calibrate.samples import read_samples
from ..export.export import ExportOptions, export_bundle
from .calibration import FOLDER
from .model import build
from .tokenizer import write_processor_files
from .training import CHECKPOINT, STATES, finished
from .understand import Mind

_GROUP_SIZE = 32
"""Small groups: rows of 256 leave little room for an outlier to spoil only its own."""


def assemble_stage() -> None:
    """Write ``nano/checkpoint``; its model card and plots stay if they are there."""
    mind = Mind(trained=True)
    model = build()
    thinker = model.thinker.model
    thinker.language_model.load_state_dict(mind.language_model.state_dict())
    thinker.audio_tower.load_state_dict(mind.ear.tower.state_dict())
    thinker.visual.load_state_dict(mind.visual.state_dict())
    model.talker.load_state_dict(finished("talker-final"))
    model.token2wav.code2wav_dit_model.load_state_dict(finished("dit"))
    model.token2wav.code2wav_bigvgan_model.load_state_dict(finished("vocoder"))
    model.tie_weights()
    model.to(torch.bfloat16)
    model.token2wav.float()
    CHECKPOINT.mkdir(exist_ok=True)
    model.save_pretrained(CHECKPOINT)
    write_processor_files(CHECKPOINT)
    shutil.copyfile(STATES / "spk_dict.pt", CHECKPOINT / "spk_dict.pt")


def export_stage() -> None:
    """Write the bundle that ``nearfield demo`` runs, as `write_bundle` does."""
    write_bundle(DEMO_BUNDLE)


def write_bundle(target: Path) -> None:
    """Quantize nano's checkpoint and export it to ``target``, through the same calls as any other checkpoint."""
    settings = Settings(bits=4, group_size=_GROUP_SIZE, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "nano"
        quantize_checkpoint(CHECKPOINT, quantized, read_samples(FOLDER), settings, lambda *_: None)
        export_bundle(quantized, target, ExportOptions(bits=4, group_size=_GROUP_SIZE, overwrite=True))
