"""Packed 4-bit weights: nothing is lost in packing, and ONNX Runtime reads the layouts as they are meant."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from nearfield.quantize.packing import (
    Codes,
    QuantizedWeight,
    pack_dequantize_linear,
    pack_matmul_nbits,
    pack_nibbles,
)
from onnx import TensorProto, helper
from tolerances import INT4_MATMUL

FLOAT_TYPES: list[np.dtype[Any]] = [np.dtype(np.float32), np.dtype(np.float16)]
ROWS_OF_X = 3


def unpack_nibbles(packed: Codes, count: int) -> Codes:
    """Undo `pack_nibbles`: the first `count` 4-bit values along the last axis."""
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), np.uint8)
    codes[..., 0::2] = packed & 0xF
    codes[..., 1::2] = packed >> 4
    return codes[..., :count]


@st.composite
def quantized_weights(draw: st.DrawFn) -> QuantizedWeight:
    """Any codes, any zero points (0 and 15 among them), scales over three decades; K often ragged."""
    group_size = draw(st.sampled_from([16, 32, 128]))
    columns = draw(st.integers(1, 4 * group_size + 3))
    rows = draw(st.integers(1, 9))
    groups = -(-columns // group_size)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    zeros = draw(st.sampled_from(["any", "lowest", "highest"]))
    edges = {"any": (0, 16), "lowest": (0, 1), "highest": (15, 16)}[zeros]
    return QuantizedWeight(
        codes=rng.integers(0, 16, (rows, columns), np.uint8),
        scales=np.exp(rng.uniform(-7, 0, (rows, groups))).astype(draw(st.sampled_from(FLOAT_TYPES))),
        zeros=rng.integers(*edges, (rows, groups), np.uint8),
        group_size=group_size,
    )


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.integers(0, 15)))
def test_nibbles_come_back(codes: npt.NDArray[np.uint8]) -> None:
    packed = pack_nibbles(codes)
    assert packed.shape == (*codes.shape[:-1], (codes.shape[-1] + 1) // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, codes.shape[-1]), codes)


def test_the_low_nibble_is_first() -> None:
    np.testing.assert_array_equal(pack_nibbles(np.array([1, 2, 3], np.uint8)), [0x21, 0x03])


@given(quantized_weights())
def test_matmul_nbits_layout_loses_nothing(weight: QuantizedWeight) -> None:
    (rows, columns), groups = weight.codes.shape, weight.scales.shape[1]
    packed, scales, zeros = pack_matmul_nbits(weight)
    assert packed.shape == (rows, groups, weight.group_size // 2)
    assert zeros.shape == (rows, (groups + 1) // 2)
    codes = unpack_nibbles(packed, weight.group_size).reshape(rows, -1)
    np.testing.assert_array_equal(codes[:, :columns], weight.codes)
    padding = codes[:, columns:]
    np.testing.assert_array_equal(padding, np.repeat(weight.zeros[:, -1:], padding.shape[1], axis=1))
    np.testing.assert_array_equal(unpack_nibbles(zeros, groups), weight.zeros)
    np.testing.assert_array_equal(scales, weight.scales)


@given(quantized_weights())
def test_dequantize_linear_layout_loses_nothing(weight: QuantizedWeight) -> None:
    packed, scales, zeros = pack_dequantize_linear(weight)
    codes = unpack_nibbles(packed, weight.codes.size).reshape(weight.codes.shape[::-1])
    np.testing.assert_array_equal(codes.T, weight.codes)
    np.testing.assert_array_equal(unpack_nibbles(zeros, weight.zeros.size).reshape(scales.shape).T, weight.zeros)
    np.testing.assert_array_equal(scales.T, weight.scales)


def test_dequantize_subtracts_the_zero_point_of_each_group() -> None:
    weight = QuantizedWeight(
        codes=np.array([[0, 15, 3, 4, 9]], np.uint8),
        scales=np.array([[0.5, 2.0, 1.0]], np.float16),
        zeros=np.array([[15, 0, 8]], np.uint8),
        group_size=2,
    )
    dequantized = weight.dequantize()
    assert dequantized.dtype == np.float32
    np.testing.assert_array_equal(dequantized, [[-7.5, 0.0, 6.0, 8.0, 1.0]])


def _ragged(group_size: int, groups: int) -> QuantizedWeight:
    """A last group of one column, and an odd number of groups: both paddings at once."""
    rng = np.random.default_rng(groups)
    return QuantizedWeight(
        codes=rng.integers(0, 16, (5, group_size * (groups - 1) + 1), np.uint8),
        scales=rng.uniform(0.01, 0.1, (5, groups)).astype(np.float32),
        zeros=rng.integers(0, 16, (5, groups), np.uint8),
        group_size=group_size,
    )


@given(quantized_weights())
@example(_ragged(16, 3))
@example(_ragged(128, 5))
def test_matmul_nbits_multiplies_by_the_dequantized_weight(weight: QuantizedWeight) -> None:
    rows, columns = weight.codes.shape
    packed, scales, zeros = pack_matmul_nbits(weight)
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales", "zeros"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=4, block_size=weight.group_size, accuracy_level=1,
    )  # fmt: skip
    # The CPU's fp16 kernel adds in fp16: what is compared is the layout, so the product is taken in float32.
    initializers = [
        onnx.numpy_helper.from_array(packed, "packed"),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "scales"),
        onnx.numpy_helper.from_array(zeros, "zeros"),
    ]
    _check_product(weight, [node], initializers)


@pytest.mark.parametrize("fused", [True, False])
@given(weight=quantized_weights())
@example(weight=_ragged(16, 3))
@example(weight=_ragged(128, 5))
def test_dequantize_linear_gives_the_dequantized_weight(fused: bool, weight: QuantizedWeight) -> None:
    rows, columns = weight.codes.shape
    packed, scales, zeros = pack_dequantize_linear(weight)
    nodes = [
        helper.make_node(
            "DequantizeLinear", ["packed", "scales", "zeros"], ["w"], axis=0, block_size=weight.group_size
        ),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    initializers = [
        helper.make_tensor("packed", TensorProto.UINT4, (columns, rows), packed.tobytes(), raw=True),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "scales"),
        helper.make_tensor("zeros", TensorProto.UINT4, scales.shape, zeros.tobytes(), raw=True),
    ]
    _check_product(weight, nodes, initializers, fused=fused)


def _check_product(
    weight: QuantizedWeight,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    *,
    fused: bool = True,
) -> None:
    """Compare `x · Wᵀ` of the graph with NumPy's."""
    rows, columns = weight.codes.shape
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (ROWS_OF_X, columns))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (ROWS_OF_X, rows))],
        initializers,
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((ROWS_OF_X, columns)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    expected = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(weight.dequantize()).astype(np.float64).T  # the sums may cancel
    assert np.linalg.norm(y - expected) <= INT4_MATMUL * np.linalg.norm(size)
