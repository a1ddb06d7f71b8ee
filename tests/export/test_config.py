"""Lookups in `config.json`: every spelling, defaults, and errors that name the place."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nearfield.errors import CheckpointError
from nearfield.export.config import Section, read_json

SECTION = Section(
    {
        "dim": 3,
        "rate": 0.5,
        "whole_rate": 2,
        "tied": False,
        "name": "silu",
        "sizes": [1, 2],
        "part": {"depth": 4},
        "nothing": None,
    },
    "config.json.dit_config",
)


def test_each_kind_of_value_is_read() -> None:
    assert SECTION.integer("dim") == 3
    assert SECTION.number("rate") == 0.5
    assert type(SECTION.number("whole_rate")) is float
    assert SECTION.flag("tied") is False
    assert SECTION.text("name") == "silu"
    assert SECTION.integers("sizes") == (1, 2)
    assert SECTION.section("part").integer("depth") == 4
    assert SECTION.section("part").path == "config.json.dit_config.part"


def test_the_first_spelling_that_is_there_counts() -> None:
    both = Section({"hidden_size": 1, "dim": 2}, "config.json")
    assert both.integer("hidden_size", "dim") == 1
    assert both.integer("dim", "hidden_size") == 2
    assert SECTION.integer("hidden_size", "dim") == 3
    assert SECTION.integer("nothing", "dim") == 3


def test_null_is_absent() -> None:
    assert not SECTION.has("nothing")
    assert SECTION.has("nothing", "dim")
    assert SECTION.integer("nothing", default=7) == 7


def test_defaults_are_for_what_is_absent() -> None:
    assert SECTION.integer("depth", default=0) == 0
    assert SECTION.number("depth", default=0.0) == 0.0
    assert SECTION.flag("depth", default=False) is False
    assert SECTION.flag("tied", default=True) is False
    assert SECTION.text("depth", default="") == ""
    assert SECTION.integers("depth", default=()) == ()
    assert SECTION.integer("dim", default=9) == 3


@pytest.mark.parametrize("lookup", [Section.integer, Section.number, Section.flag, Section.text, Section.integers])
def test_what_is_missing_is_named_in_every_spelling(lookup: Callable[..., object]) -> None:
    message = "config.json.dit_config has no 'num_hidden_layers' or 'depth'; expected the config.json of a Qwen2.5-Omni"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        lookup(SECTION, "num_hidden_layers", "depth")


def test_a_missing_section_is_named() -> None:
    with pytest.raises(CheckpointError, match=re.escape("config.json.dit_config has no 'text_config'")):
        SECTION.section("text_config")


@pytest.mark.parametrize(
    ("lookup", "value", "expected"),
    [
        (Section.integer, True, "a whole number"),
        (Section.integer, 1.0, "a whole number"),
        (Section.integer, "1", "a whole number"),
        (Section.number, True, "a number"),
        (Section.number, "0.5", "a number"),
        (Section.flag, 1, "true or false"),
        (Section.text, 1, "a string"),
        (Section.integers, 1, "a list of whole numbers"),
        (Section.integers, [1, True], "a list of whole numbers"),
        (Section.integers, [1, 0.5], "a list of whole numbers"),
        (Section.section, [1], "an object"),
    ],
)
@pytest.mark.parametrize("default", [{}, {"default": 1}])
def test_a_value_of_another_type_is_refused(
    lookup: Callable[..., object], value: object, expected: str, default: dict[str, Any]
) -> None:
    if lookup is Section.section:
        default = {}  # a section has none
    section = Section({"new": None, "old": value}, "config.json.part")
    with pytest.raises(CheckpointError, match=re.escape(f"config.json.part.old is {value!r}; expected {expected}")):
        lookup(section, "new", "old", **default)


def test_a_json_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"name": "Größe"}', encoding="utf-8")
    assert read_json(path) == {"name": "Größe"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": }', b"\xff\xff"])
def test_damaged_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(path))} is not valid JSON \(.*\); download the file"):
        read_json(path)


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds a list, not a JSON object; download the file again"):
        read_json(path)
