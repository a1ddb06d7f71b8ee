"""Filling a graph from a checkpoint and writing it: `<name>.onnx` and `<name>.data`.

Binding is strict both ways: an initializer nobody filled and a checkpoint tensor nobody used are both errors. Tensors
go one at a time from the checkpoint through their module to an aligned place in the data file, so that peak memory is
that of the largest tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import onnx_ir as ir

from ..errors import ExportError
from ..quantize.packing import QuantizedWeight
from ..runtime.manifest import FileRecord
from .graph import Array, ComponentGraph, bind, shape_of

_PAGE_BYTES = 4096  # a tensor of a page or more begins on one, so that it can be memory-mapped alone
_SMALL_ALIGNMENT_BYTES = 64  # smaller ones only on a cache line: a vocoder has hundreds of them
_CHUNK_BYTES = 1 << 24

Progress = Callable[[str, int, int], None]
"""Called with the component at work, the weights taken from the checkpoint so far, and how many there are."""


class Weights(Protocol):
    """What of a checkpoint is needed here (`checkpoint.Checkpoint` has it)."""

    @property
    def names(self) -> frozenset[str]:
        """Canonical names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def read(self, name: str) -> Array:
        """A tensor as float32 or float16."""
        ...

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """A tensor in row blocks, each with the index of its first row."""
        ...

    def quantized(self, name: str) -> QuantizedWeight:
        """The codes of a weight that is stored quantized."""
        ...


@dataclass
class Reader:
    """A checkpoint as modules see it (`graph.TensorSource`): shapes are checked and what was taken is remembered."""

    weights: Weights
    progress: Progress | None = None
    component: str = ""
    """At work: what is taken is put to its account."""
    counts: Counter[str] = field(default_factory=Counter)
    """Weights taken by each component."""
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._total = sum(math.prod(self.weights.shape(name)) for name in self.weights.names)

    def read(self, name: str, shape: Sequence[int]) -> Array:
        """Return the tensor as float32 or float16; raises `ExportError` when it is missing or of another shape."""
        self._take(name, shape)
        return self.weights.read(name)

    def rows(self, name: str, shape: Sequence[int], rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """Yield the tensor in row blocks; errors as `read`."""
        self._take(name, shape)
        return self.weights.rows(name, rows_at_once)

    def quantized(self, name: str, shape: Sequence[int]) -> QuantizedWeight:
        """Return the codes of a weight of this shape; errors as `read`."""
        self._take(name, shape)
        return self.weights.quantized(name)

    def check_all_taken(self, unused: Collection[str]) -> None:
        """Raise `ExportError` if a tensor of the checkpoint was not taken and is not known to be `unused`."""
        left_over = sorted(self.weights.names - self.taken - set(unused))
        if left_over:
            shown = ", ".join(left_over[:5]) + (f" and {len(left_over) - 5} more" if len(left_over) > 5 else "")
            raise ExportError(
                f"the checkpoint holds tensors no graph has a place for: {shown}; "
                "it is of another architecture than its config.json says"
            )

    def _take(self, name: str, shape: Sequence[int]) -> None:
        if name not in self.weights.names:
            raise ExportError(f"the checkpoint has no tensor {name!r}; it is incomplete: download it again")
        found = self.weights.shape(name)
        if found != tuple(shape):
            raise ExportError(
                f"tensor {name!r} has shape {found}, its config.json says {tuple(shape)}; "
                "weights and configuration are of different checkpoints"
            )
        if name in self.taken:
            return
        self.taken.add(name)
        self.counts[self.component] += math.prod(found)
        if self.progress is not None:
            self.progress(self.component, self.counts.total(), self._total)


@dataclass(frozen=True)
class WrittenComponent:
    """Names of the files of a component, their records, and how many weights it took."""

    files: dict[str, FileRecord]
    graph: str
    data: str
    parameters: int


def write_component(component: ComponentGraph, reader: Reader, directory: Path) -> WrittenComponent:
    """Fill `component` from the checkpoint and write `<name>.onnx` and `<name>.data` into `directory`.

    Raises `ExportError` when a tensor is missing, of the wrong shape, or an initializer stays empty.
    """
    reader.component = component.name
    graph_name, data_name = f"{component.name}.onnx", f"{component.name}.data"
    with (directory / data_name).open("wb") as file:
        data = _DataFile(file, data_name)
        for parameter, array in bind(component.root, component.prefix, reader):
            parameter.const_value = data.append(parameter, array)
    empty = sorted(name for name, value in component.model.graph.initializers.items() if value.const_value is None)
    if empty:
        raise ExportError(
            f"{component.name}: no checkpoint tensor fills {', '.join(empty)}; this is a bug in Nearfield"
        )
    proto = ir.serde.serialize_model(component.model).SerializeToString(deterministic=True)
    (directory / graph_name).write_bytes(proto)
    record = FileRecord(size_bytes=len(proto), sha256=hashlib.sha256(proto).hexdigest())
    return WrittenComponent(
        files={graph_name: record, data_name: data.record()},
        graph=graph_name,
        data=data_name,
        parameters=reader.counts[component.name],
    )


class _DataFile:
    """The external data of one graph, appended tensor by tensor and hashed on the way."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._offset = 0
        self._hash = hashlib.sha256()

    def append(self, parameter: ir.Value, array: Array) -> ir.ExternalTensor:
        """Write `array` in the parameter's type and return the reference that goes into the graph."""
        dtype = parameter.dtype
        assert dtype is not None and parameter.name is not None
        if dtype in (ir.DataType.UINT4, ir.DataType.INT4):  # already packed two a byte
            content = np.ascontiguousarray(array)
        else:
            if array.shape != shape_of(parameter):
                raise ExportError(f"{parameter.name}: filled with shape {array.shape}, declared {shape_of(parameter)}")
            content = np.ascontiguousarray(array, dtype.numpy())
        alignment = _PAGE_BYTES if content.nbytes >= _PAGE_BYTES else _SMALL_ALIGNMENT_BYTES
        self._write(b"\0" * (-self._offset % alignment))
        offset = self._offset
        raw = memoryview(content.reshape(-1).view(np.uint8).data)
        for start in range(0, len(raw), _CHUNK_BYTES):
            self._write(raw[start : start + _CHUNK_BYTES])
        return ir.ExternalTensor(
            self._name, offset, len(raw), dtype, shape=ir.Shape(shape_of(parameter)), name=parameter.name
        )

    def record(self) -> FileRecord:
        """Size and hash of what was written."""
        return FileRecord(size_bytes=self._offset, sha256=self._hash.hexdigest())

    def _write(self, raw: bytes | memoryview) -> None:
        self._file.write(raw)
        self._hash.update(raw)
        self._offset += len(raw)
