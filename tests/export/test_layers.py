"""Leaf layers where their parity inside a whole graph would not show a fault."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import Array
from nearfield.errors import QuantizationError
from nearfield.export import layers
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.graph import ComponentGraph, Module, Op, Port, Style, Value, build
from nearfield.export.layers import OutputHead, bounded, linear
from nearfield.quantize.packing import QuantizedWeight
from nearfield.runtime.manifest import FloatType
from safetensors.numpy import load_file, save_file


class Bounded(Module):
    """`bounded` alone."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.style = style

    def forward(self, op: Op, x: Value) -> list[Value]:
        return [op.Identity(bounded(op, x, self.style))]


@pytest.mark.parametrize(
    ("float_type", "expected"), [("float16", [-64504, 1, 64504]), ("float32", [-np.inf, 1, np.inf])]
)
def test_half_floats_stop_short_of_infinity(float_type: FloatType, expected: list[float]) -> None:
    style = Style("ort", float_type)
    port = Port("x", style.dtype, (3,))
    model = build(Bounded(style), style, "bounded", [port], [Port("y", style.dtype, (3,))])
    session = ort.InferenceSession(_serialized(model))
    (y,) = session.run(None, {"x": np.array([-np.inf, 1, np.inf], float_type)})
    np.testing.assert_array_equal(y, np.array(expected, float_type))


def test_a_weight_that_cannot_be_quantized_is_named(checkpoint_3b: Path, tmp_path: Path) -> None:
    name = "thinker.model.layers.0.mlp.up_proj"
    tensors = load_file(checkpoint_3b / "model.safetensors")
    tensors[f"{name}.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint_3b / "config.json").read_bytes())
    outputs, inputs = tensors[f"{name}.weight"].shape
    style = Style("ort", "float32", bits=4)
    layer = linear(inputs, outputs, style, bias=False)

    class Root(Module):
        """The layer, under the name the reader is asked for."""

        def __init__(self) -> None:
            super().__init__()
            self.up_proj = layer

        def forward(self, op: Op, x: Value) -> list[Value]:
            return [self.up_proj(op, x)]

    root = Root()
    ports = [Port("x", style.dtype, (1, inputs))], [Port("y", style.dtype, (1, outputs))]
    component = ComponentGraph("thinker", build(root, style, "root", *ports), root, "thinker.model.layers.0.mlp.")
    with pytest.raises(QuantizationError, match=rf"{name}\.weight: a weight of {inputs} inputs holds NaN or infinity"):
        write_component(component, Reader(Checkpoint.open(tmp_path)), tmp_path)


@pytest.mark.parametrize("level", [1, 4])
def test_every_int4_product_has_the_accuracy_level_asked_for(level: Literal[1, 4]) -> None:
    style = Style("ort", "float16", bits=4, accuracy_level=level)

    class Two(Module):
        """One layer with a bias and one without."""

        def __init__(self) -> None:
            super().__init__()
            self.up = linear(160, 96, style)
            self.down = linear(96, 160, style, bias=False)

        def forward(self, op: Op, x: Value) -> list[Value]:
            return [self.down(op, self.up(op, x))]

    model = build(Two(), style, "two", [Port("x", style.dtype, (1, 160))], [Port("y", style.dtype, (1, 160))])
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert [node.attributes["accuracy_level"].as_int() for node in nodes] == [level, level]


def test_a_head_taken_in_row_blocks_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32)
    sizes: list[int] = []

    class Rows:
        """A checkpoint of one tensor, which tells how it was taken."""

        def read(self, name: str, shape: Sequence[int]) -> Array:
            raise AssertionError(f"{name} {shape} was read whole")

        def rows(self, name: str, shape: Sequence[int], rows_at_once: int) -> Iterator[tuple[int, Array]]:
            assert (name, tuple(shape)) == ("head.weight", weight.shape)
            for start in range(0, len(weight), rows_at_once):
                block = weight[start : start + rows_at_once]
                sizes.append(len(block))
                yield start, block

        def quantized(self, name: str, shape: Sequence[int]) -> QuantizedWeight:
            raise AssertionError(f"{name} is not stored quantized")

    monkeypatch.setattr(layers, "_ROWS_AT_ONCE", 3)
    ((_, taken),) = OutputHead(5, 8, Style("ort", "float16")).bind_own("head.", Rows())
    np.testing.assert_array_equal(taken, weight.astype(np.float16))
    assert sizes == [3, 3, 2]


def _serialized(model: ir.Model) -> bytes:
    content: bytes = ir.serde.serialize_model(model).SerializeToString()
    return content
