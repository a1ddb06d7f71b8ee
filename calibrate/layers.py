"""One layer of a decoder at a time: the deployed graph of that layer, with what its Linears are given as outputs.

Inputs: hidden states `float32 (S, width)` and TMRoPE ids `(3, S)` of a sequence → outputs: the layer's hidden states,
and the inputs `(S, K)` of each group of Linears that share one. So a model is calibrated in the memory of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..export.attention import POSITION_IDS, CacheShape, mrope_tables, split_cache_inputs
from ..export.bind import Reader, Weights, write_component
from ..export.decoder import DecoderConfig, DecoderLayer
from ..export.graph import ComponentGraph, Op, Port, Style, Value, build
from ..runtime.manifest import ComponentName
from ..runtime.session import Session, SessionSettings, open_session

Float32 = npt.NDArray[np.float32]

STYLE = Style("ort", "float32")
"""Float32, so that a layer's error is that of its codes alone."""


@dataclass(frozen=True)
class Group:
    """Linears of a layer that are given the same input, `(…, K)`."""

    names: tuple[str, ...]
    """Paths within the layer, like `self_attn.q_proj`."""
    output: str
    """The graph's output that is their input."""


@dataclass(frozen=True)
class LayerGraph:
    """The graph of one decoder layer, and its groups of Linears in the order they are computed."""

    component: ComponentGraph
    groups: tuple[Group, ...]
    cache: CacheShape


def layer_graph(config: DecoderConfig, component: ComponentName, prefix: str) -> LayerGraph:
    """Declare the layer whose weights lie under `prefix`, as `thinker.model.layers.3.`."""
    cache = CacheShape(1, config.kv_heads, config.head_dim)
    root = DecoderLayer(config, STYLE)

    def forward(op: Op, hidden: Value, position_ids: Value, *past: Value) -> Sequence[Value]:
        cos, sin = mrope_tables(op, STYLE, position_ids, config.rope_theta, list(config.mrope_section))
        (kept,) = split_cache_inputs(STYLE, 1, past)
        results: tuple[Value, ...] = root(op, hidden, cos, sin, kept)
        return results

    shape = (1, "positions", config.hidden_size)
    inputs = [Port("hidden", STYLE.dtype, shape), POSITION_IDS, *cache.input_ports(STYLE)]
    outputs = [Port("result", STYLE.dtype, shape), *cache.output_ports(STYLE)]
    model = build(root, STYLE, component, inputs, outputs, forward)
    return LayerGraph(ComponentGraph(component, model, root, prefix), tuple(_tap(model)), cache)


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
        value.dtype, value.shape = STYLE.dtype, ir.Shape((1, "positions", width))
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
        self._no_past = np.zeros((1, graph.cache.kv_heads, 0, graph.cache.head_dim), np.float32)

    def run(self, hidden: Float32, position_ids: npt.NDArray[np.int64]) -> tuple[Float32, dict[Group, Float32]]:
        """The layer's result `(S, width)`, and each group's inputs `(S, K)`."""
        count = len(hidden)
        outputs = self._session.run(
            {
                "hidden": hidden[None],
                "position_ids": position_ids,
                "past_key_values.0.key": self._no_past,
                "past_key_values.0.value": self._no_past,
                "seqlens_k": np.array([count - 1], np.int32),
                "total_sequence_length": np.array(count, np.int32),
            }
        )
        return outputs["result"][0], {group: outputs[group.output][0] for group in self._groups}
