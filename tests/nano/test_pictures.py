"""Nano's pictures and clips: what is drawn is what is said of it, varied, repeatable, and apart by split.

The vision tower's training shares its forward with nobody, so that is compared with the reference's too.
"""

import numpy as np
import pytest
import torch
from nearfield.nano import see
from nearfield.nano.chat import front
from nearfield.nano.model import build
from nearfield.nano.pictures import MAX_SIDE, MIN_SIDE, Clip, Picture, Split, clip, draw
from nearfield.nano.world import COLOURS, DIRECTIONS, SHAPES
from nearfield.runtime.messages import Image, Text, Video
from numpy.typing import NDArray
from tolerances import FP32_RELATIVE, relative_error

SPLITS: tuple[Split, ...] = ("train", "heldout")
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def _pictures(split: Split, count: int = 200) -> list[Picture]:
    rng = np.random.default_rng(7)
    return [draw(rng, split) for _ in range(count)]


def _clips(split: Split, count: int = 60) -> list[Clip]:
    rng = np.random.default_rng(8)
    return [clip(rng, split) for _ in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_every_word_is_drawn_in_both_splits(split: Split) -> None:
    pictures, clips = _pictures(split), _clips(split)
    assert {picture.colour for picture in pictures} == set(COLOURS)
    assert {picture.shape for picture in pictures} == set(SHAPES)
    assert {moving.direction for moving in clips} == set(DIRECTIONS)


def test_pictures_are_rgb_within_the_sizes_promised() -> None:
    for picture in _pictures("train", 60):
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.shape[2] == 3
        assert MIN_SIDE <= min(picture.pixels.shape[:2]) <= max(picture.pixels.shape[:2]) <= MAX_SIDE


def test_a_seed_draws_the_same_again() -> None:
    first, second = _pictures("heldout", 5), _pictures("heldout", 5)
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(first, second, strict=True))
    assert np.array_equal(_clips("heldout", 1)[0].frames, _clips("heldout", 1)[0].frames)


@pytest.mark.parametrize("split", SPLITS)
def test_clips_last_two_to_four_seconds_and_move_the_way_they_say(split: Split) -> None:
    for moving in _clips(split, 30):
        assert 2 <= len(moving.frames) / moving.fps <= 4
        way = _centre_of_change(moving.frames, -1) - _centre_of_change(moving.frames, 0)
        along = way @ np.array(STEP[moving.direction])
        across = abs(way @ np.array(STEP[moving.direction])[::-1])
        assert along > 2 * across, f"{moving.direction}, but moved by {way}"


def _centre_of_change(frames: NDArray[np.uint8], index: int) -> NDArray[np.float64]:
    """Where, ``(x, y)``, a frame differs most from the middle of all: where the shape is in that frame alone."""
    difference: NDArray[np.float64] = np.abs(frames[index].astype(float) - np.median(frames, axis=0)).sum(axis=2)
    difference *= difference > 0.6 * np.quantile(difference, 0.995)
    y, x = np.indices(difference.shape)
    return np.array([(x * difference).sum(), (y * difference).sum()]) / float(difference.sum())


def test_the_towers_forward_is_the_references() -> None:
    visual = build().thinker.model.visual
    rng = np.random.default_rng(1)
    odd = rng.integers(0, 256, (3, 90, 130, 3)).astype(np.uint8)
    parts = [see.picture(rng).part, Video(odd, 2.0), Image(odd[0]), Video(odd[:2], 2.0, max_pixels=20_000)]
    with torch.no_grad():
        ours = see.encode(visual, parts)
        cut = [see._cut(part) for part in parts]
        patches = torch.from_numpy(np.concatenate([patches for patches, _ in cut]))
        reference = visual(patches, torch.tensor([list(grid) for _, grid in cut])).pooler_output
    assert [len(one) for one in ours] == [grid.embeddings(front().vision) for _, grid in cut]
    assert relative_error(torch.cat(ours), reference) < FP32_RELATIVE


def test_what_cannot_be_seen_is_refused() -> None:
    with pytest.raises(TypeError, match="Text"):
        see.encode(build().thinker.model.visual, [Text("a red circle")])


def test_temporal_patches_know_whose_they_are_and_which_hold_motion() -> None:
    visual = build().thinker.model.visual
    rng = np.random.default_rng(2)
    frames = rng.integers(0, 256, (5, 84, 84, 3)).astype(np.uint8)
    small = Video(frames, 2.0, max_pixels=84 * 84)
    shown = [see.Shown(Image(frames[0]), "red", "star"), see.Shown(small, "red", "star", "left")]
    pooled, owner, moving = see.SeeLoss(visual, torch.randn(1024, 256))._pooled(shown)
    assert owner == [0, 1, 1, 1]
    assert moving == [1, 2]  # the third holds the last frame twice
    assert pooled.shape == (4, 256)
