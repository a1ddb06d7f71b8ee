"""A `.safetensors` file read tensor by tensor: 8 bytes of header length, a JSON header, then the tensors end to end.

Inputs: a path → outputs: float32 or float16 arrays, and int32 words of packed codes. The `safetensors` library hands
NumPy no bfloat16, which is what the published checkpoints hold; this reader widens it to float32. Nothing stays mapped
or open between reads, so memory holds the tensor asked for and no more, and a file that shrinks meanwhile is an error
and not a crash.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

Array = npt.NDArray[np.floating[Any]]

# As stored; bfloat16 is the upper half of a float32.
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_BYTES = {code: dtype.itemsize for code, dtype in _STORED.items()} | {
    "F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LFS_POINTER = b"version "
_PIECE_BYTES = 1 << 24


class _Entry(msgspec.Struct, frozen=True):
    """A tensor as the header describes it; offsets count from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in its file."""

    dtype: str
    """The format's code: `F32`, `F16`, `BF16`, …"""
    shape: tuple[int, ...]
    offset_bytes: int
    """From the start of the file."""


class SafetensorsFile:
    """One open-and-shut view of a file: the header is read here, data on each `read`, and no handle is kept."""

    def __init__(self, path: Path) -> None:
        """Read and check the header.

        Raises `CheckpointError` when the file is missing, truncated, or its header does not fit it.
        """
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; download the checkpoint again")
        self.tensors = self._read_header()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        """Return rows `start … stop` of a tensor's first axis (all by default) as a fresh float32 or float16 array.

        Raises `CheckpointError` when the tensor is not of a float type or the file has shrunk since it was opened.
        """
        tensor = self.tensors[name]
        stored = _STORED.get(tensor.dtype)
        if stored is None:
            raise CheckpointError(
                f"tensor {name} in {self.path} has dtype {tensor.dtype}; expected F32, F16 or BF16: "
                "use the full-precision checkpoint"
            )
        raw = self._read(name, stored, start, stop)
        return _widen(raw) if tensor.dtype == "BF16" else raw

    def read_int32(self, name: str) -> npt.NDArray[np.int32]:
        """Return a tensor of packed codes or indices; raises `CheckpointError` when it is of another type."""
        tensor = self.tensors[name]
        if tensor.dtype != "I32":
            raise CheckpointError(
                f"tensor {name} in {self.path} has dtype {tensor.dtype}; expected I32, as quantized layers are stored"
            )
        return self._read(name, np.dtype("<i4"))

    def raw(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor in pieces; raises `CheckpointError` when the file has shrunk."""
        tensor = self.tensors[name]
        left = _BYTES[tensor.dtype] * math.prod(tensor.shape)
        with self.path.open("rb") as file:
            file.seek(tensor.offset_bytes)
            while left:
                piece = file.read(min(left, _PIECE_BYTES))
                if not piece:
                    self._damaged(f"ends inside tensor {name}")
                left -= len(piece)
                yield piece

    def _read(self, name: str, stored: np.dtype[Any], start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
        tensor = self.tensors[name]
        shape, first = tensor.shape, 0
        if shape:
            first, last, _ = slice(start, stop).indices(shape[0])
            shape = (max(last - first, 0), *shape[1:])
        row_items = math.prod(tensor.shape[1:])
        offset = tensor.offset_bytes + first * row_items * stored.itemsize
        raw = np.fromfile(self.path, stored, count=math.prod(shape), offset=offset)
        if raw.size != math.prod(shape):
            self._damaged(f"ends inside tensor {name}")
        return raw.reshape(shape)

    def _read_header(self) -> dict[str, StoredTensor]:
        size_bytes = self.path.stat().st_size
        with self.path.open("rb") as file:
            prefix = file.read(8)
            if prefix == _LFS_POINTER:
                raise CheckpointError(
                    f"{self.path} is a Git LFS pointer, not the weights it points to; "
                    "run `git lfs pull` there, or download the checkpoint again"
                )
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes > min(size_bytes - 8, _MAX_HEADER_BYTES):
                self._damaged(f"its header says {header_bytes} bytes, the file has {size_bytes}")
            entries = self._parse(file.read(header_bytes))
        self._check_layout(entries, data_bytes=size_bytes - 8 - header_bytes)
        return {
            name: StoredTensor(entry.dtype, entry.shape, 8 + header_bytes + entry.data_offsets[0])
            for name, entry in entries.items()
        }

    def _parse(self, header: bytes) -> dict[str, _Entry]:
        try:
            values = json.loads(header)
            if isinstance(values, dict):
                values.pop("__metadata__", None)
            return msgspec.convert(values, dict[str, _Entry])
        except (ValueError, RecursionError, msgspec.ValidationError) as error:
            self._damaged(f"its header cannot be read ({error})")

    def _check_layout(self, entries: dict[str, _Entry], data_bytes: int) -> None:
        """Tensors fill the data end to end, without gaps or overlaps: any lost, added or shifted byte shows here."""
        end = 0
        for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
            start, stop = entry.data_offsets
            if start != end or stop < start:
                self._damaged(
                    f"tensor {name} lies at bytes {start} to {stop} of the data; expected it to start at {end}"
                )
            item_bytes = _BYTES.get(entry.dtype)
            if min(entry.shape, default=0) < 0 or (
                item_bytes is not None and stop - start != item_bytes * math.prod(entry.shape)
            ):
                self._damaged(f"tensor {name} of shape {entry.shape} and dtype {entry.dtype} has {stop - start} bytes")
            end = stop
        if end != data_bytes:
            self._damaged(f"its tensors end at byte {end} of the data, the file at {data_bytes}")

    def _damaged(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is damaged or incomplete: {what}; download the file again")


@dataclass(frozen=True)
class Place:
    """Where a tensor is read from: its file, and its name there."""

    file: SafetensorsFile
    name: str


def _widen(raw: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits → float32: exact, as the missing half of the mantissa is zero."""
    bits = raw.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
