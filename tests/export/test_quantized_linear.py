"""Quantized layers the whole way, codes to file to checkpoint to graph, beside the product with what they stand for."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Array, Graph
from hypothesis import assume, given
from hypothesis import strategies as st
from nearfield.errors import QuantizationError
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.graph import ComponentGraph, Module, Op, Port, Style, Value, build
from nearfield.export.layers import linear, output_head
from nearfield.export.quantized_linear import QuantizedLinear
from nearfield.quantize.formats import FileFormat, pack
from nearfield.quantize.packing import QuantizedWeight
from nearfield.runtime.manifest import Dialect, FloatType
from quantized import quantized_weights
from safetensors.numpy import save_file
from tolerances import INT4_MATMUL

LAYER = "thinker.model.layers.0.mlp.up_proj"
DIALECTS: list[Dialect] = ["ort", "standard"]
ROWS_OF_X = 3


class One(Module):
    """A single layer, under the name the checkpoint has it."""

    def __init__(self, layer: Module) -> None:
        super().__init__()
        self.up_proj = layer

    def forward(self, op: Op, x: Value) -> list[Value]:
        return [self.up_proj(op, x)]


def store(directory: Path, weight: QuantizedWeight, form: FileFormat, **more: Array) -> Checkpoint:
    """A checkpoint of one layer."""
    config = form.config(quantizer="nearfield:test", act_order=weight.group_index is not None)
    content = {"model_type": "qwen2_5_omni", "quantization_config": config}
    (directory / "config.json").write_text(json.dumps(content), encoding="utf-8")
    tensors = {f"{LAYER}.{name}": tensor for name, tensor in (pack(weight, form) | more).items()}
    save_file(tensors, directory / "model.safetensors")
    return Checkpoint.open(directory)


def style_of(checkpoint: Checkpoint, dialect: Dialect, float_type: FloatType = "float32") -> Style:
    return Style(dialect, float_type, accuracy_level=1, stored=checkpoint.stored_forms, path=LAYER)


def write(directory: Path, layer: Module, style: Style, outputs: int, inputs: int, checkpoint: Checkpoint) -> Path:
    root = One(layer)
    ports = [Port("x", style.dtype, (ROWS_OF_X, inputs))], [Port("y", style.dtype, (ROWS_OF_X, outputs))]
    component = ComponentGraph("thinker", build(root, style, "one", *ports), root, LAYER.removesuffix("up_proj"))
    write_component(component, Reader(checkpoint), directory)
    return directory / "thinker.onnx"


def check_product(graph: Path, weight: Array, bias: Array | None = None) -> None:
    x = np.random.default_rng(0).standard_normal((ROWS_OF_X, weight.shape[1])).astype(np.float32)
    y = Graph(graph).run({"x": x})["y"]
    expected = x.astype(np.float64) @ weight.astype(np.float64).T + (0 if bias is None else bias)
    size = np.abs(x).astype(np.float64) @ np.abs(weight.astype(np.float64)).T  # the sums may cancel
    assert np.linalg.norm(y - expected) <= INT4_MATMUL * np.linalg.norm(size)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(weight=quantized_weights(scale_types=(np.float16,)), version_1=st.booleans(), biased=st.booleans())
def test_gptq_layers_multiply_by_what_their_codes_stand_for(
    dialect: Dialect, weight: QuantizedWeight, version_1: bool, biased: bool
) -> None:
    if version_1:
        weight = replace(weight, zeros=np.maximum(weight.zeros, 1))
    form = FileFormat("gptq", weight.bits, weight.group_size, weight.symmetric, 1 if version_1 else 2)
    _check_way(dialect, weight, form, biased)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(weight=quantized_weights(bits=(4,), scale_types=(np.float16,), act_order=(False,)), biased=st.booleans())
def test_awq_layers_multiply_by_what_their_codes_stand_for(
    dialect: Dialect, weight: QuantizedWeight, biased: bool
) -> None:
    columns = weight.codes.shape[1] // weight.group_size * weight.group_size
    assume(columns)
    weight = replace(weight, codes=weight.codes[:, :columns])
    groups = columns // weight.group_size
    weight = replace(weight, scales=weight.scales[:, :groups], zeros=weight.zeros[:, :groups])
    weight = weight.of_rows(np.arange(16) % len(weight.codes))
    _check_way(dialect, weight, FileFormat("awq", 4, weight.group_size), biased)


def _check_way(dialect: Dialect, weight: QuantizedWeight, form: FileFormat, biased: bool) -> None:
    outputs, inputs = weight.codes.shape
    bias = np.random.default_rng(1).standard_normal((outputs,)).astype(np.float16) if biased else None
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checkpoint = store(directory, weight, form, **({} if bias is None else {"bias": bias}))
        np.testing.assert_array_equal(checkpoint.read(f"{LAYER}.weight"), weight.dequantize())
        style = style_of(checkpoint, dialect)
        layer = linear(inputs, outputs, style, bias=biased)
        assert isinstance(layer, QuantizedLinear)
        graph = write(directory, layer, style, outputs, inputs, checkpoint)
        check_product(graph, weight.dequantize(), bias)
        _check_operators(graph, dialect, weight)


def _check_operators(graph: Path, dialect: Dialect, weight: QuantizedWeight) -> None:
    model = onnx.load(graph, load_external_data=False).graph
    kinds = [node.op_type for node in model.node if node.op_type != "Add"]
    product = ["MatMulNBits"] if dialect == "ort" else ["DequantizeLinear", "MatMul"]
    reordered = weight.group_index is not None
    assert kinds == [*(["Gather"] if reordered else []), *product]
    names = {initializer.name for initializer in model.initializer}
    assert ("up_proj.zeros" in names) == (not weight.symmetric)
    assert ("up_proj.order" in names) == reordered
    if dialect == "standard":
        types = {initializer.name: initializer.data_type for initializer in model.initializer}
        expected = {
            (4, False): onnx.TensorProto.UINT4,
            (4, True): onnx.TensorProto.INT4,
            (8, False): onnx.TensorProto.UINT8,
            (8, True): onnx.TensorProto.INT8,
        }
        assert types["up_proj.weight"] == expected[weight.bits, weight.symmetric]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("group_size", [-1, 48, 256])
def test_groups_no_operator_takes_become_blocks_of_one_scale(tmp_path: Path, dialect: Dialect, group_size: int) -> None:
    rng = np.random.default_rng(0)
    size = 300 if group_size == -1 else group_size
    groups = -(-300 // size)
    scales = rng.uniform(0.01, 0.1, (5, groups)).astype(np.float16)
    weight = QuantizedWeight(
        rng.integers(0, 16, (5, 300), np.uint8), scales, rng.integers(0, 16, (5, groups), np.uint8), size
    )
    checkpoint = store(tmp_path, weight, FileFormat("gptq", 4, group_size))
    assert checkpoint.stored_forms[LAYER].group_size == group_size
    style = style_of(checkpoint, dialect)
    check_product(write(tmp_path, linear(300, 5, style, bias=False), style, 5, 300, checkpoint), weight.dequantize())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_outputs_can_be_put_in_another_order(tmp_path: Path, dialect: Dialect) -> None:
    weight, bias = _weight(), np.arange(16).astype(np.float16)
    checkpoint = store(tmp_path, weight, FileFormat("gptq", 4, 16), bias=bias)
    rows, style = np.random.default_rng(0).permutation(16), style_of(checkpoint, dialect)
    graph = write(tmp_path, linear(48, 16, style, rows=rows), style, 16, 48, checkpoint)
    check_product(graph, weight.dequantize()[rows], bias[rows])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_head_can_be_quantized(tmp_path: Path, dialect: Dialect) -> None:
    weight = _weight(bits=8)
    checkpoint = store(tmp_path, weight, FileFormat("gptq", 8, 16))
    style = style_of(checkpoint, dialect)
    graph = write(tmp_path, output_head(48, 16, style), style, 16, 48, checkpoint)
    check_product(graph, weight.dequantize())
    assert type(output_head(48, 16, Style(dialect, "float32", bits=4))).__name__ == "OutputHead"  # 4 is for linear()


# Scales


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scales_are_stored_as_they_are_whatever_the_graphs_type(tmp_path: Path, dialect: Dialect) -> None:
    weight = _weight()
    checkpoint = store(tmp_path, weight, FileFormat("gptq", 4, 16))
    for float_type in ("float16", "float32"):
        style = style_of(checkpoint, dialect, float_type)
        bound = dict(_bound(linear(48, 16, style, bias=False), checkpoint))
        scales = bound["scales"] if dialect == "ort" else bound["scales"].T
        assert scales.dtype == np.dtype(float_type)
        np.testing.assert_array_equal(scales, weight.scales)


def test_a_scale_half_floats_do_not_hold_needs_a_graph_of_32_bits(tmp_path: Path) -> None:
    weight = _weight()
    store(tmp_path, weight, FileFormat("gptq", 4, 16))
    tensors = {f"{LAYER}.{name}": tensor for name, tensor in pack(weight, FileFormat("gptq", 4, 16)).items()}
    tensors[f"{LAYER}.scales"] = np.full((3, 16), 1e-9, np.float32)  # as a bfloat16 checkpoint may have it
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    message = rf"{LAYER}\.weight: its scales, 1e-09 to 1e-09, do not all fit float16 exactly; .*--dtype float32"
    with pytest.raises(QuantizationError, match=message):
        list(_bound(linear(48, 16, style_of(checkpoint, "ort", "float16"), bias=False), checkpoint))
    bound = dict(_bound(linear(48, 16, style_of(checkpoint, "ort"), bias=False), checkpoint))
    assert (bound["scales"] == np.float32(1e-9)).all()


def test_a_symmetric_weight_tensorrt_would_refuse_is_refused_for_the_standard_dialect(tmp_path: Path) -> None:
    weight = replace(_weight(), zeros=np.full((16, 3), 8, np.uint8))
    weight.scales[3, 1] = -0.5
    checkpoint = store(tmp_path, weight, FileFormat("gptq", 4, 16, symmetric=True))
    with pytest.raises(QuantizationError, match=rf"{LAYER}\.weight: a symmetric weight has a scale of -0\.5; TensorRT"):
        list(_bound(linear(48, 16, style_of(checkpoint, "standard"), bias=False), checkpoint))
    style = style_of(checkpoint, "ort")
    graph = write(tmp_path, linear(48, 16, style, bias=False), style, 16, 48, checkpoint)
    check_product(graph, weight.dequantize())


def test_groups_with_no_place_in_a_graph_are_refused() -> None:
    stored: dict[str, Any] = {"stored": {LAYER: _form(40)}, "path": LAYER}
    with pytest.raises(QuantizationError, match="groups of 40 inputs have no place in a graph"):
        linear(300, 8, Style("ort", "float32", **stored))


def _form(group_size: int) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        form = store(Path(directory), _weight(), FileFormat("gptq", 4, 16)).stored_forms[LAYER]
    return replace(form, group_size=group_size)


def _bound(layer: Module, checkpoint: Checkpoint) -> list[tuple[str, Array]]:
    names = {id(parameter): name for name, parameter in layer.named_parameters()}
    pairs = layer.bind_own(f"{LAYER}.", Reader(checkpoint))
    return [(names[id(parameter)], array) for parameter, array in pairs]


def _weight(bits: int = 4) -> QuantizedWeight:
    rng = np.random.default_rng(0)
    top = 1 << bits
    scales = rng.uniform(0.01, 0.1, (16, 3)).astype(np.float16)
    return QuantizedWeight(
        rng.integers(0, top, (16, 48), np.uint8), scales, rng.integers(0, top, (16, 3), np.uint8), 16, bits
    )
