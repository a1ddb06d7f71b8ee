"""A decoder, quantized layer by layer: each on what the quantized layers before it put out.

Inputs: the decoder's `Steps` for all samples, a checkpoint, a working folder → outputs: a safetensors file a layer, and
the last layer's hidden states. What is finished is on disk: after an interruption the same call goes on with the first
layer that is not, and ends with the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from ..export.checkpoint import Checkpoint
from ..export.decoder import DecoderConfig
from ..export.graph import Array
from ..quantize.formats import FileFormat, pack
from ..quantize.grid import Grid
from ..quantize.packing import QuantizedWeight
from ..runtime.files import write_bytes_atomically
from .inputs import Float32, Int64, Progress, Steps
from .layer import Method, QuantizedLayer, Seen, quantize_layer
from .layers import Layer, layer_graph
from .policy import Part
from .safetensors_writer import Tensor, rounded, write_safetensors


@dataclass(frozen=True)
class Stack:
    """What is to be done with a decoder."""

    part: Part
    config: DecoderConfig
    method: Method
    grid: Grid
    form: FileFormat

    def prefix(self, layer: int) -> str:
        """Where a layer's parameters lie in the checkpoint."""
        return f"{self.part}.model.layers.{layer}."

    def layer_file(self, layer: int) -> str:
        """Name of the file of a quantized layer."""
        return f"{self.part}-layer-{layer:02}.safetensors"


def quantize_stack(
    stack: Stack, checkpoint: Checkpoint, steps: Sequence[Steps], folder: Path, threads: int | None, progress: Progress
) -> list[Float32]:
    """Quantize every layer; returns each sample's hidden states `(S, width)` after the last, before the final norm.

    `steps` hold the decoder's hidden states before its first layer. Raises `QuantizationError` naming layer and Linear.
    """
    lengths = [len(it.embeddings) for it in steps]
    layers = stack.config.layers
    done = max((layer for layer in range(1, layers + 1) if _states(folder, stack, layer).exists()), default=0)
    if done == 0:
        _save(_states(folder, stack, 0), np.concatenate([it.embeddings for it in steps]))
    for layer in range(done, layers):
        progress(f"{stack.part} layer", layer, layers)
        hidden = np.load(_states(folder, stack, layer), mmap_mode="r")
        after = _quantize_layer(stack, layer, checkpoint, list(_each(hidden, steps)), folder, threads)
        _save(_states(folder, stack, layer + 1), np.concatenate(after))
        del hidden  # Windows does not remove a mapped file
        _states(folder, stack, layer).unlink()
    return np.split(np.load(_states(folder, stack, layers)), np.cumsum(lengths)[:-1])


def _quantize_layer(
    stack: Stack, layer: int, checkpoint: Checkpoint, sequences: Sequence[tuple[Float32, Int64]], folder: Path,
    threads: int | None,
) -> list[Float32]:  # fmt: skip
    """Quantize one layer and write it; returns what it puts out with its codes."""
    prefix = stack.prefix(layer)
    graph = layer_graph(stack.config, stack.part, prefix)
    running = Layer(graph, checkpoint, folder, threads)
    seen: dict[str, Seen] = {}
    tokens = sum(len(hidden) for hidden, _ in sequences)
    for hidden, position_ids in sequences:
        _, inputs = running.run(hidden, position_ids)
        for group, given in inputs.items():
            first = group.names[0]
            if first not in seen:
                seen[first] = Seen(given.shape[1], tokens, moments=stack.method in ("gptq", "awq-gptq"))
            seen[first].add(given)
    del running  # its weights, before others are read
    names = sorted(name.removeprefix(prefix) for name in checkpoint.names if name.startswith(prefix))
    parameters = {name: checkpoint.read(prefix + name).astype(np.float32, copy=False) for name in names}
    try:
        result = quantize_layer(
            parameters,
            [group.names for group in graph.groups],
            seen,
            stack.config,
            stack.method,
            stack.grid,
            lambda name, values: rounded(values, checkpoint.stored_dtype(prefix + name)),
        )
    except QuantizationError as error:
        raise QuantizationError(f"{prefix.removesuffix('.')}: {error}") from error
    del seen, parameters
    changed = Changed(checkpoint, prefix, result)
    quantized = Layer(graph, changed, folder, threads)
    after = [quantized.run(hidden, position_ids)[0] for hidden, position_ids in sequences]
    _write_layer(stack, layer, checkpoint, result, folder)
    return after


def _write_layer(stack: Stack, layer: int, checkpoint: Checkpoint, result: QuantizedLayer, folder: Path) -> None:
    prefix = stack.prefix(layer)
    tensors = {}
    for name, codes in result.codes.items():
        for suffix, array in pack(codes, stack.form).items():
            tensors[f"{prefix}{name}.{suffix}"] = Tensor.of(array)
    for name, values in result.changed.items():
        tensors[prefix + name] = Tensor.of(values, checkpoint.stored_dtype(prefix + name))
    write_bytes_atomically(
        folder / f"{stack.part}-layer-{layer:02}.json", json.dumps(result.errors, indent=1).encode("utf-8")
    )
    write_safetensors(folder / stack.layer_file(layer), tensors)


@dataclass(frozen=True)
class Changed:
    """A checkpoint in which one layer's parameters are those that its codes stand for (`bind.Weights`)."""

    checkpoint: Checkpoint
    prefix: str
    result: QuantizedLayer

    @property
    def names(self) -> frozenset[str]:
        """As the checkpoint's."""
        return self.checkpoint.names

    def shape(self, name: str) -> tuple[int, ...]:
        """As the checkpoint's."""
        return self.checkpoint.shape(name)

    def read(self, name: str) -> Array:
        """A tensor as it is now."""
        own = name.removeprefix(self.prefix)
        if (codes := self.result.codes.get(own.removesuffix(".weight"))) is not None:
            return codes.dequantize()
        return self.result.changed[own] if own in self.result.changed else self.checkpoint.read(name)

    def rows(self, name: str, rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """As the checkpoint's: no layer has a tensor that is read so."""
        return self.checkpoint.rows(name, rows_at_once)

    def quantized(self, name: str) -> QuantizedWeight:
        """As the checkpoint's."""
        return self.checkpoint.quantized(name)


def _each(hidden: npt.NDArray[Any], steps: Sequence[Steps]) -> Iterator[tuple[Float32, Int64]]:
    start = 0
    for it in steps:
        stop = start + len(it.embeddings)
        yield np.asarray(hidden[start:stop]), it.position_ids
        start = stop


def _states(folder: Path, stack: Stack, layer: int) -> Path:
    """Hidden states of all samples before a layer, one after another."""
    return folder / f"{stack.part}-states-{layer:02}.npy"


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


def errors_of(stack: Stack, folder: Path) -> dict[str, Mapping[str, float]]:
    """Errors of every Linear, by layer, as `quantize_stack` left them."""
    return {
        str(layer): json.loads((folder / f"{stack.part}-layer-{layer:02}.json").read_text(encoding="utf-8"))
        for layer in range(stack.config.layers)
    }
