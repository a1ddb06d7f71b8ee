"""Preprocessing settings, from the checkpoint's own processor files.

Published checkpoints have one flat `preprocessor_config.json`; transformers 5.x saves `processor_config.json` with a
section each for the feature extractor and the image processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..runtime.manifest import Audio, Vision
from .config import Section, read_json

# The reference's processor sets video's pixel limits itself (Qwen2_5OmniProcessor.videos_kwargs), in 28 × 28 pixels.
_VIDEO_MIN_PIXELS = 128 * 28 * 28
_VIDEO_MAX_PIXELS = 768 * 28 * 28


def read_audio(checkpoint: Path, audio_config: Section) -> Audio:
    """Read the mel front end's settings; `audio_config` is `thinker_config.audio_config`."""
    extractor = _read(checkpoint, "feature_extractor")
    hop, rate = extractor.integer("hop_length"), extractor.integer("sampling_rate")
    bins = extractor.integer("feature_size")
    if bins != audio_config.integer("num_mel_bins"):
        raise CheckpointError(
            f"{extractor.path}.feature_size is {bins}, the audio encoder's num_mel_bins "
            f"{audio_config.integer('num_mel_bins')}; the files are of different checkpoints"
        )
    return Audio(
        sample_rate_hz=rate,
        n_fft=extractor.integer("n_fft"),
        hop_samples=hop,
        mel_bins=bins,
        block_frames=2 * audio_config.integer("n_window", default=100),
        max_frames=extractor.integer("chunk_length") * rate // hop,
    )


def read_vision(checkpoint: Path, vision_config: Section) -> Vision:
    """Read image and video settings; `vision_config` is `thinker_config.vision_config`."""
    images = _read(checkpoint, "image_processor")
    size = images.section("size") if images.has("size") else images
    return Vision(
        patch_pixels=vision_config.integer("patch_size", default=14),
        temporal_patch_frames=vision_config.integer("temporal_patch_size", default=2),
        merge_patches=vision_config.integer("spatial_merge_size", default=2),
        window_pixels=vision_config.integer("window_size", default=112),
        hidden_size=vision_config.integer("out_hidden_size"),
        image_min_pixels=size.integer("shortest_edge", "min_pixels"),
        image_max_pixels=size.integer("longest_edge", "max_pixels"),
        video_min_pixels=_VIDEO_MIN_PIXELS,
        video_max_pixels=_VIDEO_MAX_PIXELS,
        mean=list(_triple(images, "image_mean")),
        std=list(_triple(images, "image_std")),
    )


def _triple(section: Section, name: str) -> tuple[float, float, float]:
    value: Any = section.values.get(name)
    if not isinstance(value, list) or len(value) != 3:
        raise CheckpointError(f"{section.path}.{name} is {value!r}; expected three numbers, red, green and blue")
    return float(value[0]), float(value[1]), float(value[2])


def _read(checkpoint: Path, part: str) -> Section:
    """Return the section of `part`, whichever of the two files holds it."""
    for name in ("processor_config.json", "preprocessor_config.json"):
        path = checkpoint / name
        if not path.is_file():
            continue
        section = Section(read_json(path), name)
        if section.has(part):
            return section.section(part)
        if name == "preprocessor_config.json":
            return section
    raise CheckpointError(
        f"{checkpoint} has neither processor_config.json nor preprocessor_config.json; download the checkpoint again"
    )
