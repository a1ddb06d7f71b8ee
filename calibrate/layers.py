"""One layer of a component at a time: the deployed graph of that layer, with what its Linears are given as outputs.

Inputs: hidden states `float32 (…, width)` and what else the layer takes (`Given`) → outputs: the layer's hidden states,
and the inputs `(rows, K)` of each group of Linears that share one. So a model is calibrated in the memory of a layer.
Which graphs there are: `components.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..export.bind import Reader, Weights, write_component
from ..export.graph import ComponentGraph, Module, Port, Style, Value, build
from ..runtime.manifest import ComponentName
from ..runtime.session import Session, SessionSettings, open_session

Float32 = npt.NDArray[np.float32]

STYLE = Style("ort", "float32")
"""Float32, so that a layer's error is that of its codes alone."""


@dataclass(frozen=True)
class Given:
    """A piece of calibration data as the layers of a component read it."""

    hidden: Float32
    """(…, width): before the first layer."""
    others: Mapping[str, npt.NDArray[Any]]
    """What else every layer takes, by the name of the graph's input."""
    meant: npt.NDArray[np.bool_] | None = None
    """(rows): rows of `hidden` that are no padding, all its axes but the last taken as one. None: all rows."""


@dataclass(frozen=True)
class Group:
    """Linears of a layer that are given the same input, `(…, K)`."""

    names: tuple[str, ...]
    """Paths within the layer, like `self_attn.q_proj`."""
    output: str
    """The graph's output that is their input."""


@dataclass(frozen=True)
class LayerGraph:
    """The graph of one layer, and its groups of Linears in the order they are computed."""

    component: ComponentGraph
    groups: tuple[Group, ...]


def layer_graph(
    name: ComponentName, root: Module, prefix: str, inputs: Sequence[Port], forward: Callable[..., Value]
) -> LayerGraph:
    """Declare the layer `root`, whose weights lie under `prefix`, as `thinker.model.layers.3.`.

    `forward(op, *inputs)` returns its hidden states; the first of `inputs` are those before it.
    """
    result = Port("result", STYLE.dtype, inputs[0].shape)
    model = build(root, STYLE, name, inputs, [result], lambda *values: [forward(*values)])
    return LayerGraph(ComponentGraph(name, model, root, prefix), tuple(_tap(model)))


def _tap(model: ir.Model) -> Iterator[Group]:
    """Make the input of every product with a weight an output of the graph."""
    fed: dict[str, list[str]] = {}
    values: dict[str, ir.Value] = {}
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is None or weight.name is None or not weight.is_initializer():
            continue
        value = node.inputs[0]
        assert value is not None and value.name is not None
        fed.setdefault(value.name, []).append(weight.name.removesuffix(".weight"))
        values[value.name] = value
        width = weight.shape[0] if weight.shape is not None else None
        value.dtype, value.shape = STYLE.dtype, ir.Shape((None, None, width))
    for index, (name, linears) in enumerate(fed.items()):
        output = f"input.{index}"
        values[name].name = output
        model.graph.outputs.append(values[name])
        yield Group(tuple(linears), output)


class Layer:
    """A layer with weights, ready to run."""

    def __init__(self, graph: LayerGraph, weights: Weights, folder: Path, threads: int | None = None) -> None:
        """`folder` takes the graph's files, which are replaced by the next layer's."""
        write_component(graph.component, Reader(weights), folder)
        path = folder / f"{graph.component.name}.onnx"
        self._session: Session = open_session(path, SessionSettings(threads=threads))
        self._groups = graph.groups

    def run(self, given: Given) -> tuple[Float32, dict[Group, Float32]]:
        """The layer's result `(…, width)`, and each group's inputs `(rows, K)` without padding."""
        outputs = self._session.run({"hidden": given.hidden, **given.others})
        inputs = {}
        for group in self._groups:
            rows = outputs[group.output].reshape(-1, outputs[group.output].shape[-1])
            inputs[group] = rows if given.meant is None else rows[given.meant]
        return outputs["result"], inputs
