"""The table names what is worst; the drawing is well-formed and puts larger errors higher."""

import re
from xml.etree import ElementTree

import pytest
from nearfield.calibrate.report import drawing, table

ERRORS = {
    "thinker": {str(layer): {"mlp.up_proj": 1e-3 * (layer + 1), "self_attn.q_proj": 1e-4} for layer in range(3)},
    "talker": {"0": {"mlp.up_proj": 0.0}},
}
SVG = "{http://www.w3.org/2000/svg}"


def test_the_table_has_median_and_worst_of_each_linear() -> None:
    lines = table(ERRORS).splitlines()
    assert len(lines) == 4
    assert lines[1].split() == ["thinker", "mlp.up_proj", "2.00e-03", "3.00e-03", "2"]
    assert lines[3].split() == ["talker", "mlp.up_proj", "0.00e+00", "0.00e+00", "0"]


def test_the_drawing_has_a_line_a_linear_and_rises_with_the_error() -> None:
    root = ElementTree.fromstring(drawing(ERRORS))
    lines = [line.attrib["points"] for line in root.iter(f"{SVG}polyline")]
    assert len(lines) == 3
    heights = [float(y) for y in re.findall(r",([\d.]+)", lines[0])]
    assert heights == sorted(heights, reverse=True), "y grows downwards"
    assert len(set(heights)) == 3
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    assert {"mlp.up_proj", "self_attn.q_proj", "layer"} <= set(texts)


@pytest.mark.parametrize("errors", [{"thinker": {"0": {"<odd>": 1e-9}}}])
def test_names_are_escaped(errors: dict[str, dict[str, dict[str, float]]]) -> None:
    assert "<odd>" in [text.text for text in ElementTree.fromstring(drawing(errors)).iter(f"{SVG}text")]
