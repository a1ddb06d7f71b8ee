"""Pictures and video frames → patches for the vision encoder, in the processor's order.

Inputs: an image uint8 `(H, W, 3)` RGB, or frames of that shape → outputs: a grid `(t, h, w)` and, per temporal patch,
patches float32 `(h · w, 1176)`: 3 channels × 2 frames × 14 × 14 pixels, normalized. An image counts as two equal
frames; of an odd number of frames the last counts twice. Patch order is explained in `vision_layout.py`.

The reference's processors are matched in all but one point: a file's EXIF orientation is applied (the reference
ignores it), because phones store photographs lying on their side.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..errors import ImageError
from .manifest import Vision
from .resize import resize_bicubic
from .vision_layout import Grid

MAX_ASPECT_RATIO = 200
"""Longer strips than this are refused, as by the reference."""


def read_image(path: Path | str) -> NDArray[np.uint8]:
    """Read an image file, upright, as RGB `(H, W, 3)` uint8; transparency is laid on white.

    Raises `ImageError` when the file is missing, is no image, is damaged, or is too large to be opened safely.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 megapixels on, which cameras have, and refuses from 179 on.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return from_pil(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist; give the path of an image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large ({error}); scale it down first") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's decoders raise SyntaxError for damaged files
        raise ImageError(f"{path} is not an image Nearfield can read ({error}); convert it to PNG or JPEG") from error


def from_pil(image: Image.Image) -> NDArray[np.uint8]:
    """Turn a Pillow image of any mode into RGB `(H, W, 3)` uint8; transparency is laid on white."""
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def check_image(image: NDArray[Any], name: str = "the image") -> NDArray[np.uint8]:
    """Return `image`, sure to be `(H, W, 3)` uint8 and no strip; `name` stands in the `ImageError` raised otherwise."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ImageError(f"{name} must be a uint8 array (height, width, 3) in RGB, found {found}")
    height, width = image.shape[:2]
    if not height or not width:
        raise ImageError(f"{name} has no pixels: {width} × {height}")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            f"{name} is {width} × {height} pixels; sides may differ by a factor of {MAX_ASPECT_RATIO} at most: crop it"
        )
    return image


def check_frames(frames: Sequence[NDArray[Any]] | NDArray[Any]) -> list[NDArray[np.uint8]]:
    """Return frames, a list or an array `(N, H, W, 3)`, as a list of equal images; raises `ImageError` otherwise."""
    checked = [check_image(frame, f"frame {index} of the video") for index, frame in enumerate(frames)]
    if not checked:
        raise ImageError("the video has no frames; give at least one")
    for index, frame in enumerate(checked):
        if frame.shape != checked[0].shape:
            raise ImageError(f"frame {index} of the video has shape {frame.shape}, the first {checked[0].shape}")
    return checked


def image_grid(height: int, width: int, vision: Vision, max_pixels: int | None = None) -> Grid:
    """Return the grid of an image of this many pixels; `max_pixels` lowers the checkpoint's limit."""
    return _grid(1, height, width, vision, vision.image_min_pixels, _lower(vision.image_max_pixels, max_pixels))


def video_grid(frames: int, height: int, width: int, vision: Vision, max_pixels: int | None = None) -> Grid:
    """Return the grid of this many frames of this many pixels; `max_pixels` lowers the limit of each frame."""
    pairs = -(-frames // vision.temporal_patch_frames)
    limit = _lower(vision.video_max_pixels, max_pixels)
    return _grid(pairs, height, width, vision, min(vision.video_min_pixels, limit), limit)


def _lower(limit: int, wish: int | None) -> int:
    return limit if wish is None else min(limit, wish)


def image_patches(image: NDArray[np.uint8], vision: Vision, max_pixels: int | None = None) -> NDArray[np.float32]:
    """Return the patches `(h · w, 1176)` float32 of an image `(H, W, 3)`, scaled as in `image_grid`."""
    grid = image_grid(image.shape[0], image.shape[1], vision, max_pixels)
    cut = _cut(image, grid, vision)
    return _join([cut] * vision.temporal_patch_frames)


def video_patches(
    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], vision: Vision, max_pixels: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield the patches `(h · w, 1176)` float32 of each temporal patch of a video, from frames `(H, W, 3)`.

    One temporal patch is in memory at a time: a minute of video would take a gigabyte.
    """
    grid = video_grid(len(frames), frames[0].shape[0], frames[0].shape[1], vision, max_pixels)
    last = len(frames) - 1
    for start in range(0, len(frames), vision.temporal_patch_frames):
        indices = range(start, start + vision.temporal_patch_frames)
        yield _join([_cut(frames[min(index, last)], grid, vision) for index in indices])


def _grid(t: int, height: int, width: int, vision: Vision, min_pixels: int, max_pixels: int) -> Grid:
    """Choose the size nearest to the picture's whose sides are whole squares and whose area is within limits."""
    factor = vision.patch_pixels * vision.merge_patches
    rows, columns = round(height / factor), round(width / factor)  # of squares; halves round to even
    area = rows * columns * factor**2
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor)
        columns = math.ceil(width * grow / factor)
    return Grid(t, rows * vision.merge_patches, columns * vision.merge_patches)


def _cut(image: NDArray[np.uint8], grid: Grid, vision: Vision) -> NDArray[np.float32]:
    """One frame → its normalized patches `(h · w, 3, 196)`."""
    patch, merge = vision.patch_pixels, vision.merge_patches
    resized = resize_bicubic(image, grid.h * patch, grid.w * patch)
    mean = np.array(vision.mean, np.float32) * np.float32(255)
    std = np.array(vision.std, np.float32) * np.float32(255)
    normalized: NDArray[np.float32] = (resized - mean) / std
    squares = normalized.reshape(grid.h // merge, merge, patch, grid.w // merge, merge, patch, 3)
    ordered = squares.transpose(0, 3, 1, 4, 6, 2, 5)  # (h/2, w/2, row and column in the square, 3, 14, 14)
    return ordered.reshape(grid.h * grid.w, 3, patch**2)


def _join(frames: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Patches `(P, 3, 196)` of each frame of a temporal patch → `(P, 1176)`."""
    joined: NDArray[np.float32] = np.stack(frames, axis=2)  # (P, 3, frames, 196)
    return joined.reshape(joined.shape[0], -1)
