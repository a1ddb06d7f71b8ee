"""What quantization cost, Linear by Linear: a table to print and a plot to keep.

Inputs: errors by part, layer and Linear, shares of the output's energy → outputs: text; an SVG drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

Errors = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Part → layer → Linear → share of its output's energy that quantization changes."""

_WIDTH, _HEIGHT, _MARGIN = 640, 260, 46
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#888888")  # Tol's, told apart by all


def table(errors: Errors) -> str:
    """One line a kind of Linear: the median over the layers, and the worst layer."""
    lines = [f"{'part':<8} {'linear':<18} {'median error':>12} {'worst':>9}  in layer"]
    for part, layers in errors.items():
        for name, by_layer in _by_linear(layers).items():
            ordered = sorted(by_layer, key=lambda layer: by_layer[layer])
            middle, worst = ordered[len(ordered) // 2], ordered[-1]
            lines.append(f"{part:<8} {name:<18} {by_layer[middle]:>12.2e} {by_layer[worst]:>9.2e}  {worst}")
    return "\n".join(lines)


def drawing(errors: Errors) -> str:
    """An SVG of each Linear's error over the layers, on a logarithmic scale, a panel a part."""
    panels = [line for index, (part, layers) in enumerate(errors.items()) for line in _panel(part, layers, index)]
    height = _HEIGHT * len(errors)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" '
            'font-size="11">',
            f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
            *panels,
            "</svg>\n",
        ]
    )


def _panel(part: str, layers: Mapping[str, Mapping[str, float]], index: int) -> Iterator[str]:
    by_linear = _by_linear(layers)
    values = [value for by_layer in by_linear.values() for value in by_layer.values() if value > 0] or [1.0]
    lowest, highest = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    highest = max(highest, lowest + 1)
    left, right, top, bottom = _MARGIN, _WIDTH - 130, index * _HEIGHT + 28, (index + 1) * _HEIGHT - 34

    def x(layer: int) -> float:
        return left + (right - left) * layer / max(1, len(layers) - 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (math.log10(max(value, 10.0**lowest)) - lowest) / (highest - lowest)

    title = f"{escape(part)}: share of each output's energy that quantization changes"
    yield f'<text x="{left}" y="{top - 12}" font-size="13">{title}</text>'
    for power in range(lowest, highest + 1):
        at = y(10.0**power)
        yield f'<line x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>'
        yield f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>'
    for layer in sorted({0, len(layers) // 2, len(layers) - 1}):
        yield f'<text x="{x(layer):.1f}" y="{bottom + 16}" text-anchor="middle">{layer}</text>'
    yield f'<text x="{(left + right) / 2:.0f}" y="{bottom + 30}" text-anchor="middle">layer</text>'
    for row, (name, by_layer) in enumerate(by_linear.items()):
        colour = _COLOURS[row % len(_COLOURS)]
        points = " ".join(f"{x(int(layer)):.1f},{y(value):.1f}" for layer, value in by_layer.items())
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        yield f'<text x="{right + 8}" y="{top + 8 + 16 * row}" fill="{colour}">{escape(name)}</text>'


def _by_linear(layers: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    names: Sequence[str] = sorted({name for errors in layers.values() for name in errors})
    return {name: {layer: errors[name] for layer, errors in layers.items() if name in errors} for name in names}
