"""Resizing beside torchvision, which the reference resizes with: the same bytes."""

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from nearfield.runtime.resize import resize_bicubic
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

sides = st.integers(1, 260)
multiples = st.integers(1, 10).map(lambda squares: 28 * squares)


@given(sides, sides, multiples, multiples, st.booleans())
@example(480, 640, 476, 644, True)  # Pillow resizes rows first here and is far off
@example(3_000, 60, 56, 28, True)  # sums too large for float32, which gets one byte wrong
@example(56, 84, 56, 84, False)
@example(1, 1, 280, 28, False)
def test_every_byte_equals_the_reference(height: int, width: int, rows: int, columns: int, hard: bool) -> None:
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    if hard:
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    expected = resize(planes, [rows, columns], interpolation=InterpolationMode.BICUBIC, antialias=True)
    found = resize_bicubic(image, rows, columns)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected.permute(1, 2, 0).numpy())
