"""Window order and positions of patches beside the reference's vision utilities."""

from itertools import pairwise

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from input_settings import VISION
from nearfield.runtime.vision_layout import Grid, vision_layout
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

sides = st.integers(1, 20).map(lambda squares: 2 * squares)


@given(sides, sides)
@example(8, 8)
@example(2, 2)
@example(16, 24)
@example(2, 40)
def test_layout_equals_the_reference(h: int, w: int) -> None:
    layout = vision_layout(h, w, VISION)
    grid = torch.tensor([[1, h, w]])
    squares, window_bounds = get_vision_window_index(grid, 2, 112, 14)
    order = (4 * squares[:, None] + torch.arange(4)).reshape(-1).numpy()
    assert np.array_equal(layout.patch_order, order)
    assert np.array_equal(layout.positions, get_vision_position_ids(grid, 2).numpy()[order])
    assert np.array_equal(layout.embedding_order, torch.argsort(squares).numpy())
    assert layout.window_slots.shape == (len(window_bounds) - 1, 64)
    for slots, (start, end) in zip(layout.window_slots, pairwise(window_bounds.tolist()), strict=True):
        assert np.array_equal(slots[slots >= 0], np.arange(start, end))
    assert np.array_equal(layout.window_slots.reshape(-1)[layout.patch_slots], np.arange(h * w))


@given(sides, sides)
def test_the_two_orders_undo_each_other(h: int, w: int) -> None:
    layout = vision_layout(h, w, VISION)
    squares_in_window_order = layout.patch_order[::4] // 4
    assert np.array_equal(squares_in_window_order[layout.embedding_order], np.arange(h * w // 4))


def test_all_arrays_are_int64() -> None:
    layout = vision_layout(10, 6, VISION)
    for array in (layout.patch_order, layout.positions, layout.window_slots, layout.patch_slots):
        assert array.dtype == np.int64
    assert layout.embedding_order.dtype == np.int64


def test_a_video_gives_the_same_windows_in_every_temporal_patch() -> None:
    layout = vision_layout(10, 14, VISION)
    squares, _ = get_vision_window_index(torch.tensor([[3, 10, 14]]), 2, 112, 14)
    per_frame = squares.reshape(3, -1) - 35 * torch.arange(3)[:, None]
    for frame in per_frame.numpy():
        assert np.array_equal(layout.patch_order[::4] // 4, frame)


def test_embeddings_of_a_grid() -> None:
    assert Grid(3, 10, 14).embeddings(VISION) == 105
