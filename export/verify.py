"""Every graph of a bundle beside the reference implementation: the table `nearfield verify` prints.

Each component runs once on the same seeded inputs (`trials.py`), in ONNX Runtime on the CPU at parity settings (INT4
products computed in float32) and in `transformers` at float32. Components quantized at export are compared with the
reference holding the weights their codes stand for, so that the figure is the graph's error; what the quantization
itself costs stands beside it. The weights of a checkpoint that is quantized already are those its codes stand for.

Needs the extra `[verify]`: torch, transformers, accelerate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch

from ..errors import ExportError
from ..quantize.grid import Grid
from ..quantize.rtn import round_to_nearest
from ..runtime.bundle import Bundle
from ..runtime.manifest import Component, ComponentName, Manifest
from .checkpoint import Checkpoint
from .graph import Array
from .trials import Trials, WeightReader

FP32_LIMIT, FP16_LIMIT = 1e-4, 5e-3
INT8_CACHE_LIMIT = 5e-2
"""Random weights, whose attention is sharp, lose most by such a cache: 0.03; trained ones a tenth of that."""
_SCATTER = 1.5  # two float16 computations that round in different orders differ by about this much in their error


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    component: ComponentName
    output: str
    error: float
    """`‖out − reference‖ / ‖reference‖`, the reference holding the same weights."""
    limit: float
    reference_error: float | None
    """What the reference itself loses by computing in float16; None for a float32 graph."""
    quantization_error: float | None
    """What quantizing the weights costs: the reference with INT4 weights against itself; None without."""

    @property
    def passed(self) -> bool:
        """Whether the graph is within its limit or, in float16, about as exact as the reference is in float16."""
        return self.error <= max(self.limit, _SCATTER * (self.reference_error or 0.0))  # false for NaN


def verify(bundle_path: Path, checkpoint_path: Path) -> Iterator[Row]:
    """Compare every component of the bundle with the checkpoint, yielding a row an output.

    Raises `BundleError`, `CheckpointError`, or `ExportError` when the two are of different shapes.
    """
    bundle, checkpoint = Bundle.open(bundle_path), Checkpoint.open(checkpoint_path)
    trials = Trials(bundle, checkpoint_path)
    for name, component in bundle.manifest.components.items():
        trial = trials.of(name)
        session = _open(bundle.graph_path(name), component)
        found = dict(zip((o.name for o in session.get_outputs()), session.run(None, trial.inputs), strict=True))
        del session  # before the reference takes its turn in memory
        read = _reader(checkpoint, component)
        same = trial.reference(read, torch.float32)
        halved = trial.reference(read, torch.float16) if component.dtype == "float16" else None
        plain = trial.reference(_reader(checkpoint), torch.float32) if _rounded(component) else None
        for output, expected in same.items():
            yield Row(
                component=name,
                output=output,
                error=_relative_error(found[output], expected),
                limit=_limit(bundle.manifest, name),
                reference_error=_relative_error(halved[output], expected) if halved is not None else None,
                quantization_error=_relative_error(expected, plain[output]) if plain is not None else None,
            )


def _limit(manifest: Manifest, name: ComponentName) -> float:
    """The largest error that is none, by the least exact type a component computes or keeps its cache in."""
    component = manifest.components[name]
    caches = {"thinker": manifest.thinker.kv_cache, "talker": manifest.talker.kv_cache}
    kept = caches[name].stored_as(component) if name in caches else component.dtype
    if kept == "int8":
        return INT8_CACHE_LIMIT
    return FP32_LIMIT if (component.dtype, kept) == ("float32", "float32") else FP16_LIMIT


def _relative_error(out: Array, expected: Array) -> float:
    if out.shape != expected.shape:
        raise ExportError(f"graph gives shape {out.shape}, the reference {expected.shape}; not of the same checkpoint")
    difference = np.linalg.norm(out.astype(np.float64) - expected)
    return float(difference / np.linalg.norm(expected.astype(np.float64)))


def _open(path: Path, component: Component) -> ort.InferenceSession:
    """Open a graph with INT4 products in float32, whatever accuracy level it ships with."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    model = onnx.load(path, load_external_data=False)
    if component.quantization is not None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _reader(checkpoint: Checkpoint, component: Component | None = None) -> WeightReader:
    """Read weights as float32; with a `component` quantized at export, its Linear layers through their INT4 codes."""
    quantization = component.quantization if component is not None and _rounded(component) else None

    def read(name: str) -> Array:
        weight = checkpoint.read(name).astype(np.float32)
        # Every Linear layer of both decoders is called something_proj, and nothing else is.
        if component is None or quantization is None or not name.endswith("proj.weight"):
            return weight
        grid = Grid(quantization.bits, quantization.group_size, quantization.symmetric, component.dtype)
        return round_to_nearest(weight, grid).dequantize()

    return read


def _rounded(component: Component) -> bool:
    """Whether export quantized this component, from weights the checkpoint has in full."""
    return component.quantization is not None and component.quantization.source == "export"
