"""Pictures of one coloured shape, and clips of one that moves, drawn with Pillow and numpy.

Inputs: a generator and a split → outputs: a :class:`Picture`, uint8 ``(H, W, 3)`` RGB, or a :class:`Clip` of 4 to 8
such frames, with the words for what they show. Size, place, turn, background, light, noise, blur and JPEG artefacts
vary. Drawing takes about a tenth of the time that learning from it takes, so nothing is kept: every batch is new.

What is held out: a picture's colour, shape, background and band of size together make a combination, a clip's colour,
shape, background and direction likewise; one combination in ten, chosen by its checksum, is drawn only for the
held-out split. Every word occurs in both splits.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .tokenizer import MAX_PIXELS
from .world import COLOURS, DIRECTIONS, SHAPES

Pixels = NDArray[np.uint8]
Split = Literal["train", "heldout"]

FPS = 2.0
MIN_SIDE, MAX_SIDE = 84, 448
BACKGROUNDS = ("plain", "gradient", "texture")
SIZES = {"small": (0.28, 0.42), "medium": (0.42, 0.62), "large": (0.62, 0.92)}
"""Bands of a shape's diameter, as a share of the picture's shorter side."""


class Picture(NamedTuple):
    """A picture ``(H, W, 3)`` of one shape."""

    pixels: Pixels
    colour: str
    shape: str


class Clip(NamedTuple):
    """Frames ``(N, H, W, 3)`` of one shape that moves."""

    frames: Pixels
    fps: float
    direction: str
    colour: str
    shape: str


class _Hsv(NamedTuple):
    """The shades a colour's name covers: hue in degrees, saturation and value from 0 to 1."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


_SHADES = {
    "red": _Hsv((350, 364), (0.82, 1.0), (0.65, 1.0)),
    "orange": _Hsv((22, 34), (0.85, 1.0), (0.9, 1.0)),
    "yellow": _Hsv((51, 60), (0.75, 1.0), (0.88, 1.0)),
    "green": _Hsv((95, 150), (0.6, 1.0), (0.4, 0.9)),
    "blue": _Hsv((208, 240), (0.7, 1.0), (0.5, 1.0)),
    "purple": _Hsv((270, 292), (0.55, 0.95), (0.4, 0.85)),
    "black": _Hsv((0, 360), (0.0, 0.3), (0.0, 0.12)),
    "white": _Hsv((0, 360), (0.0, 0.04), (0.94, 1.0)),
}
_OTHER_SHADES = (
    _Hsv((0, 360), (0.0, 0.12), (0.75, 1.0)),  # nearly white
    _Hsv((0, 360), (0.0, 0.12), (0.3, 0.75)),  # grey
    _Hsv((0, 360), (0.0, 0.4), (0.05, 0.3)),  # dark
    _Hsv((0, 360), (0.12, 0.5), (0.35, 1.0)),  # muted
)
_MIN_CONTRAST = 75.0  # between shape and background, on the scale of _contrast: black to white is 255
_MIN_DIAMETER = 28.0  # in pixels once the processor has shrunk the picture: two patches
_PROCESSED_PIXELS = MAX_PIXELS  # what it shrinks large pictures to


def draw(rng: np.random.Generator, split: Split, max_side: int = MAX_SIDE, *, easy: bool = False) -> Picture:
    """Draw a picture of a combination of that split, no side of it longer than `max_side` pixels.

    An easy one is large, upright and on a plain background: what a tower that knows nothing can learn from.
    """
    backgrounds, sizes = (BACKGROUNDS[:1], ["large"]) if easy else (BACKGROUNDS, list(SIZES))
    colour, shape, background, size = _combination(rng, split, COLOURS, SHAPES, backgrounds, sizes)
    height, width = _sides(rng, 0.25, max_side)
    shorter = min(height, width)
    diameter = shorter * rng.uniform(*SIZES[size])
    diameter = max(diameter, _MIN_DIAMETER * max(1.0, math.sqrt(height * width / _PROCESSED_PIXELS)))
    room = np.array([width, height]) - diameter - 2
    centre = rng.uniform(0, 1, 2) * room + diameter / 2 + 1
    scene = _Scene(rng, height, width, colour, shape, background, diameter, upright=easy)
    return Picture(scene.frame(rng, centre), colour, shape)


def clip(rng: np.random.Generator, split: Split, max_side: int = MAX_SIDE, *, easy: bool = False) -> Clip:
    """Draw a clip of a combination of that split: 4 to 8 frames at 2 a second, 2 to 4 seconds; sides as in `draw`.

    An easy one is on a plain background and goes far.
    """
    backgrounds = BACKGROUNDS[:1] if easy else BACKGROUNDS
    colour, shape, background, direction = _combination(rng, split, COLOURS, SHAPES, backgrounds, DIRECTIONS)
    height, width = _sides(rng, 0.15, max_side)
    diameter = min(height, width) * (rng.uniform(0.3, 0.5) if easy else rng.uniform(0.2, 0.42))
    scene = _Scene(rng, height, width, colour, shape, background, diameter, upright=easy)
    path = _path(rng, height, width, diameter, direction, least_travel=0.7 if easy else 0.2)
    return Clip(np.stack([scene.frame(rng, centre) for centre in path]), FPS, direction, colour, shape)


def _combination(rng: np.random.Generator, split: Split, *choices: Sequence[str]) -> list[str]:
    """One word of each choice, which together are of the split."""
    while True:
        words = [str(rng.choice(choice)) for choice in choices]
        if _split(*words) == split:
            return words


def _split(*words: str) -> Split:
    return "heldout" if zlib.crc32(" ".join(words).encode()) % 10 == 0 else "train"


def _sides(rng: np.random.Generator, far: float, max_side: int) -> tuple[int, int]:
    """Height and width in pixels: mostly small, a share of `far` up to the largest; sides differ by up to 1.8."""
    middle = min(170, max_side)
    shorter = rng.uniform(middle, max_side) if rng.random() < far else rng.uniform(MIN_SIDE, middle)
    longer = min(shorter * rng.uniform(1.0, 1.8), max_side)
    sides = (round(shorter), round(longer))
    return sides if rng.random() < 0.5 else sides[::-1]


def _path(
    rng: np.random.Generator, height: int, width: int, diameter: float, direction: str, *, least_travel: float
) -> Iterator[NDArray[np.float64]]:
    """Centres ``(x, y)`` of a shape that crosses part of the picture, drifting a little to the side."""
    steps = int(rng.integers(4, 9)) - 1
    along, across = (width, height) if direction in ("left", "right") else (height, width)
    room_along, room_across = along - diameter - 2, across - diameter - 2
    travel = max(rng.uniform(least_travel, 1.0) * room_along, 0.025 * along * steps)
    drift = min(0.2 * travel, room_across) * rng.uniform(-1, 1)
    start_along = rng.uniform(0, room_along - travel)
    start_across = rng.uniform(max(0, -drift), room_across - max(0, drift))
    strides = rng.uniform(0.7, 1.3, steps)
    for done in np.concatenate([[0.0], np.cumsum(strides) / strides.sum()]):
        forward = start_along + done * travel
        if direction in ("left", "up"):
            forward = room_along - forward
        sideways = start_across + done * drift
        pair = (forward, sideways) if direction in ("left", "right") else (sideways, forward)
        yield np.array(pair) + diameter / 2 + 1


class _Scene:
    """All that stays the same between the frames of a clip: outline, colours, light and camera."""

    def __init__(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        colour: str,
        shape: str,
        background: str,
        diameter: float,
        *,
        upright: bool,
    ) -> None:
        self._height, self._width = height, width
        ink = _shade(rng, _SHADES[colour])
        self._background = _background(rng, height, width, background, colour, ink).astype(np.float32)
        self._outline = _outline(rng, shape, diameter, upright)
        fade = rng.uniform(-0.12, 0.12, 2)  # the shape's own shading
        self._ink = np.clip(ink * (1 + _ramp(height, width, *fade)[..., None]), 0, 255).astype(np.float32)
        light = rng.uniform(0.88, 1.06) * (1 + _ramp(height, width, *rng.uniform(-0.08, 0.08, 2)))
        self._light = (light[..., None] * rng.uniform(0.96, 1.04, 3)).astype(np.float32)  # a tint besides
        self._blur_pixels = rng.uniform(0.3, 1.2) * min(height, width) / 150 if rng.random() < 0.4 else 0.0
        self._noise = rng.uniform(1, 10) if rng.random() < 0.6 else 0.0
        self._jpeg_quality = int(rng.integers(40, 96)) if rng.random() < 0.5 else None

    def frame(self, rng: np.random.Generator, centre: NDArray[np.float64]) -> Pixels:
        """The scene with its shape at ``centre``, ``(x, y)`` in pixels → uint8 ``(H, W, 3)``."""
        cover = _cover(self._outline + centre, self._height, self._width)[..., None]
        lit = (self._background * (1 - cover) + self._ink * cover) * self._light
        image = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
        if self._blur_pixels:
            image = image.filter(ImageFilter.GaussianBlur(self._blur_pixels))
        if self._noise:
            noise = rng.standard_normal((self._height, self._width, 3), np.float32)
            noisy = np.asarray(image) + np.float32(self._noise) * noise
            image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        if self._jpeg_quality is not None:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=self._jpeg_quality)
            image = Image.open(file)
        return np.asarray(image)


def _outline(rng: np.random.Generator, shape: str, diameter: float, upright: bool) -> NDArray[np.float64]:
    """Corners ``(K, 2)`` around the origin, at most half a diameter away from it."""
    if shape == "star":
        angles = np.arange(10) * math.tau / 10
        radii = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.48), 1.0)
        stretch = rng.uniform(0.93, 1.0)
    else:
        corners, least = {"circle": (72, 0.94), "square": (4, 0.92), "triangle": (3, 0.85)}[shape]
        angles = np.arange(corners) * math.tau / corners
        radii = np.ones(corners)
        stretch = rng.uniform(least, 1.0)
    if shape == "square":
        angles = angles + math.tau / 8  # stretched along its sides, or it would become a diamond
    x, y = radii * np.cos(angles), radii * np.sin(angles) * stretch
    turn = rng.uniform(-0.3, 0.3) - math.tau / 4 if upright else rng.uniform(0, math.tau)
    turned = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], axis=1)
    return turned * diameter / 2


def _cover(outline: NDArray[np.float64], height: int, width: int) -> NDArray[np.float32]:
    """How much of each pixel lies inside the outline, ``(H, W)`` from 0 to 1, from four times as many pixels."""
    low = np.floor(outline.min(axis=0)).astype(int) - 1
    columns, rows = np.ceil(outline.max(axis=0)).astype(int) + 1 - low
    canvas = Image.new("L", (int(columns) * 4, int(rows) * 4))
    ImageDraw.Draw(canvas).polygon([(x, y) for x, y in (outline - low) * 4], fill=255)
    whole = Image.new("L", (width, height))
    whole.paste(canvas.reduce(4), (int(low[0]), int(low[1])))
    return np.asarray(whole, np.float32) / np.float32(255)


def _background(
    rng: np.random.Generator, height: int, width: int, kind: str, colour: str, ink: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Background ``(H, W, 3)`` that stands out from ``ink`` everywhere."""
    first = _contrasting(rng, colour, ink)
    plain = np.broadcast_to(first, (height, width, 3))
    if kind == "plain":
        return plain
    if kind == "gradient":
        while True:
            second = _contrasting(rng, colour, ink)
            weights = np.linspace(0, 1, 9)[:, None]
            if min(_contrast(between, ink) for between in first * (1 - weights) + second * weights) > _MIN_CONTRAST:
                break
        slope = _ramp(height, width, *rng.uniform(-1, 1, 2))
        share: NDArray[np.float64] = ((slope - slope.min()) / max(float(np.ptp(slope)), 1e-6))[..., None]
        return first * (1 - share) + second * share
    return plain + rng.uniform(6, 16) * _texture(rng, height, width)[..., None]


def _texture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Light structure ``(H, W)`` between −1 and 1: stripes, a chequer, or soft clouds."""
    x, y = np.arange(width), np.arange(height)[:, None]
    kind = rng.integers(3)
    if kind == 0:
        angle, pitch_pixels = rng.uniform(0, math.pi), rng.uniform(6, 24)
        return np.sin((x * math.cos(angle) + y * math.sin(angle)) * math.tau / pitch_pixels + rng.uniform(0, math.tau))
    if kind == 1:
        square_pixels = rng.uniform(6, 24)
        return (x // square_pixels + y // square_pixels) % 2 * 2 - 1
    grains = rng.uniform(0, 255, (max(2, height // 12), max(2, width // 12))).astype(np.uint8)
    clouds = Image.fromarray(grains).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(clouds) / 127.5 - 1


def _contrasting(rng: np.random.Generator, colour: str, ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour that is not of that name and stands out from ``ink``: half the time one that has a name itself."""
    named = [shade for name, shade in _SHADES.items() if name != colour]
    while True:
        choices: list[_Hsv] | tuple[_Hsv, ...] = named if rng.random() < 0.5 else _OTHER_SHADES
        shade = _shade(rng, choices[int(rng.integers(len(choices)))])
        if _contrast(shade, ink) > _MIN_CONTRAST:
            return shade


def _contrast(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Distance of two RGB colours: in brightness and, somewhat more, in blue and red difference."""
    red, green, blue = one - other
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    return math.sqrt(brightness**2 + 0.5 * (blue - brightness) ** 2 + 0.8 * (red - brightness) ** 2)


def _shade(rng: np.random.Generator, shade: _Hsv) -> NDArray[np.float64]:
    """A random colour of that range, RGB from 0 to 255."""
    hue, saturation, value = (rng.uniform(*bounds) for bounds in shade)
    place = np.abs((hue / 60 + np.array([0, 4, 2])) % 6 - 3) - 1  # red, green and blue of the pure hue
    return np.asarray(255 * value * (1 - saturation * (1 - np.clip(place, 0, 1))))


def _ramp(height: int, width: int, across: float, down: float) -> NDArray[np.float64]:
    """``(H, W)``, zero in the middle, ``±across`` at the sides and ``±down`` at top and bottom."""
    return np.linspace(-across, across, width) + np.linspace(-down, down, height)[:, None]
