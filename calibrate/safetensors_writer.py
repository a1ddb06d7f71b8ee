"""Writing a `.safetensors` file tensor by tensor, whole or not at all.

Inputs: tensors by name, each a dtype of the format, a shape and its bytes in pieces → output: the file. The library's
own writer wants all tensors in memory, and NumPy has no bfloat16.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CODES = {"float32": "F32", "float16": "F16", "int32": "I32"}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written."""

    dtype: str
    """The format's code."""
    shape: tuple[int, ...]
    content: Iterable[bytes | memoryview]

    @classmethod
    def of(cls, array: npt.NDArray[Any], dtype: str | None = None) -> Tensor:
        """A tensor of an array's values, in its own type or, for float32, in one of fewer bits."""
        code = dtype or _CODES[array.dtype.name]
        if code == "BF16":
            array = to_bfloat16(array)
        elif code == "F16":
            array = array.astype("<f2")
        return cls(code, array.shape, [np.ascontiguousarray(array).reshape(-1).view(np.uint8).data])


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Write `tensors`, in the order given, under another name first; returns the bytes of all tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + _ITEM_BYTES[tensor.dtype] * math.prod(tensor.shape)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for tensor in tensors.values():
            for piece in tensor.content:
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return end


def rounded(array: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """The nearest values that a type of the format holds, as float32."""
    if dtype == "BF16":
        wide = to_bfloat16(array).astype(np.uint32) << 16
        return wide.view(np.float32)
    return array.astype(np.float16).astype(np.float32) if dtype == "F16" else array


def to_bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 values, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return upper.astype(np.uint16)
