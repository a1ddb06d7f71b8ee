"""Packed weights: nothing is lost in packing, and ONNX Runtime reads the layouts as they are meant."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from nearfield.errors import QuantizationError
from nearfield.quantize.packing import (
    Codes,
    QuantizedWeight,
    block_size,
    pack_dequantize_linear,
    pack_dequantize_linear_symmetric,
    pack_matmul_nbits,
    pack_nibbles,
    unpack_nibbles,
)
from onnx import TensorProto, helper
from quantized import quantized_weights
from tolerances import INT4_MATMUL

ROWS_OF_X = 3
IN_ORDER = quantized_weights(act_order=(False,))


@given(npst.arrays(np.uint8, npst.array_shapes(min_dims=1, max_dims=3, max_side=9), elements=st.integers(0, 15)))
def test_nibbles_come_back(codes: npt.NDArray[np.uint8]) -> None:
    packed = pack_nibbles(codes)
    assert packed.shape == (*codes.shape[:-1], (codes.shape[-1] + 1) // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, codes.shape[-1]), codes)


def test_the_low_nibble_is_first() -> None:
    np.testing.assert_array_equal(pack_nibbles(np.array([1, 2, 3], np.uint8)), [0x21, 0x03])
    np.testing.assert_array_equal(unpack_nibbles(np.array([0x21, 0xF3], np.uint8), 3), [1, 2, 3])


def _unpacked(packed: Codes, count: int, bits: int) -> Codes:
    return unpack_nibbles(packed, count) if bits == 4 else packed[..., :count]


@given(IN_ORDER)
def test_matmul_nbits_layout_loses_nothing(weight: QuantizedWeight) -> None:
    (rows, columns), groups, bits = weight.codes.shape, weight.scales.shape[1], weight.bits
    packed, scales, zeros = pack_matmul_nbits(weight)
    assert packed.shape == (rows, groups, weight.group_size * bits // 8)
    assert zeros.shape == (rows, -(-groups * bits // 8))
    codes = _unpacked(packed, weight.group_size, bits).reshape(rows, -1)
    np.testing.assert_array_equal(codes[:, :columns], weight.codes)
    padding = codes[:, columns:]
    np.testing.assert_array_equal(padding, np.repeat(weight.zeros[:, -1:], padding.shape[1], axis=1))
    np.testing.assert_array_equal(_unpacked(zeros, groups, bits), weight.zeros)
    np.testing.assert_array_equal(scales, weight.scales)


@given(IN_ORDER)
def test_dequantize_linear_layout_loses_nothing(weight: QuantizedWeight) -> None:
    packed, scales, zeros = pack_dequantize_linear(weight)
    codes = _unpacked(packed.ravel(), weight.codes.size, weight.bits).reshape(weight.codes.shape[::-1])
    np.testing.assert_array_equal(codes.T, weight.codes)
    unpacked = _unpacked(zeros.ravel(), weight.zeros.size, weight.bits)
    np.testing.assert_array_equal(unpacked.reshape(scales.shape).T, weight.zeros)
    np.testing.assert_array_equal(scales.T, weight.scales)


@given(IN_ORDER)
def test_symmetric_layout_holds_signed_codes_and_no_zero_points(weight: QuantizedWeight) -> None:
    middle = 1 << (weight.bits - 1)
    weight = replace(weight, zeros=np.full_like(weight.zeros, middle))
    assert weight.symmetric
    packed, scales = pack_dequantize_linear_symmetric(weight)
    if weight.bits == 8:
        signed = packed.astype(np.int64)
    else:
        nibbles = unpack_nibbles(packed.view(np.uint8), weight.codes.size).astype(np.int64)
        signed = np.where(nibbles > 7, nibbles - 16, nibbles)
    np.testing.assert_array_equal(signed.reshape(weight.codes.shape[::-1]).T, weight.codes.astype(np.int64) - middle)
    np.testing.assert_array_equal(scales.T, weight.scales)


def test_a_weight_with_zero_points_cannot_do_without_them() -> None:
    weight = _ragged(16, 3)
    assert not weight.symmetric
    with pytest.raises(QuantizationError, match="with zero points other than 8 cannot be stored without them"):
        pack_dequantize_linear_symmetric(weight)


@pytest.mark.parametrize("scale", [0.0, -0.1])
def test_tensorrt_is_given_no_scale_it_would_refuse(scale: float) -> None:
    weight = _ragged(16, 3)
    scales = weight.scales.copy()
    scales[2, 1] = scale
    weight = replace(weight, zeros=np.full_like(weight.zeros, 8), scales=scales)
    with pytest.raises(QuantizationError, match=rf"has a scale of {scale}.*; TensorRT takes only above 0"):
        pack_dequantize_linear_symmetric(weight)


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
    scattered = replace(weight, group_index=np.array([2, 0, 1, 0, 1], np.int32))
    np.testing.assert_array_equal(scattered.dequantize(), [[-8.0, 0.0, 6.0, -5.5, 18.0]])


# Groups


@given(quantized_weights(act_order=(True,)))
def test_in_group_order_the_weight_is_the_same_one(weight: QuantizedWeight) -> None:
    ordered, order = weight.in_group_order()
    assert ordered.group_index is None
    if weight.group_index is None:
        assert order is None
        assert ordered is weight
        return
    assert order is not None
    np.testing.assert_array_equal(np.sort(order), np.arange(weight.codes.shape[1]))
    np.testing.assert_array_equal(ordered.dequantize(), weight.dequantize()[:, order])


def test_a_group_index_that_makes_groups_of_other_sizes_is_refused() -> None:
    index = np.array([0] * 17 + [1] * 15, np.int32)
    weight = replace(_ragged(16, 3), codes=np.zeros((5, 32), np.uint8), group_index=index)
    with pytest.raises(QuantizationError, match="does not divide 32 inputs into groups of 16"):
        weight.in_group_order()


def test_inputs_out_of_order_are_not_packed() -> None:
    weight = replace(_ragged(16, 2), group_index=np.array([1, *[0] * 16], np.int32))
    for pack in (pack_matmul_nbits, pack_dequantize_linear, pack_dequantize_linear_symmetric):
        with pytest.raises(QuantizationError, match="not side by side; take `in_group_order"):
            pack(weight)


@given(IN_ORDER, st.sampled_from([16, 32, 64, 128]))
def test_in_smaller_blocks_the_weight_is_the_same_one(weight: QuantizedWeight, size: int) -> None:
    assume(weight.group_size % size == 0)
    blocks = weight.in_blocks(size)
    assert (blocks.group_size, blocks.scales.shape[1]) == (size, -(-weight.codes.shape[1] // size))
    np.testing.assert_array_equal(blocks.dequantize(), weight.dequantize())


@pytest.mark.parametrize("columns", [1, 100, 127, 128, 129, 300])
def test_a_whole_row_can_be_several_blocks(columns: int) -> None:
    rng = np.random.default_rng(columns)
    weight = QuantizedWeight(
        rng.integers(0, 16, (3, columns), np.uint8), rng.uniform(0.1, 1, (3, 1)), np.full((3, 1), 5, np.uint8), columns
    )
    np.testing.assert_array_equal(weight.in_blocks(block_size(columns, columns)).dequantize(), weight.dequantize())


@pytest.mark.parametrize(
    ("group_size", "columns", "expected"),
    [(16, 300, 16), (128, 300, 128), (128, 100, 128), (256, 300, 128), (96, 300, 32), (3420, 3420, 128), (80, 300, 16)],
)
def test_blocks_are_those_operators_take(group_size: int, columns: int, expected: int) -> None:
    assert block_size(group_size, columns) == expected


def test_a_group_no_block_divides_is_refused() -> None:
    with pytest.raises(QuantizationError, match="groups of 40 inputs have no place in a graph; 16 or a multiple"):
        block_size(40, 300)


# In ONNX Runtime


def _ragged(group_size: int, groups: int, bits: int = 4) -> QuantizedWeight:
    """A last group of one column, and an odd number of groups: both paddings at once."""
    rng = np.random.default_rng(groups)
    return QuantizedWeight(
        codes=rng.integers(0, 1 << bits, (5, group_size * (groups - 1) + 1), np.uint8),
        scales=rng.uniform(0.01, 0.1, (5, groups)).astype(np.float32),
        zeros=rng.integers(0, 1 << bits, (5, groups), np.uint8),
        group_size=group_size,
        bits=bits,
    )


@given(IN_ORDER)
@example(_ragged(16, 3))
@example(_ragged(128, 5))
@example(_ragged(128, 3, bits=8))
def test_matmul_nbits_multiplies_by_the_dequantized_weight(weight: QuantizedWeight) -> None:
    rows, columns = weight.codes.shape
    packed, scales, zeros = pack_matmul_nbits(weight)
    node = helper.make_node(
        "MatMulNBits", ["x", "packed", "scales", "zeros"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=weight.bits, block_size=weight.group_size, accuracy_level=1,
    )  # fmt: skip
    # The CPU's fp16 kernel adds in fp16: what is compared is the layout, so the product is taken in float32.
    initializers = [
        onnx.numpy_helper.from_array(packed, "packed"),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "scales"),
        onnx.numpy_helper.from_array(zeros, "zeros"),
    ]
    _check_product(weight, [node], initializers)


@pytest.mark.parametrize("fused", [True, False])
@given(weight=IN_ORDER)
@example(weight=_ragged(16, 3))
@example(weight=_ragged(128, 5))
@example(weight=_ragged(128, 3, bits=8))
def test_dequantize_linear_gives_the_dequantized_weight(fused: bool, weight: QuantizedWeight) -> None:
    packed, scales, zeros = pack_dequantize_linear(weight)
    kind = {4: TensorProto.UINT4, 8: TensorProto.UINT8}[weight.bits]
    initializers = [
        helper.make_tensor("packed", kind, weight.codes.shape[::-1], packed.tobytes(), raw=True),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "scales"),
        helper.make_tensor("zeros", kind, scales.shape, zeros.tobytes(), raw=True),
    ]
    _check_product(weight, _dequantize_nodes(weight, ["packed", "scales", "zeros"]), initializers, fused=fused)


@pytest.mark.parametrize("fused", [True, False])
@given(weight=IN_ORDER)
def test_signed_codes_give_the_dequantized_weight(fused: bool, weight: QuantizedWeight) -> None:
    weight = replace(weight, zeros=np.full_like(weight.zeros, 1 << (weight.bits - 1)))
    packed, scales = pack_dequantize_linear_symmetric(weight)
    kind = {4: TensorProto.INT4, 8: TensorProto.INT8}[weight.bits]
    initializers = [
        helper.make_tensor("packed", kind, weight.codes.shape[::-1], packed.tobytes(), raw=True),
        onnx.numpy_helper.from_array(scales.astype(np.float32), "scales"),
    ]
    _check_product(weight, _dequantize_nodes(weight, ["packed", "scales"]), initializers, fused=fused)


def _dequantize_nodes(weight: QuantizedWeight, inputs: list[str]) -> list[onnx.NodeProto]:
    dequantize = helper.make_node("DequantizeLinear", inputs, ["w"], axis=0, block_size=weight.group_size)
    return [dequantize, helper.make_node("MatMul", ["x", "w"], ["y"])]


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
