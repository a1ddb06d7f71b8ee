"""The one file that touches onnxscript: modules, parameters, the style a graph is built in, and building itself.

A model is declared the way `torch.nn` would: the constructor declares parameters and children under the checkpoint's
own names, `forward` emits operators. Nothing is traced. Filling is separate (`bind.py`): a module says which checkpoint
tensors it takes and yields arrays one at a time, so that no more than one tensor is ever in memory.

Two dialects come from the same modules; only leaf modules (`layers.py`, `attention.py`) look at `Style.dialect`:
`ort` uses ONNX Runtime's contrib operators on opset 20, `standard` only operators of ONNX opset 23. (ONNX Runtime's
CUDA provider matches versions exactly and is years behind in Sin, Cos, Pad and ConvTranspose: at 23 they would run on
the CPU, with a copy there and back each time.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxscript import OpBuilder, nn
from onnxscript._internal.builder import GraphBuilder

from ..quantize.packing import QuantizedWeight
from ..runtime.manifest import ComponentName, Dialect, FloatType

CONTRIB = "com.microsoft"

Op = OpBuilder
Value = ir.Value
ModuleList = nn.ModuleList
Array = npt.NDArray[Any]

_OPSETS: dict[Dialect, int] = {"ort": 20, "standard": 23}
_IR_VERSIONS: dict[Dialect, int] = {"ort": 9, "standard": 11}  # those that go with the opsets
_FLOAT_TYPES: dict[FloatType, ir.DataType] = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}

FLOAT32 = ir.DataType.FLOAT
FLOAT16 = ir.DataType.FLOAT16
INT64 = ir.DataType.INT64
INT32 = ir.DataType.INT32
UINT8 = ir.DataType.UINT8
INT8 = ir.DataType.INT8
UINT4 = ir.DataType.UINT4
INT4 = ir.DataType.INT4


@dataclass(frozen=True)
class WeightForm:
    """How the weight of one Linear layer is quantized."""

    method: str
    """As in `runtime.manifest.Quantization`."""
    bits: int
    group_size: int
    """−1: a group is a whole row."""
    symmetric: bool = False
    """Every zero point is the middle code: the graph stores none."""
    reordered: bool = False
    """The inputs of a group are not side by side (act-order): the layer puts them so first."""
    source: str | None = None
    """Who chose the codes that the checkpoint has; None: they are chosen at export."""


@dataclass(frozen=True)
class Style:
    """How a graph is built.

    `bits` is 4 where `linear()` shall give INT4 layers and None where it shall give plain ones; `group_size` and
    `accuracy_level` are those of the INT4 layers (see `runtime.manifest.Quantization`). Layers that are quantized in
    the checkpoint are in `stored` and stay as they are; `path` says which layer this style is for.
    """

    dialect: Dialect
    float_type: FloatType
    bits: int | None = None
    group_size: int = 128
    accuracy_level: int = 4
    stored: Mapping[str, WeightForm] = field(default_factory=dict)
    """Layers whose codes the checkpoint has, by checkpoint path."""
    path: str = ""
    """Checkpoint path of the module, as far as it is known; only Linear layers and heads need theirs."""

    def at(self, name: str) -> Style:
        """Return the style of the child called `name`."""
        return replace(self, path=f"{self.path}.{name}" if self.path else name)

    @property
    def stored_form(self) -> WeightForm | None:
        """How the checkpoint has the weight of this layer quantized, if it has."""
        return self.stored.get(self.path)

    @property
    def dtype(self) -> ir.DataType:
        """ONNX type of activations and of unquantized weights."""
        return _FLOAT_TYPES[self.float_type]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """NumPy type of activations and of unquantized weights."""
        return np.dtype(self.float_type)

    @property
    def contrib(self) -> bool:
        """Whether ONNX Runtime's contrib operators may be used."""
        return self.dialect == "ort"


class TensorSource(Protocol):
    """Where modules read their weights from: a checkpoint, with a record of what was taken (see `bind.py`)."""

    def read(self, name: str, shape: Sequence[int]) -> Array:
        """Return the tensor as float32 (float16 stays float16), checked against `shape`; raises `ExportError`."""
        ...

    def rows(self, name: str, shape: Sequence[int], rows_at_once: int) -> Iterator[tuple[int, Array]]:
        """Yield `(first row, rows)` of a tensor too large to convert at once."""
        ...

    def quantized(self, name: str, shape: Sequence[int]) -> QuantizedWeight:
        """Return the codes of a weight of `Style.stored`, checked against the `shape` of the weight."""
        ...


class Parameter(nn.Parameter):
    """A weight of the graph, filled from the checkpoint tensor of the same path unless its module says otherwise."""


class Module(nn.Module):
    """A part of a graph, and the account of which checkpoint tensors fill it."""

    def bind(self, prefix: str, source: TensorSource) -> Iterator[tuple[ir.Value, Array]]:
        """Yield every parameter of this module and its children with the array that fills it, one at a time.

        `prefix` is the checkpoint path of this module, with its trailing dot. Modules that change a tensor on its way
        (transpose, quantize, fold) override `bind_own`.
        """
        yield from self.bind_own(prefix, source)
        for name, child in self.named_children():
            yield from bind(child, f"{prefix}{name}.", source)

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[ir.Value, Array]]:
        """Yield this module's own parameters, each from the checkpoint tensor of its name."""
        for name, parameter in self.named_parameters(recurse=False):
            yield parameter, source.read(prefix + name, shape_of(parameter))


def bind(module: nn.Module, prefix: str, source: TensorSource) -> Iterator[tuple[ir.Value, Array]]:
    """`Module.bind`, also through onnxscript's own containers, which have no parameters themselves."""
    if isinstance(module, Module):
        yield from module.bind(prefix, source)
        return
    for name, child in module.named_children():
        yield from bind(child, f"{prefix}{name}.", source)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Static shape of a parameter."""
    assert value.shape is not None
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]  # parameters have no symbolic sizes


@dataclass(frozen=True)
class Port:
    """An input or output of a graph; sizes are numbers or the names of symbolic sizes."""

    name: str
    dtype: ir.DataType
    shape: Sequence[int | str]


def build(
    root: Module,
    style: Style,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    forward: Callable[..., Sequence[ir.Value]] | None = None,
) -> ir.Model:
    """Build the graph of `root`, whose `forward(op, *inputs)` returns one value an output.

    Initializers get the path of their attribute, so that an error or a viewer names the layer they belong to.
    """
    graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": _OPSETS[style.dialect], CONTRIB: 1})
    builder = GraphBuilder(graph)
    values = [builder.input(port.name, port.dtype, port.shape) for port in inputs]
    results = (forward or root)(builder.op, *values)
    for port, value in zip(outputs, results, strict=True):
        value.name = port.name
        value.dtype = port.dtype
        value.shape = ir.Shape(port.shape)
        graph.outputs.append(value)
    for node in graph:
        node.metadata_props.clear()  # the builder's notes on classes and scopes: half a file, and names already say it
    return ir.Model(graph, ir_version=_IR_VERSIONS[style.dialect], producer_name="nearfield")


@dataclass(frozen=True)
class ComponentGraph:
    """A component ready to be filled and written: its graph, its modules, and where its weights lie."""

    name: ComponentName
    model: ir.Model
    root: Module
    prefix: str
    """Checkpoint prefix of `root`, with its trailing dot."""
    unused: tuple[str, ...] = ()
    """Full names of tensors that the reference does not use either; any other left over is an error."""
