"""How the files of a checkpoint hold quantized weights: GPTQ and AWQ GEMM, both ways.

Inputs: a `QuantizedWeight (N, K)` → outputs: the tensors stored under the layer's name, and back. Everything is packed
into int32 words, lowest bits first.

| | GPTQ | AWQ GEMM |
|---|---|---|
| `qweight` | `(⌈K · bits / 32⌉, N)`, a word holds consecutive inputs | `(K, N / 8)`, a word holds eight outputs |
| `qzeros` | `(G, ⌈N · bits / 32⌉)`, a word holds consecutive outputs | `(G, N / 8)`, a word holds eight outputs |
| `scales` | float16 `(G, N)` | float16 `(G, N)` |
| `g_idx` | int32 `(K)`, the group of each input | none |
| bits | 4, 8 | 4 |

AWQ's nibble `i` of a word is output `[0, 2, 4, 6, 1, 3, 5, 7][i]` of its eight (AutoAWQ 0.2.9, `WQLinear_GEMM`).

GPTQ has two versions that differ in `qzeros` alone. Version 2 (`checkpoint_format: gptq_v2`) stores the zero point.
Version 1 (`gptq`) stores it less one, and a zero point of 0 has no agreed form there: gptqmodel subtracts
0x11111111 from the whole word, so that the 0 borrows from its neighbour, others wrap each code by itself, and older
ones spilled into the whole word. Here a zero point of 0 is never written as version 1. When reading, a stored code
less than the largest is plain; where the largest (a 0, wrapped) occurs, the word is read as gptqmodel's if the file
says it is, and refused otherwise. Some writers (gptqmodel 5, Qwen/Qwen3.5-27B-GPTQ-Int4: vllm pull request 38966) say
`gptq` and store version 2; in a symmetric file the stored zero points tell which it is, and are believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import QuantizationError
from .packing import Codes, Indices, QuantizedWeight, pack_nibbles, unpack_nibbles

Words = npt.NDArray[np.int32]
Tensors = Mapping[str, npt.NDArray[Any]]
Method = Literal["awq", "gptq"]

_WORD_BYTES = 4
_INTERLEAVED = np.array([0, 2, 4, 6, 1, 3, 5, 7])
_IN_ORDER = np.argsort(_INTERLEAVED)


@dataclass(frozen=True)
class FileFormat:
    """How a quantized weight is stored: what a `quantization_config` says of it."""

    method: Method
    bits: int
    group_size: int
    """−1: a group is a whole row."""
    symmetric: bool = False
    """The file says that every zero point is the middle code. (AWQ GEMM stores them all the same.)"""
    version: Literal[1, 2] = 2
    """GPTQ: 1 stores zero points less one, 2 as they are."""
    borrows: bool = False
    """GPTQ version 1: a zero point of 0 borrowed from its neighbour in the word (gptqmodel)."""

    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors a layer must have; GPTQ may do without `g_idx`."""
        return ("qweight", "qzeros", "scales")

    def shape(self, tensors: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """`(N, K)` of a weight whose stored tensors have the shapes `tensors`; they are not checked here."""
        outputs = tensors["scales"][-1]
        if self.method == "awq":
            return outputs, tensors["qweight"][0]
        if "g_idx" in tensors:  # counts the inputs, where the last word is not full
            return outputs, tensors["g_idx"][0]
        return outputs, tensors["qweight"][0] * 32 // self.bits

    def groups_of(self, inputs: int) -> int:
        """Inputs a group has in a weight of `inputs`."""
        return inputs if self.group_size == -1 else self.group_size

    def config(self, *, quantizer: str, algorithm: str | None = None, act_order: bool = False) -> dict[str, Any]:
        """Return the `quantization_config` that describes this format.

        `quantizer` is who chose the codes, as `name:version`; `algorithm` how, if not by the method that the format is
        called after.
        """
        common = {"quant_method": self.method, "bits": self.bits, "group_size": self.group_size}
        meta: dict[str, Any] = {"quantizer": [quantizer]}
        if algorithm is not None:
            meta["algorithm"] = algorithm
        if self.method == "awq":
            return {**common, "zero_point": True, "version": "gemm", "modules_to_not_convert": None, "meta": meta}
        return {
            **common,
            "desc_act": act_order,
            "sym": self.symmetric,
            "lm_head": False,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
            "pack_dtype": "int32",
            "meta": meta,
        }


def pack(weight: QuantizedWeight, form: FileFormat) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors that store `weight`, by name (`qweight`, …).

    Raises `QuantizationError` for what the format cannot hold: other bits or group sizes than `form` says, a scale
    float16 cannot hold exactly, a zero point of 0 in GPTQ version 1, and in AWQ act-order, a ragged last group, or a
    number of outputs that 8 does not divide.
    """
    _check_fits(weight, form)
    scales = _half_scales(weight)
    if form.method == "awq":
        codes, zeros = _interleave(weight.codes.T, _INTERLEAVED), _interleave(weight.zeros.T, _INTERLEAVED)
        return {"qweight": _to_words(codes, 4), "qzeros": _to_words(zeros, 4), "scales": scales}
    zeros = weight.zeros.T
    if form.version == 1:
        if not zeros.all():
            raise QuantizationError(
                "a zero point of 0 has no agreed form in GPTQ version 1: write version 2, or keep zero points above 0"
            )
        zeros = zeros - np.uint8(1)
    return {
        "qweight": np.ascontiguousarray(_to_words(weight.codes, form.bits).T),
        "qzeros": _to_words(zeros, form.bits),
        "scales": scales,
        "g_idx": weight.column_groups(),
    }


def unpack(tensors: Tensors, form: FileFormat) -> QuantizedWeight:
    """Return the weight that `tensors` store, its scales in the type they have there.

    Raises `QuantizationError` when shapes do not fit each other or the format, a scale is not finite, indices do not
    make groups of the size the format says, or zero points are not what it says.
    """
    outputs, inputs = form.shape({name: tensor.shape for name, tensor in tensors.items()})
    check_shapes({name: tensor.shape for name, tensor in tensors.items()}, form)
    if not np.isfinite(tensors["scales"]).all():
        raise QuantizationError("a scale is NaN or infinite; the checkpoint is damaged: download it again")
    zeros = unpack_zeros(tensors["qzeros"], outputs, form)
    if form.method == "awq":
        codes = np.ascontiguousarray(_interleave(_from_words(tensors["qweight"], 4, outputs), _IN_ORDER).T)
        group_index = None
    else:
        codes = _from_words(np.ascontiguousarray(tensors["qweight"].T), form.bits, inputs)
        group_index = unpack_index(tensors["g_idx"], len(zeros.T), form) if "g_idx" in tensors else None
    scales = np.ascontiguousarray(tensors["scales"].T)
    return QuantizedWeight(codes, scales, zeros, form.groups_of(inputs), form.bits, group_index)


def unpack_zeros(qzeros: Words, outputs: int, form: FileFormat) -> Codes:
    """Return the zero points `(N, G)` of `outputs` rows; errors as `unpack`."""
    if form.method == "awq":
        return np.ascontiguousarray(_interleave(_from_words(qzeros, 4, outputs), _IN_ORDER).T)
    stored = _from_words(qzeros, form.bits, outputs)
    largest = (1 << form.bits) - 1
    middle = (largest + 1) // 2
    version = form.version
    if form.symmetric:
        if not ((stored == middle).all() or (stored == middle - 1).all()):
            raise QuantizationError(
                f"the configuration says symmetric, so that zero points are stored as {middle - 1} or {middle}; found "
                f"{stored.min()} to {stored.max()}: weights and configuration are of different checkpoints"
            )
        version = 2 if stored[0, 0] == middle else 1
    if version == 2:
        return np.ascontiguousarray(stored.T)
    if not form.borrows and (stored == largest).any():
        raise QuantizationError(
            f"a zero point is stored as {largest} in GPTQ version 1, which writers of that version mean differently; "
            "store the checkpoint as version 2 (checkpoint_format gptq_v2) with the program that wrote it"
        )
    ones = np.uint32(0x11111111 if form.bits == 4 else 0x01010101)
    plain = (np.ascontiguousarray(qzeros).view(np.uint32) + ones).view(np.int32)  # modulo 2³², carries and all
    return np.ascontiguousarray(_from_words(plain, form.bits, outputs).T)


def unpack_index(g_idx: Indices, groups: int, form: FileFormat) -> Indices | None:
    """Return `g_idx`, or None if every input is in the group its place says; errors as `unpack`."""
    if g_idx.size and not 0 <= int(g_idx.min()) <= int(g_idx.max()) < groups:
        raise QuantizationError(f"g_idx counts groups {g_idx.min()} to {g_idx.max()}; expected 0 to {groups - 1}")
    in_order = np.arange(len(g_idx)) // form.groups_of(len(g_idx))
    if not np.array_equal(np.sort(g_idx), in_order):
        raise QuantizationError(
            f"g_idx does not divide {len(g_idx)} inputs into groups of {form.groups_of(len(g_idx))}; "
            "weights and configuration are of different checkpoints"
        )
    return None if np.array_equal(g_idx, in_order) else g_idx


def check_shapes(shapes: Mapping[str, tuple[int, ...]], form: FileFormat) -> None:
    """Raise `QuantizationError` unless the stored tensors of a layer have shapes that fit each other."""
    outputs, inputs = form.shape(shapes)
    groups = math.ceil(inputs / form.groups_of(inputs)) if inputs else 0
    per_word = 32 // form.bits
    words = math.ceil(outputs / per_word)
    if form.method == "awq":
        expected: dict[str, tuple[int, ...]] = {"qweight": (inputs, words), "qzeros": (groups, words)}
        if outputs % per_word:
            raise QuantizationError(f"AWQ stores outputs eight a word, and {outputs} is not a multiple of 8")
    else:
        expected = {"qweight": (math.ceil(inputs / per_word), outputs), "qzeros": (groups, words), "g_idx": (inputs,)}
    expected["scales"] = (groups, outputs)
    for name, shape in shapes.items():
        if shape != expected.get(name):
            raise QuantizationError(
                f"{name} has shape {shape}; a weight of {outputs} outputs and {inputs} inputs in groups of "
                f"{form.groups_of(inputs)} with {form.bits} bits has {expected.get(name, 'no such tensor')}: "
                "weights and configuration are of different checkpoints"
            )


def _check_fits(weight: QuantizedWeight, form: FileFormat) -> None:
    outputs, inputs = weight.codes.shape
    if (weight.bits, weight.group_size) != (form.bits, form.groups_of(inputs)):
        raise QuantizationError(
            f"a weight of {weight.bits} bits in groups of {weight.group_size} is not what the configuration says: "
            f"{form.bits} bits, groups of {form.groups_of(inputs)}"
        )
    if form.bits not in ((4,) if form.method == "awq" else (4, 8)):
        raise QuantizationError(f"{form.method.upper()} files have no {form.bits} bits here")
    if form.symmetric and not weight.symmetric:
        raise QuantizationError("the configuration says symmetric; zero points other than the middle code were found")
    if form.method != "awq":
        return
    if weight.group_index is not None:
        raise QuantizationError("AWQ files have no group index: act-order needs the GPTQ format")
    if inputs % weight.group_size:
        raise QuantizationError(f"AWQ needs whole groups: {weight.group_size} does not divide {inputs} inputs")
    if outputs % 8:
        raise QuantizationError(f"AWQ stores outputs eight a word, and {outputs} is not a multiple of 8")


def _half_scales(weight: QuantizedWeight) -> npt.NDArray[np.float16]:
    """Scales `(G, N)` as all readers expect them."""
    with np.errstate(over="ignore"):  # found below
        half = weight.scales.T.astype(np.float16, order="C")
    if not np.array_equal(half, weight.scales.T):
        raise QuantizationError(
            "the files hold scales as float16, and these do not fit exactly; quantize with scales rounded to float16"
        )
    return half


def _to_words(codes: Codes, bits: int) -> Words:
    """Pack the last axis into 32-bit words, lowest bits first, the last filled with 0."""
    packed = pack_nibbles(codes) if bits == 4 else codes
    padding = -packed.shape[-1] % _WORD_BYTES
    packed = np.pad(packed, ((0, 0), (0, padding)))
    return np.ascontiguousarray(packed).view("<i4").astype(np.int32, copy=False)


def _from_words(words: Words, bits: int, count: int) -> Codes:
    """Undo `_to_words`: the first `count` codes of the last axis."""
    packed = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    return unpack_nibbles(packed, count) if bits == 4 else packed[..., :count]


def _interleave(codes: Codes, order: npt.NDArray[np.intp]) -> Codes:
    """Reorder each eight of the last axis."""
    eights = codes.reshape(*codes.shape[:-1], -1, 8)
    return eights[..., order].reshape(codes.shape)
