"""Patches of images and videos beside the reference's processors, resized ones included."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from input_settings import VISION
from msgspec.structs import replace
from nearfield.errors import ImageError
from nearfield.runtime.images import (
    check_frames,
    check_image,
    image_grid,
    image_patches,
    read_image,
    video_grid,
    video_patches,
)
from nearfield.runtime.vision_layout import Grid
from numpy.typing import NDArray
from PIL import Image
from tolerances import FEATURES
from transformers import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

Pixels = NDArray[np.uint8]
VIDEO_TEXT = "<|vision_bos|><|VIDEO|><|vision_eos|>"


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Noise, with hard edges between black and white in one half: bicubic overshoots there and is clipped."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2] = np.where(image[: height // 2] > 127, 255, 0)
    return image


sizes = st.tuples(st.integers(1, 300), st.integers(1, 300)).filter(lambda size: max(size) <= 200 * min(size))


@given(sizes, st.integers(0, 9))
@example((112, 140), 0)  # no resizing
@example((480, 644), 0)  # rows only
@example((1, 200), 0)
@example((3, 600), 0)
@example((700, 1_000), 0)
def test_image_patches_equal_the_reference(
    processor_3b: Qwen2_5OmniProcessor, size: tuple[int, int], seed: int
) -> None:
    image = picture(*size, seed)
    # As a Pillow image: of an array it guesses the channels' axis, and takes three rows of pixels for it.
    reference = processor_3b.image_processor([Image.fromarray(image)], return_tensors="np")
    patches = image_patches(image, VISION)
    assert image_grid(*size, VISION) == tuple(reference["image_grid_thw"][0])
    assert patches.dtype == np.float32
    assert patches.shape == reference["pixel_values"].shape
    assert np.abs(patches - reference["pixel_values"]).max() <= FEATURES


def test_a_limit_of_ones_own_lowers_the_checkpoints() -> None:
    image = np.random.default_rng(3).integers(0, 256, (300, 500, 3), np.uint8)
    limited = replace(VISION, image_max_pixels=50_000)
    assert image_grid(300, 500, VISION, 50_000) == image_grid(300, 500, limited) != image_grid(300, 500, VISION)
    assert image_grid(300, 500, limited, 100_000) == image_grid(300, 500, limited)
    assert np.array_equal(image_patches(image, VISION, 50_000), image_patches(image, limited))


def test_image_patches_equal_the_reference_without_torchvision() -> None:
    image = picture(112, 168)
    reference = Qwen2VLImageProcessorPil()([image], return_tensors="np")
    assert np.abs(image_patches(image, VISION) - reference["pixel_values"]).max() <= FEATURES


@settings(max_examples=15)
@given(st.integers(1, 5), sizes)
@example(3, (336, 308))  # no resizing
@example(2, (720, 1_280))  # beyond the largest frame
def test_video_patches_equal_the_reference(
    processor_3b: Qwen2_5OmniProcessor, frames: int, size: tuple[int, int]
) -> None:
    video = np.stack([picture(*size, seed) for seed in range(frames)])
    channels_first = np.ascontiguousarray(video.transpose(0, 3, 1, 2))  # the first guess of the reference
    reference = processor_3b(text=VIDEO_TEXT, videos=[channels_first], return_tensors="np")
    grid = video_grid(frames, *size, VISION)
    assert grid == tuple(reference["video_grid_thw"][0])
    temporal_patches = list(video_patches(video, VISION))
    assert [patches.shape for patches in temporal_patches] == [(grid.h * grid.w, 1_176)] * grid.t
    difference = np.concatenate(temporal_patches) - reference["pixel_values_videos"]
    assert np.abs(difference).max() <= FEATURES


def test_a_list_of_frames_is_a_video() -> None:
    frames = [picture(336, 308, seed) for seed in range(3)]
    pairs = zip(video_patches(frames, VISION), video_patches(np.stack(frames), VISION), strict=True)
    assert all(np.array_equal(from_list, from_array) for from_list, from_array in pairs)


def test_frames_are_cut_one_temporal_patch_at_a_time() -> None:
    asked: list[int] = []

    class Frames(list[Pixels]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return super().__getitem__(index)

    patches = video_patches(Frames([picture(336, 308)] * 6), VISION)
    next(patches)
    assert max(asked) == 1


@given(sizes, st.integers(1, 3_000_000), st.integers(1, 100))
def test_sizes_follow_the_reference_rule(size: tuple[int, int], max_pixels: int, ratio: int) -> None:
    vision = replace(VISION, image_min_pixels=max_pixels // ratio, image_max_pixels=max_pixels)
    height, width = smart_resize(*size, min_pixels=max_pixels // ratio, max_pixels=max_pixels)
    assert image_grid(*size, vision) == Grid(1, height // 14, width // 14)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("P", "png"), ("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg")]
)
def test_files_of_every_mode_become_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(np.full((20, 30, 3), 204, np.uint8)).convert(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - 204).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white_like_in_the_reference(
    processor_3b: Qwen2_5OmniProcessor, tmp_path: Path, mode: str
) -> None:
    rgba = np.concatenate([picture(56, 84), picture(56, 84, 1)[:, :, :1]], axis=2)
    image = Image.fromarray(rgba).convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    image.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        reference = processor_3b.image_processor([opened], return_tensors="np")["pixel_values"]
    assert np.abs(image_patches(read_image(tmp_path / "a.png"), VISION) - reference).max() <= FEATURES


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    upright = np.zeros((20, 40, 3), np.uint8)
    upright[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera lay on its side, turn right to see
    Image.fromarray(np.rot90(upright)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), upright)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nothing\.png does not exist"):
        read_image(tmp_path / "nothing.png")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is not an image Nearfield can read"):
        read_image(tmp_path)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(picture(60, 60)).save(good)
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 0xFF
    for index, damaged in enumerate([b"", b"not an image", content[:200], content[: len(content) // 2]]):
        path = tmp_path / f"{index}.png"
        path.write_bytes(damaged)
        with pytest.raises(ImageError, match=rf"{index}\.png is not an image Nearfield can read .* convert it"):
            read_image(path)
    (tmp_path / "flipped.png").write_bytes(flipped)
    with pytest.raises(ImageError, match=r"flipped\.png"):
        read_image(tmp_path / "flipped.png")


def test_an_image_too_large_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(60, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "a.png")


def test_a_large_photograph_is_read_without_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(60, 60)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000)  # Pillow warns above this, and refuses above twice as much
    assert read_image(tmp_path / "a.png").shape == (60, 60, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((10, 10), np.uint8), r"uint8 array \(height, width, 3\) in RGB, found uint8 \(10, 10\)"),
        (np.zeros((10, 10, 4), np.uint8), "found uint8"),
        (np.zeros((3, 10, 10), np.uint8), "found uint8"),
        (np.zeros((10, 10, 3), np.float32), "found float32"),
        ([[1, 2, 3]], "found list"),
        (np.zeros((0, 10, 3), np.uint8), "no pixels"),
        (np.zeros((10, 2_001, 3), np.uint8), "2001 × 10 pixels; sides may differ by a factor of 200 at most"),
        (np.zeros((201, 1, 3), np.uint8), "1 × 201 pixels"),
    ],
)
def test_arrays_that_are_no_image(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_image(image)


def test_the_longest_strip_is_allowed() -> None:
    assert check_image(np.zeros((10, 2_000, 3), np.uint8)).shape == (10, 2_000, 3)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "the video has no frames"),
        (np.zeros((0, 10, 10, 3), np.uint8), "the video has no frames"),
        ([picture(10, 10), picture(10, 12)], r"frame 1 of the video has shape \(10, 12, 3\), the first \(10, 10, 3\)"),
        ([picture(10, 10), np.zeros((10, 10), np.uint8)], "frame 1 of the video must be a uint8 array"),
        (np.zeros((2, 3, 10, 10), np.uint8), "frame 0 of the video must be a uint8 array"),
    ],
)
def test_frames_that_are_no_video(frames: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        check_frames(frames)
