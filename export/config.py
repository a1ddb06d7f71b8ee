"""`config.json`, read through typed lookups that accept both spellings of a key and name what is missing.

Published files were written by an older `transformers`; files saved by 5.x spell some keys differently. Every lookup
takes all the spellings there are, newest first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CheckpointError

T = TypeVar("T", int, float, bool, str)


class Section:
    """A JSON object of the configuration together with where it stands, for error messages."""

    def __init__(self, values: dict[str, Any], path: str) -> None:
        self.values, self.path = values, path

    def section(self, *names: str) -> Section:
        """Return the nested object under the first of `names` that is present."""
        name, value = self._find(names)
        if not isinstance(value, dict):
            raise self._wrong(name, "an object", value)
        return Section(value, f"{self.path}.{name}")

    def has(self, *names: str) -> bool:
        """Whether any of `names` is present and not null."""
        return any(self.values.get(name) is not None for name in names)

    def integer(self, *names: str, default: int | None = None) -> int:
        """Return a whole number."""
        return self._scalar(int, "a whole number", names, default)

    def number(self, *names: str, default: float | None = None) -> float:
        """Return a number."""
        if not self.has(*names) and default is not None:
            return default
        name, value = self._find(names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, "a number", value)
        return float(value)

    def flag(self, *names: str, default: bool | None = None) -> bool:
        """Return true or false."""
        return self._scalar(bool, "true or false", names, default)

    def text(self, *names: str, default: str | None = None) -> str:
        """Return a string."""
        return self._scalar(str, "a string", names, default)

    def integers(self, *names: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return a list of whole numbers."""
        if not self.has(*names) and default is not None:
            return default
        name, value = self._find(names)
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self._wrong(name, "a list of whole numbers", value)
        return tuple(value)

    def _scalar(self, kind: type[T], expected: str, names: tuple[str, ...], default: T | None) -> T:
        if not self.has(*names) and default is not None:
            return default
        name, value = self._find(names)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._wrong(name, expected, value)
        return value

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any]:
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        raise CheckpointError(
            f"{self.path} has no {' or '.join(repr(name) for name in names)}; expected the config.json of a "
            "Qwen2.5-Omni checkpoint: download it again, or check that it is one"
        )

    def _wrong(self, name: str, expected: str, value: object) -> CheckpointError:
        return CheckpointError(f"{self.path}.{name} is {value!r}; expected {expected}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; raises `CheckpointError` when it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise CheckpointError(f"{path} is not valid JSON ({error}); download the file again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not a JSON object; download the file again")
    return values
