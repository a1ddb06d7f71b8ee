"""Files of quantized weights: nothing is lost in them, other programs' are read as meant, what does not fit refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nearfield.errors import QuantizationError
from nearfield.quantize.formats import FileFormat, Tensors, pack, unpack
from nearfield.quantize.packing import QuantizedWeight
from quantized import quantized_weights
from safetensors import safe_open

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.safetensors"))
Version = Literal[1, 2]


def _same(a: QuantizedWeight, b: QuantizedWeight) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.zeros, b.zeros)
    np.testing.assert_array_equal(a.scales, b.scales)
    np.testing.assert_array_equal(a.column_groups(), b.column_groups())
    assert (a.bits, a.group_size, a.scales.dtype) == (b.bits, b.group_size, b.scales.dtype)
    assert (a.group_index is None) == (b.group_index is None)


def _for_awq(weight: QuantizedWeight) -> QuantizedWeight:
    """The same weight cut to whole groups, its rows repeated to a multiple of eight."""
    columns = weight.codes.shape[1] // weight.group_size * weight.group_size
    assume(columns > 0)
    groups = columns // weight.group_size
    codes, scales, zeros = weight.codes[:, :columns], weight.scales[:, :groups], weight.zeros[:, :groups]
    rows = np.arange(-(-len(codes) // 8) * 8) % len(codes)
    return replace(weight, codes=codes, scales=scales, zeros=zeros).of_rows(rows)


# Round trips


@pytest.mark.parametrize("version", [1, 2])
@given(weight=quantized_weights(scale_types=(np.float16,)), says_symmetric=st.booleans())
def test_gptq_files_lose_nothing(version: Version, weight: QuantizedWeight, says_symmetric: bool) -> None:
    assume(weight.group_index is not None or weight.codes.shape[1] > 0)
    if version == 1:
        weight = replace(weight, zeros=np.maximum(weight.zeros, 1))
    symmetric = weight.symmetric and says_symmetric
    form = FileFormat("gptq", weight.bits, weight.group_size, symmetric, version)
    tensors = pack(weight, form)
    outputs, inputs = weight.codes.shape
    per_word = 32 // weight.bits
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "qweight": ("int32", (-(-inputs // per_word), outputs)),
        "qzeros": ("int32", (weight.scales.shape[1], -(-outputs // per_word))),
        "scales": ("float16", weight.scales.shape[::-1]),
        "g_idx": ("int32", (inputs,)),
    }
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())  # or safetensors would store other bytes
    _same(unpack(tensors, form), weight)


@given(weight=quantized_weights(bits=(4,), scale_types=(np.float16,), act_order=(False,)))
def test_awq_files_lose_nothing(weight: QuantizedWeight) -> None:
    weight = _for_awq(weight)
    form = FileFormat("awq", 4, weight.group_size)
    tensors = pack(weight, form)
    outputs, inputs = weight.codes.shape
    assert {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()} == {
        "qweight": ("int32", (inputs, outputs // 8)),
        "qzeros": ("int32", (inputs // weight.group_size, outputs // 8)),
        "scales": ("float16", (inputs // weight.group_size, outputs)),
    }
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    _same(unpack(tensors, form), weight)


def test_a_group_may_be_a_whole_row() -> None:
    weight = _weight(zeros=np.array([[3], [15]]), group_size=24)
    tensors = pack(weight, FileFormat("gptq", 4, -1))
    _same(unpack(tensors, FileFormat("gptq", 4, -1)), weight)


def test_a_file_without_group_index_has_its_groups_in_order() -> None:
    weight = _weight()
    tensors = pack(weight, FileFormat("gptq", 4, 16))
    del tensors["g_idx"]
    _same(unpack(tensors, FileFormat("gptq", 4, 16)), weight)


# The bytes themselves


def _hex(words: npt.NDArray[np.int32]) -> list[str]:
    return [f"{word:08x}" for word in words.view(np.uint32).ravel().tolist()]


def test_where_each_code_lies_in_a_word() -> None:
    codes = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    weight = QuantizedWeight(codes, np.ones((8, 1), np.float16), codes[:, :1] + np.uint8(1), 8)
    gptq = pack(weight, FileFormat("gptq", 4, 8))
    assert _hex(gptq["qweight"][0, :2]) == ["76543210", "fedcba98"]
    assert _hex(gptq["qzeros"]) == ["91919191"]  # of outputs 7 … 0
    older = pack(weight, FileFormat("gptq", 4, 8, version=1))
    assert _hex(older["qzeros"]) == ["80808080"]
    awq = pack(replace(weight, codes=codes.T), FileFormat("awq", 4, 8))
    assert _hex(awq["qweight"][0]) == ["75316420"]  # highest nibble first: outputs 7 5 3 1 6 4 2 0


def test_where_each_code_of_8_bits_lies_in_a_word() -> None:
    codes = np.arange(1, 9, dtype=np.uint8).reshape(1, 8)
    weight = QuantizedWeight(codes, np.ones((1, 1), np.float16), np.array([[0xAB]], np.uint8), 8, bits=8)
    tensors = pack(weight, FileFormat("gptq", 8, 8))
    assert _hex(tensors["qweight"]) == ["04030201", "08070605"]
    assert tensors["qzeros"].tolist() == [[0xAB]]


# Zero points of GPTQ version 1


def test_version_1_is_never_written_with_a_zero_point_of_0() -> None:
    weight = _weight(zeros=np.array([[0, 1], [2, 3]]))
    with pytest.raises(
        QuantizationError, match="a zero point of 0 has no agreed form in GPTQ version 1: write version 2"
    ):
        pack(weight, FileFormat("gptq", 4, 16, version=1))


@given(bits=st.sampled_from([4, 8]), seed=st.integers(0, 2**32 - 1), lowest=st.booleans())
def test_words_that_borrowed_are_read_where_the_writer_is_known(bits: int, seed: int, lowest: bool) -> None:
    rng = np.random.default_rng(seed)
    zeros = rng.integers(0, 1 if lowest else 1 << bits, (9, 2), np.uint8)
    weight = QuantizedWeight(
        rng.integers(0, 1 << bits, (9, 20), np.uint8), np.ones((9, 2), np.float16), zeros, 16, bits
    )
    tensors = pack(weight, FileFormat("gptq", bits, 16, version=2))
    ones = np.uint32(0x11111111 if bits == 4 else 0x01010101)
    tensors["qzeros"] = (tensors["qzeros"].view(np.uint32) - ones).view(np.int32)  # as gptqmodel makes version 1
    _same(unpack(tensors, FileFormat("gptq", bits, 16, version=1, borrows=True)), weight)
    if (zeros == 0).any():
        with pytest.raises(QuantizationError, match="which writers of that version mean differently; store the"):
            unpack(tensors, FileFormat("gptq", bits, 16, version=1))


@pytest.mark.parametrize("label", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("truth", [1, 2])
def test_symmetric_zero_points_say_themselves_which_version_they_are(label: Version, bits: int, truth: Version) -> None:
    weight = _weight(zeros=np.full((2, 2), 1 << (bits - 1)), bits=bits)
    tensors = pack(weight, FileFormat("gptq", bits, 16, symmetric=True, version=truth))
    _same(unpack(tensors, FileFormat("gptq", bits, 16, symmetric=True, version=label)), weight)


# What other programs wrote


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_other_programs_files_are_read_bit_exact(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        config: dict[str, Any] = json.loads(file.metadata()["config"])
    stored = {name: array for name, array in arrays.items() if not name.startswith("expected.")}
    form = FileFormat(
        method=config["quant_method"],
        bits=config["bits"],
        group_size=config["group_size"],
        symmetric=config.get("sym", False),
        version=2 if config.get("checkpoint_format") == "gptq_v2" else 1,
        borrows=True,
    )
    weight = unpack(stored, form)
    np.testing.assert_array_equal(weight.dequantize(), arrays["expected.weight"])
    np.testing.assert_array_equal(weight.zeros, arrays["expected.zeros"])
    np.testing.assert_array_equal(weight.scales.astype(np.float32), arrays["expected.scales"])
    assert weight.symmetric == form.symmetric
    assert (weight.group_index is not None) == config.get("desc_act", False)
    half = weight.dequantize().astype(np.float16)  # they multiply in half precision
    np.testing.assert_array_equal(half, arrays["expected.dequantized"].astype(np.float16))
    if not (form.version == 1 and (weight.zeros == 0).any()):  # written the same, bit for bit
        for name, array in pack(weight, form).items():
            np.testing.assert_array_equal(array, stored[name], err_msg=name)


def test_there_are_fixtures_of_every_format() -> None:
    assert {path.stem for path in FIXTURES} >= {
        "autoawq_gemm",
        "gptqmodel_awq_gemm",
        "gptqmodel_v1_4bit_symmetric",
        "gptqmodel_v1_4bit_zero_points_of_0",
        "gptqmodel_v1_8bit",
        "gptqmodel_v2_4bit",
        "gptqmodel_v2_4bit_act_order_ragged",
        "gptqmodel_v2_8bit",
    }


# What cannot be written


def _weight(
    zeros: npt.ArrayLike = ((3, 15), (1, 8)), bits: int = 4, group_size: int = 16, outputs: int = 2, inputs: int = 24
) -> QuantizedWeight:
    rng = np.random.default_rng(0)
    zeros = np.asarray(zeros, np.uint8)[np.arange(outputs) % 2]
    scales = rng.uniform(0.01, 1, zeros.shape).astype(np.float16)
    return QuantizedWeight(rng.integers(0, 1 << bits, (outputs, inputs), np.uint8), scales, zeros, group_size, bits)


GPTQ, AWQ = FileFormat("gptq", 4, 16), FileFormat("awq", 4, 16)
SCRAMBLED = replace(_weight(outputs=8), group_index=np.array([1] * 8 + [0] * 16, np.int32))


@pytest.mark.parametrize(
    ("weight", "form", "message"),
    [
        (_weight(), FileFormat("gptq", 8, 16), "of 4 bits in groups of 16 is not what the configuration says: 8 bits"),
        (_weight(), FileFormat("gptq", 4, 32), "is not what the configuration says: 4 bits, groups of 32"),
        (_weight(bits=8), FileFormat("awq", 8, 16), "AWQ files have no 8 bits"),
        (_weight(), FileFormat("gptq", 4, 16, symmetric=True), "says symmetric; zero points other than the middle"),
        (SCRAMBLED, AWQ, "AWQ files have no group index: act-order needs the GPTQ format"),
        (_weight(outputs=8), AWQ, "AWQ needs whole groups: 16 does not divide 24 inputs"),
        (_weight(outputs=4, inputs=32), AWQ, "eight a word, and 4 is not a multiple of 8"),
        (replace(_weight(), scales=np.full((2, 2), 0.1, np.float32)), GPTQ, "scales as float16, and these do not fit"),
        (replace(_weight(), scales=np.full((2, 2), 1e6, np.float32)), GPTQ, "scales as float16, and these do not fit"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(weight: QuantizedWeight, form: FileFormat, message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        pack(weight, form)


def test_scales_of_more_bits_are_written_where_half_floats_hold_them() -> None:
    weight = _weight()
    wide = replace(weight, scales=weight.scales.astype(np.float32))
    _same(unpack(pack(wide, GPTQ), GPTQ), weight)


# What cannot be read


def _change(tensors: Tensors, **changes: npt.NDArray[Any]) -> Tensors:
    return {**tensors, **changes}


STORED = pack(_weight(outputs=8), GPTQ)
AWQ_STORED = pack(_weight(outputs=8, inputs=32), AWQ)


@pytest.mark.parametrize(
    ("tensors", "form", "message"),
    [
        (_change(STORED, qweight=STORED["qweight"][:2]), GPTQ, r"qweight has shape \(2, 8\); .* has \(3, 8\)"),
        (_change(STORED, qzeros=STORED["qzeros"][:1]), GPTQ, r"qzeros has shape \(1, 1\); .* has \(2, 1\)"),
        (_change(STORED, scales=STORED["scales"][:1]), GPTQ, r"scales has shape \(1, 8\); .* has \(2, 8\)"),
        (STORED, FileFormat("gptq", 8, 16), r"qweight has shape \(3, 8\); .* with 8 bits has \(6, 8\)"),
        (STORED, FileFormat("gptq", 4, 128), r"qzeros has shape .*in groups of 128 with 4 bits has \(1, 1\)"),
        (_change(AWQ_STORED, g_idx=STORED["g_idx"]), AWQ, "has no such tensor"),
        (_change(AWQ_STORED, qweight=AWQ_STORED["qweight"][:16]), AWQ, r"qzeros has shape \(2, 1\); .* has \(1, 1\)"),
        (_change(AWQ_STORED, scales=AWQ_STORED["scales"][:, :7]), AWQ, "7 is not a multiple of 8"),
        (
            _change(STORED, scales=np.full((2, 8), np.nan, np.float16)),
            GPTQ,
            "a scale is NaN or infinite; the checkpoint",
        ),
        (_change(STORED, scales=np.full((2, 8), np.inf, np.float16)), GPTQ, "a scale is NaN or infinite"),
        (_change(STORED, g_idx=np.full(24, 2, np.int32)), GPTQ, "g_idx counts groups 2 to 2; expected 0 to 1"),
        (_change(STORED, g_idx=np.arange(-1, 23, dtype=np.int32)), GPTQ, "g_idx counts groups -1 to 22"),
        (_change(STORED, g_idx=np.zeros(24, np.int32)), GPTQ, "g_idx does not divide 24 inputs into groups of 16"),
        (STORED, FileFormat("gptq", 4, 16, symmetric=True), "are stored as 7 or 8; found 1 to 15: weights and"),
    ],
)
def test_files_that_do_not_fit_their_configuration_are_refused(
    tensors: Tensors, form: FileFormat, message: str
) -> None:
    with pytest.raises(QuantizationError, match=message):
        unpack(tensors, form)
