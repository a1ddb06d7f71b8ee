"""A checkpoint in which some layers are already quantized: the weights that what was written of them stands for.

Inputs: a checkpoint, files of quantized layers → outputs: tensors by name (`export.bind.Weights`), dequantized. So the
next layer, and the Thinker behind an encoder, is calibrated on what will be read from those very files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from ..export.checkpoint import Checkpoint
from ..export.graph import Array
from ..export.safetensors_file import SafetensorsFile
from ..quantize.formats import FileFormat, unpack
from ..quantize.packing import QuantizedWeight


class QuantizedWeights:
    """`export.bind.Weights`, from the checkpoint where no file has the tensor."""

    def __init__(self, checkpoint: Checkpoint, files: Mapping[Path, FileFormat]) -> None:
        """`files` say how the layers in each of them are stored."""
        self._checkpoint = checkpoint
        self._places = {
            name: (file, form)
            for path, form in files.items()
            for file in (SafetensorsFile(path),)
            for name in file.tensors
        }

    @property
    def names(self) -> frozenset[str]:
        """As the checkpoint's."""
        return self._checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        """As the checkpoint's."""
        return self._checkpoint.shape(name)

    def read(self, name: str) -> Array:
        """A tensor as it is now."""
        if f"{name.removesuffix('.weight')}.qweight" in self._places:
            return self.quantized(name).dequantize()
        if name in self._places:
            file, _ = self._places[name]
            return file.read(name)
        return self._checkpoint.read(name)

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """As the checkpoint's: no layer has a tensor that is read so."""
        return self._checkpoint.rows(name, rows_at_once)

    def quantized(self, name: str) -> QuantizedWeight:
        """The codes of a weight that a file has."""
        layer = name.removesuffix(".weight")
        file, form = self._places[f"{layer}.qweight"]
        tensors: dict[str, Array] = {
            suffix: file.read_int32(f"{layer}.{suffix}")
            for suffix in ("qweight", "qzeros", "g_idx")
            if f"{layer}.{suffix}" in self._places
        }
        return unpack({**tensors, "scales": file.read(f"{layer}.scales")}, form)
