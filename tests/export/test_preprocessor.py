"""The front end's settings are the checkpoint's own, not the published defaults."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from input_settings import AUDIO
from nearfield.errors import CheckpointError
from nearfield.export.checkpoint import read_config
from nearfield.export.config import Section
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.export.preprocessor import read_audio, read_vision
from nearfield.runtime.manifest import Audio, Vision

# Each value unlike the published one, so that a default in its place is seen.
EXTRACTOR = {"chunk_length": 20, "sampling_rate": 24_000, "hop_length": 240, "n_fft": 512, "feature_size": 128}
IMAGES = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
MIN_PIXELS, MAX_PIXELS = 6_272, 1_003_520
VISION_CONFIG = {"patch_size": 16, "temporal_patch_size": 4, "spatial_merge_size": 4, "window_size": 128}
FOUND_AUDIO = Audio(sample_rate_hz=24_000, n_fft=512, hop_samples=240, mel_bins=128, block_frames=160, max_frames=2_000)
FOUND_VISION = Vision(
    patch_pixels=16,
    temporal_patch_frames=4,
    merge_patches=4,
    window_pixels=128,
    hidden_size=96,
    image_min_pixels=MIN_PIXELS,
    image_max_pixels=MAX_PIXELS,
    video_min_pixels=100_352,
    video_max_pixels=602_112,
    mean=[0.1, 0.2, 0.3],
    std=[0.4, 0.5, 0.6],
)
PROCESSOR_FILES: list[tuple[str, dict[str, Any]]] = [
    ("preprocessor_config.json", {**EXTRACTOR, **IMAGES, "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS}),
    (
        "processor_config.json",
        {
            "feature_extractor": EXTRACTOR,
            "image_processor": {**IMAGES, "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}},
        },
    ),
]


@pytest.mark.parametrize(("name", "content"), PROCESSOR_FILES)
def test_both_processor_files_are_read(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    audio, vision = {"num_mel_bins": 128, "n_window": 80}, {**VISION_CONFIG, "out_hidden_size": 96}
    assert read_audio(tmp_path, Section(audio, "audio_config")) == FOUND_AUDIO
    assert read_vision(tmp_path, Section(vision, "vision_config")) == FOUND_VISION


def test_a_bundle_hears_and_sees_as_its_checkpoint_says(checkpoint_3b: Path, tmp_path: Path) -> None:
    manifest = export_bundle(checkpoint_3b, tmp_path / "bundle", ExportOptions(bits=4))
    processor = json.loads((checkpoint_3b / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert manifest.audio == AUDIO
    assert (manifest.vision.image_min_pixels, manifest.vision.image_max_pixels) == (3_136, 12_845_056)
    assert (manifest.vision.mean, manifest.vision.std) == (processor["image_mean"], processor["image_std"])
    assert (manifest.vision.patch_pixels, manifest.vision.window_pixels) == (14, 112)
    assert manifest.vision.hidden_size == manifest.thinker.hidden_size
    assert (manifest.tokens.position_ids_per_second, manifest.tokens.seconds_per_chunk) == (25, 2)


def test_a_bundle_follows_altered_settings(checkpoint_3b: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(checkpoint_3b, tmp_path / "altered"))
    _alter(altered / "preprocessor_config.json", lambda values: values.update(PROCESSOR_FILES[0][1]))

    def alter(config: dict[str, Any]) -> None:
        thinker = config["thinker_config"]
        thinker |= {"position_id_per_seconds": 20, "seconds_per_chunk": 3}
        thinker["audio_config"]["n_window"] = 80
        thinker["vision_config"]["window_size"] = 56

    _alter(altered / "config.json", alter)
    manifest = export_bundle(altered, tmp_path / "bundle", ExportOptions(bits=4))
    assert manifest.audio == FOUND_AUDIO
    assert (manifest.vision.image_min_pixels, manifest.vision.image_max_pixels) == (MIN_PIXELS, MAX_PIXELS)
    assert (manifest.vision.mean, manifest.vision.std) == (IMAGES["image_mean"], IMAGES["image_std"])
    assert manifest.vision.window_pixels == 56
    assert (manifest.tokens.position_ids_per_second, manifest.tokens.seconds_per_chunk) == (20, 3)


def test_a_front_end_of_other_mel_bins_is_refused(checkpoint_3b: Path, tmp_path: Path) -> None:
    altered = {**PROCESSOR_FILES[0][1], "feature_size": 80}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(altered), encoding="utf-8")
    audio_config = read_config(checkpoint_3b).section("thinker_config").section("audio_config")
    with pytest.raises(CheckpointError, match=r"feature_size is 80, .* num_mel_bins 128; .* different checkpoints"):
        read_audio(tmp_path, audio_config)


def _alter(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
