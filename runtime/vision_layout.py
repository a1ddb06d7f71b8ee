"""Order of patches inside the vision encoder: which window each belongs to and where in the picture it lies.

Inputs: a grid of patches `(h, w)` → outputs: the index arrays `vision_encoder.onnx` takes, and those that bring patches
into its order and its outputs back out of it. Every temporal patch of a video has the same layout.

The processor's order walks the picture in squares of `merge × merge` patches, row by row of squares; each square
becomes one embedding. The encoder's order walks it in windows of 112 × 112 pixels instead, squares row by row in each,
so that a window is one run of patches. Windows at the right and lower edge hold fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .manifest import Vision


class Grid(NamedTuple):
    """Patches of an image (`t` = 1) or a video: pairs of frames, rows, columns. Rows and columns are even."""

    t: int
    h: int
    w: int

    def embeddings(self, vision: Vision) -> int:
        """Embeddings the encoder makes of it: one a square of merged patches."""
        return self.t * self.h * self.w // vision.merge_patches**2


@dataclass(frozen=True, eq=False)
class VisionLayout:
    """Index arrays, all int64, for a picture of `P` patches in `W` windows."""

    patch_order: NDArray[np.int64]
    """`(P)`: patches in the processor's order → window order, by `patches[patch_order]`."""
    positions: NDArray[np.int64]
    """`(P, 2)`: row and column of each patch, in window order."""
    window_slots: NDArray[np.int64]
    """`(W, 64)`: which patch, in window order, fills each slot of each window; −1 where a window has fewer."""
    patch_slots: NDArray[np.int64]
    """`(P)`: slot of each patch, counted through all windows."""
    embedding_order: NDArray[np.int64]
    """`(P / 4)`: embeddings in window order → the processor's order, by `embeddings[embedding_order]`."""


def vision_layout(h: int, w: int, vision: Vision) -> VisionLayout:
    """Return the layout of a grid of `h × w` patches, both multiples of `merge_patches`."""
    merge = vision.merge_patches
    side = vision.window_pixels // vision.patch_pixels // merge  # squares along a window
    rows, columns = np.divmod(np.arange(h // merge * (w // merge)), w // merge)  # of squares, in the processor's order
    window = rows // side * -(-w // merge // side) + columns // side  # (squares)
    square_order = np.argsort(window, kind="stable")
    within = np.arange(merge**2)
    patch_order = (square_order[:, None] * merge**2 + within).reshape(-1)
    positions = np.stack(
        [
            (rows[square_order, None] * merge + within // merge).reshape(-1),
            (columns[square_order, None] * merge + within % merge).reshape(-1),
        ],
        axis=1,
    )
    window_of_patch = np.repeat(window[square_order], merge**2)
    capacity = (side * merge) ** 2
    window_start = np.searchsorted(window_of_patch, window_of_patch)  # first patch of the patch's window
    patch_slots = window_of_patch * capacity + np.arange(h * w) - window_start
    window_slots = np.full((int(window.max()) + 1, capacity), -1, np.int64)
    window_slots.reshape(-1)[patch_slots] = np.arange(h * w)
    return VisionLayout(patch_order, positions, window_slots, patch_slots, np.argsort(square_order, kind="stable"))
