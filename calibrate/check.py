"""What is looked at before hours of work: whether a checkpoint can be quantized as asked.

Inputs: a checkpoint, the parts of it that are to be quantized → nothing, or an error that names the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import CheckpointError, ExportError, QuantizationError
from ..export.bind import Reader
from ..export.checkpoint import Checkpoint
from ..export.graph import Array, bind
from ..quantize.packing import QuantizedWeight, block_size
from .components import Component

_ROWS_AT_ONCE = 4096
_FLOATS = ("F32", "F16", "BF16")
_ELSEWHERE = "attn_norm."
"""Of the DiT's layers: modulation, which is no part of their graphs."""


def check_layers(checkpoint: Checkpoint, component: Component, group_size: int) -> None:
    """Check names and shapes of all layers of a part, and that graphs have a place for groups of this size.

    Raises `ExportError` for a tensor that is missing, of another shape or of no use, `QuantizationError` for the size.
    """
    left = {name for name in checkpoint.names if name.startswith(f"{component.root}{component.path}")}
    for layer in range(component.layers):
        graph, prefix = component.graph(layer), component.prefix(layer)
        reader = Reader(_Shapes(checkpoint))
        for _ in bind(graph.component.root, prefix, reader):
            pass
        left -= {name for name in left if name.startswith(f"{prefix}{_ELSEWHERE}")} | reader.taken
        for name in (name for group in graph.groups for name in group.names):
            try:
                block_size(group_size, checkpoint.shape(f"{prefix}{name}.weight")[1])
            except QuantizationError as error:
                raise QuantizationError(f"{prefix}{name}: {error}") from error
    if left:
        raise ExportError(
            f"{checkpoint.path} holds {min(left)}, which none of the {component.layers} layers that its config.json "
            "gives the part has a place for; weights and configuration are of different checkpoints"
        )


def check_finite(checkpoint: Checkpoint) -> None:
    """Read every tensor once; raises `CheckpointError` naming the first that is not finite."""
    for name in sorted(checkpoint.stored_names):
        if checkpoint.stored_dtype(name) not in _FLOATS or not math.prod(checkpoint.shape(name)):
            continue
        whole = not checkpoint.shape(name)
        blocks = [(0, checkpoint.read(name))] if whole else checkpoint.rows(name, _ROWS_AT_ONCE)
        broken = sum(int(block.size - np.isfinite(block).sum()) for _, block in blocks)
        if broken:
            raise CheckpointError(
                f"tensor {name} of {checkpoint.path} holds {broken} values that are NaN or infinite; expected numbers: "
                "the checkpoint is damaged, download it again"
            )


@dataclass(frozen=True)
class _Shapes:
    """`export.bind.Weights` of nothing but names and shapes."""

    checkpoint: Checkpoint

    @property
    def names(self) -> frozenset[str]:
        return self.checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.checkpoint.shape(name)

    def read(self, name: str) -> Array:
        return np.broadcast_to(np.float32(0), self.shape(name))

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        raise NotImplementedError

    def quantized(self, name: str) -> QuantizedWeight:
        raise NotImplementedError
