"""A part, quantized layer by layer: each on what the quantized layers before it put out.

Inputs: what the part's layers are given for the calibration data, a checkpoint, a working folder → outputs: a
safetensors file a layer, and the hidden states after the last. What is finished is on disk: after an interruption the
same call goes on with the first layer that is not, and ends with the same files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from ..export.checkpoint import Checkpoint
from ..quantize.formats import FileFormat, pack
from ..quantize.grid import Grid
from ..runtime.files import write_bytes_atomically
from .components import Component
from .inputs import Float32, Progress
from .kept import Array, kept, read_states, write_states
from .layer import Method, QuantizedLayer, Seen, quantize_layer
from .layers import Given, Layer, LayerGraph
from .policy import Part
from .quantized_weights import QuantizedWeights
from .safetensors_writer import Tensor, rounded, write_safetensors


@dataclass(frozen=True)
class Stack:
    """What is to be done with a part."""

    component: Component
    method: Method
    grid: Grid
    form: FileFormat

    @property
    def part(self) -> Part:
        """Its name."""
        return self.component.part

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return self.component.layers

    def layer_file(self, layer: int) -> str:
        """Name of the file of a quantized layer."""
        return f"{self.part}-layer-{layer:02}.safetensors"

    def states_file(self, layer: int) -> str:
        """Name of the file of the hidden states before a layer."""
        return f"{self.part}-states-{layer:02}.f32"


@dataclass(frozen=True)
class Piece:
    """A `Given` whose hidden states are on disk."""

    shape: tuple[int, ...]
    others: Mapping[str, Array]
    meant: npt.NDArray[np.bool_] | None

    @property
    def rows(self) -> int:
        """Rows that are no padding."""
        return math.prod(self.shape[:-1]) if self.meant is None else int(self.meant.sum())

    def with_states(self, hidden: Float32) -> Given:
        """As a layer is given it."""
        return Given(hidden, self.others, self.meant)


def quantize_stack(
    stack: Stack, checkpoint: Checkpoint, given: Callable[[], Iterable[Given]], folder: Path, threads: int | None,
    progress: Progress,
) -> Iterator[Float32]:  # fmt: skip
    """Quantize every layer; returns the hidden states after the last, piece by piece.

    `given` makes what the first layer is given. Raises `QuantizationError` naming layer and Linear.
    """
    pieces = _laid_out(stack, given, folder)
    shapes = [piece.shape for piece in pieces]
    states = [folder / stack.states_file(layer) for layer in range(stack.layers + 1)]
    done = max(layer for layer, path in enumerate(states) if path.exists())
    for layer in range(done, stack.layers):

        def now(first: float = layer, before: Path = states[layer]) -> Iterator[Given]:
            """Every piece before this layer; going through all of them is about half of its work."""
            for done, (piece, hidden) in enumerate(zip(pieces, read_states(before, shapes), strict=True)):
                progress(f"{stack.part} layer", first + done / len(pieces) / 2, stack.layers)
                yield piece.with_states(hidden)

        graph = stack.component.graph(layer)
        _quantize_layer(stack, layer, graph, checkpoint, sum(piece.rows for piece in pieces), now, folder, threads)
        weights = QuantizedWeights(checkpoint, {folder / stack.layer_file(layer): stack.form})
        quantized = Layer(graph, weights, folder, threads)
        write_states(states[layer + 1], (quantized.run(it)[0] for it in now(layer + 1 / 2)))
        states[layer].unlink()
    return read_states(states[-1], shapes)


def _laid_out(stack: Stack, given: Callable[[], Iterable[Given]], folder: Path) -> list[Piece]:
    """What the layers are given, its hidden states in the file of those before layer 0."""

    def make() -> list[dict[str, Array]]:
        records: list[dict[str, Array]] = []

        def hidden_states() -> Iterator[Float32]:
            for it in given():
                others = {f"others.{name}": array for name, array in it.others.items()}
                meant = {} if it.meant is None else {"meant": it.meant}
                records.append({"shape": np.array(it.hidden.shape), **others, **meant})
                yield it.hidden

        write_states(folder / stack.states_file(0), hidden_states())
        return records

    return [
        Piece(
            tuple(record["shape"].tolist()),
            {name.removeprefix("others."): array for name, array in record.items() if name.startswith("others.")},
            record.get("meant"),
        )
        for record in kept(folder / f"{stack.part}-given.npz", make)
    ]


def _quantize_layer(
    stack: Stack, layer: int, graph: LayerGraph, checkpoint: Checkpoint, rows: int,
    given: Callable[[], Iterable[Given]], folder: Path, threads: int | None,
) -> None:  # fmt: skip
    """Quantize one layer on `rows` rows of data, and write it."""
    prefix = stack.component.prefix(layer)
    try:
        seen = _seen(stack.method, Layer(graph, checkpoint, folder, threads), rows, given)
        names = sorted(name.removeprefix(prefix) for name in checkpoint.names if name.startswith(prefix))
        result = quantize_layer(
            {name: checkpoint.read(prefix + name).astype(np.float32, copy=False) for name in names},
            [group.names for group in graph.groups],
            seen,
            stack.component.folds,
            stack.method,
            stack.grid,
            lambda name, values: rounded(values, checkpoint.stored_dtype(prefix + name)),
        )
    except QuantizationError as error:
        raise QuantizationError(f"{prefix.removesuffix('.')}: {error}") from error
    _write_layer(stack, layer, checkpoint, result, folder)


def _seen(method: Method, running: Layer, rows: int, given: Callable[[], Iterable[Given]]) -> dict[str, Seen]:
    """What each group of Linears is given, by its first."""
    seen: dict[str, Seen] = {}
    for it in given():
        _, inputs = running.run(it)
        for group, its in inputs.items():
            first = group.names[0]
            if first not in seen:
                seen[first] = Seen(its.shape[1], rows, moments=method in ("gptq", "awq-gptq"))
            seen[first].add(its)
    return seen


def _write_layer(stack: Stack, layer: int, checkpoint: Checkpoint, result: QuantizedLayer, folder: Path) -> None:
    prefix = stack.component.prefix(layer)
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


def errors_of(stack: Stack, folder: Path) -> dict[str, Mapping[str, float]]:
    """Errors of every Linear, by layer, as `quantize_stack` left them."""
    return {
        str(layer): json.loads((folder / f"{stack.part}-layer-{layer:02}.json").read_text(encoding="utf-8"))
        for layer in range(stack.layers)
    }
