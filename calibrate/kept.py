"""What a run leaves in its working folder for the next to go on with: records of arrays, and hidden states.

A file is written under another name and renamed when it is whole, so that one that is there can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


def kept(path: Path, make: Callable[[], Iterable[Mapping[str, Array]]]) -> list[dict[str, Array]]:
    """Records of named arrays that an earlier run left in `path`, or made now and left there."""
    if not path.exists():
        _save(path, make())
    records: dict[str, dict[str, Array]] = {}
    with np.load(path) as file:
        for key in file.files:
            index, _, name = key.partition(".")
            records.setdefault(index, {})[name] = file[key]
    return [records[index] for index in sorted(records)]


def write_states(path: Path, pieces: Iterable[Float32]) -> None:
    """Write pieces one after another, as float32 and nothing else; they may be more than memory holds."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, "<f4").data)
    partial.replace(path)


def read_states(path: Path, shapes: Sequence[tuple[int, ...]]) -> Iterator[Float32]:
    """Yield pieces of these shapes, one in memory at a time."""
    start = 0
    for shape in shapes:
        size = math.prod(shape)
        yield np.fromfile(path, "<f4", size, offset=start).astype(np.float32, copy=False).reshape(shape)
        start += 4 * size


def _save(path: Path, records: Iterable[Mapping[str, Array]]) -> None:
    arrays = {f"{index:06}.{name}": array for index, it in enumerate(records) for name, array in it.items()}
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes a name for an option of its own
    partial.replace(path)
