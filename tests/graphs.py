"""Running an exported graph in a test: bound from a real checkpoint, written, opened on the CPU at parity settings."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.graph import ComponentGraph

Array = npt.NDArray[Any]


class Graph:
    """A component's graph on the CPU provider, one thread, fp32 accumulation of INT4 products."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.output_names = [output.name for output in self.session.get_outputs()]

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run once; inputs and outputs by name."""
        return dict(zip(self.output_names, self.session.run(None, inputs), strict=True))


def open_component(component: ComponentGraph, checkpoint: Path, directory: Path) -> Graph:
    """Bind `component` from the checkpoint, write it into `directory` and open it."""
    write_component(component, Reader(Checkpoint.open(checkpoint)), directory)
    return Graph(directory / f"{component.name}.onnx")


class CachedGraph:
    """A decoder's graph together with its cache, stepped the way the runtime does it but with plain arrays."""

    def __init__(self, graph: Graph, *, dialect: str, layers: int, kv_heads: int, head_dim: int, context: int) -> None:
        self.graph, self.dialect, self.length = graph, dialect, 0
        dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}[graph.session.get_inputs()[0].type]
        positions = context if dialect == "ort" else 0
        self.past: dict[str, Array] = {
            f"{layer}.{kind}": np.zeros((1, kv_heads, positions, head_dim), dtype)
            for layer in range(layers)
            for kind in ("key", "value")
        }
        self.dtype = dtype

    def feed(self, embeds: Array, position_ids: Array) -> dict[str, Array]:
        """Run one chunk `(1, S, D)` with its ids `(3, S)` and keep the cache."""
        self.length += embeds.shape[1]
        inputs: dict[str, Array] = {"inputs_embeds": embeds.astype(self.dtype), "position_ids": position_ids}
        inputs |= {f"past_key_values.{name}": array for name, array in self.past.items()}
        if self.dialect == "ort":
            inputs["seqlens_k"] = np.array([self.length - 1], np.int32)
            inputs["total_sequence_length"] = np.array(self.length, np.int32)
        outputs = self.graph.run(inputs)
        self.past = {name: outputs[f"present.{name}"] for name in self.past}
        return outputs
