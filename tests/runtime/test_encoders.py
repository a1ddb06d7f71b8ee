"""The encoders beside the reference, and the same result whatever the pieces they are fed in."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from graphs import Array, open_component
from hypothesis import given
from hypothesis import strategies as st
from input_settings import AUDIO, VISION
from nearfield.errors import AudioError, ImageError
from nearfield.export.audio_encoder import AudioEncoderConfig, audio_encoder_graph
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.graph import Style
from nearfield.export.vision_encoder import VisionEncoderConfig, vision_encoder_graph
from nearfield.runtime.encoders import AudioEncoder, VisionEncoder
from nearfield.runtime.mel import audio_tokens
from nearfield.runtime.session import Session, SessionSettings, open_session
from nearfield.runtime.vision_layout import Grid
from tolerances import FP16_RELATIVE, FP32_RELATIVE, relative_error
from transformers import Qwen2_5OmniForConditionalGeneration

LENGTHS = sorted({*range(1, 451, 23), 2, 3, 199, 200, 201, 202, 203, 399, 400, 401, 403, 449, 450})
GRIDS = [Grid(1, 8, 8), Grid(1, 2, 2), Grid(2, 16, 16), Grid(5, 10, 14), Grid(1, 2, 30), Grid(3, 26, 4)]


@dataclass
class Recording:
    """A session that keeps the sizes of what it was asked."""

    session: Session
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.shapes.append(next(iter(inputs.values())).shape)
        return self.session.run(inputs)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def open_audio(checkpoint: Path, directory: Path, style: Style) -> Recording:
    section = Checkpoint.open(checkpoint).config.section("thinker_config").section("audio_config")
    open_component(audio_encoder_graph(AudioEncoderConfig.from_hf(section), style), checkpoint, directory)
    return Recording(open_session(directory / "audio_encoder.onnx", SessionSettings(threads=1)))


def open_vision(checkpoint: Path, directory: Path, style: Style) -> Recording:
    section = Checkpoint.open(checkpoint).config.section("thinker_config").section("vision_config")
    open_component(vision_encoder_graph(VisionEncoderConfig.from_hf(section), style), checkpoint, directory)
    return Recording(open_session(directory / "vision_encoder.onnx", SessionSettings(threads=1)))


@pytest.fixture(scope="module")
def audio_session(checkpoint_3b: Path, directory: Path) -> Recording:
    return open_audio(checkpoint_3b, directory, Style("ort", "float32"))


@pytest.fixture(scope="module")
def vision_session(checkpoint_3b: Path, directory: Path) -> Recording:
    return open_vision(checkpoint_3b, directory, Style("ort", "float32"))


def clip(frames: int) -> Array:
    return np.random.default_rng(frames).standard_normal((AUDIO.mel_bins, frames)).astype(np.float32)


def pictures(grid: Grid) -> Array:
    return np.random.default_rng(grid).standard_normal((grid.t, grid.h * grid.w, 1176)).astype(np.float32)


@torch.no_grad()
def heard(reference: Qwen2_5OmniForConditionalGeneration, mel: Array) -> Array:
    lengths = torch.tensor([mel.shape[1]])
    embeddings: Array = reference.thinker.model.audio_tower(torch.from_numpy(mel), lengths).last_hidden_state.numpy()
    return embeddings


@torch.no_grad()
def seen(reference: Qwen2_5OmniForConditionalGeneration, patches: Array, grid: Grid) -> Array:
    pixels = torch.from_numpy(patches.reshape(-1, patches.shape[2]))
    embeddings: Array = reference.thinker.model.visual(pixels, torch.tensor([grid])).pooler_output.numpy()
    return embeddings


def test_clips_of_any_length_equal_the_reference(
    audio_session: Recording, reference_3b: Qwen2_5OmniForConditionalGeneration
) -> None:
    encoder = AudioEncoder(audio_session, AUDIO, "float32")
    for frames in LENGTHS:
        out, expected = encoder.encode(clip(frames)), heard(reference_3b, clip(frames))
        assert out.shape == expected.shape == (audio_tokens(frames), VISION.hidden_size), f"{frames} frames"
        assert not len(expected) or relative_error(out, expected) <= FP32_RELATIVE, f"{frames} frames"


def test_a_clip_is_the_same_in_any_number_of_blocks_at_once(audio_session: Recording) -> None:
    for frames in (55, 200, 401, 1100, 2000):
        whole = AudioEncoder(audio_session, AUDIO, "float32", blocks_per_call=100).encode(clip(frames))
        for blocks in (1, 2, 3, 8):
            audio_session.shapes.clear()
            encoder = AudioEncoder(audio_session, AUDIO, "float32", blocks)
            assert relative_error(encoder.encode(clip(frames)), whole) <= FP32_RELATIVE
            assert max(shape[0] for shape in audio_session.shapes) <= blocks
            assert len(audio_session.shapes) == -(-frames // (200 * blocks))


def test_a_stream_of_blocks_is_the_clip(audio_session: Recording) -> None:
    encoder = AudioEncoder(audio_session, AUDIO, "float32")

    @given(st.integers(3, 900))
    def check(frames: int) -> None:
        mel = clip(frames)
        streamed = [encoder.encode_block(mel[:, start : start + 200]) for start in range(0, frames, 200)]
        assert relative_error(np.concatenate(streamed), encoder.encode(mel)) <= FP32_RELATIVE

    check()


def test_half_floats_go_in_and_come_out(
    checkpoint_7b: Path, reference_7b: Qwen2_5OmniForConditionalGeneration, tmp_path: Path
) -> None:
    style = Style("standard", "float16")
    audio = AudioEncoder(open_audio(checkpoint_7b, tmp_path, style), AUDIO, "float16").encode(clip(333))
    grid = Grid(2, 6, 10)
    vision = VisionEncoder(open_vision(checkpoint_7b, tmp_path, style), VISION, "float16").encode(pictures(grid), grid)
    assert audio.dtype == vision.dtype == np.float16
    assert relative_error(audio, heard(reference_7b, clip(333))) <= FP16_RELATIVE
    assert relative_error(vision, seen(reference_7b, pictures(grid), grid)) <= FP16_RELATIVE


def test_sound_of_the_wrong_form_is_refused(audio_session: Recording) -> None:
    encoder = AudioEncoder(audio_session, AUDIO, "float32")
    for mel in (clip(0), clip(300).T, clip(300)[0]):
        with pytest.raises(AudioError, match=r"expected \(128, frames\), at least one frame"):
            encoder.encode(mel)
    with pytest.raises(AudioError, match="has 201 mel frames; expected at most 200"):
        encoder.encode_block(clip(201))


@pytest.mark.parametrize("patches_per_call", [1, 300, 4096])
def test_pictures_of_every_grid_equal_the_reference(
    vision_session: Recording, reference_3b: Qwen2_5OmniForConditionalGeneration, patches_per_call: int
) -> None:
    encoder = VisionEncoder(vision_session, VISION, "float32", patches_per_call)
    for grid in GRIDS:
        patches = pictures(grid)
        vision_session.shapes.clear()
        out = encoder.encode(patches, grid)
        assert out.shape == (grid.embeddings(VISION), VISION.hidden_size)
        assert relative_error(out, seen(reference_3b, patches, grid)) <= FP32_RELATIVE, str(grid)
        assert all(t == 1 or t * p <= patches_per_call for t, p, _ in vision_session.shapes)


def test_a_video_is_taken_a_few_temporal_patches_at_a_time(vision_session: Recording) -> None:
    grid = Grid(5, 4, 4)
    taken: list[int] = []
    vision_session.shapes.clear()

    def decode() -> Iterator[Array]:
        for patches in pictures(grid):
            taken.append(len(vision_session.shapes))
            yield patches

    VisionEncoder(vision_session, VISION, "float32", patches_per_call=35).encode(decode(), grid)
    assert taken == [0, 0, 1, 1, 2], "runs done when each temporal patch was asked for"


def test_patches_that_do_not_fit_the_grid_are_refused(vision_session: Recording) -> None:
    encoder = VisionEncoder(vision_session, VISION, "float32")
    with pytest.raises(ImageError, match=r"patches have shape \(16, 1176\); expected \(24, 1176\)"):
        encoder.encode(pictures(Grid(1, 4, 4)), Grid(1, 4, 6))
    for count in (0, 2, 4):
        with pytest.raises(ImageError, match=f"there are {count} temporal patches; expected 3"):
            encoder.encode(pictures(Grid(count, 4, 4)), Grid(3, 4, 4))
