"""What a graph file says of its weights and products, read without loading it, so that memory is known beforehand.

Input: `<component>.onnx`, whose weights lie in a file of their own → output: `GraphFacts`. Of ONNX's protobuf
(onnx.proto3) only the handful of fields needed is read; numbers below are its field numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BundleError

Field = tuple[int, int | memoryview]
"""Number of a field, and its value: a whole number, or the bytes of a string or of a message inside the message."""

_FLOAT32, _FLOAT16 = 1, 10  # TensorProto.DataType
_BITS = {_FLOAT32: 32, _FLOAT16: 16, 2: 8, 3: 8, 6: 32, 7: 64, 9: 8, 11: 64, 21: 4, 22: 4}
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class GraphFacts:
    """What memory depends on."""

    float32_bytes: int
    float16_bytes: int
    packed_bytes: int
    """Weights of all other types: codes of 4 or 8 bits with their zero points."""
    largest_float_elements: int
    """Of the largest weight stored as floats."""
    widths: frozenset[int]
    """Columns of the results of all products with a weight."""
    heads: int
    """Of its attention; 0 without any."""
    last_channels: int
    """Channels of the convolution that ends in a single one, a waveform; 0 without any."""


@dataclass(frozen=True)
class _Weight:
    data_type: int
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return -(-self.elements * _BITS.get(self.data_type, 32) // 8)


def read_graph_facts(path: Path) -> GraphFacts:
    """Read a graph file; raises `BundleError` when it is none."""
    weights: dict[str, _Weight] = {}
    widths: set[int] = set()
    heads = last_channels = 0
    try:
        fields = list(_graph(memoryview(path.read_bytes())))
        for number, value in fields:
            if number == 5:  # GraphProto.initializer
                name, weight = _weight(_bytes(value))
                weights[name] = weight
        for number, value in fields:
            if number != 1:  # GraphProto.node
                continue
            operator, inputs, settings = _node(_bytes(value))
            heads = max(heads, settings.get("num_heads", 0), settings.get("q_num_heads", 0))
            shapes = [weights[name].shape for name in inputs if name in weights]
            match operator:
                case "MatMulNBits":
                    widths.add(settings["N"])
                case "MatMul" | "DequantizeLinear":
                    widths.update(shape[1] for shape in shapes if len(shape) == 2)
                case "Conv" if shapes and shapes[0][0] == 1:
                    last_channels = max(last_channels, shapes[0][1])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is not an ONNX graph ({error}); export the bundle again") from error
    floats = [weight for weight in weights.values() if weight.data_type in (_FLOAT32, _FLOAT16)]
    by_type = {kind: sum(w.size_bytes for w in floats if w.data_type == kind) for kind in (_FLOAT32, _FLOAT16)}
    return GraphFacts(
        float32_bytes=by_type[_FLOAT32],
        float16_bytes=by_type[_FLOAT16],
        packed_bytes=sum(weight.size_bytes for weight in weights.values()) - sum(by_type.values()),
        largest_float_elements=max((weight.elements for weight in floats), default=0),
        widths=frozenset(widths),
        heads=heads,
        last_channels=last_channels,
    )


def _graph(model: memoryview) -> Iterator[Field]:
    """Fields of the graph of a model."""
    for number, value in _fields(model):
        if number == 7:  # ModelProto.graph
            yield from _fields(_bytes(value))
            return
    raise ValueError("no graph in it")


def _weight(tensor: memoryview) -> tuple[str, _Weight]:
    """Name, type and shape of a TensorProto."""
    name, data_type, shape = "", 0, list[int]()
    for number, value in _fields(tensor):
        if number == 1:  # dims, one by one or packed
            shape += [value] if isinstance(value, int) else _varints(value)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8:
            name = _text(value)
    return name, _Weight(data_type, tuple(shape))


def _node(node: memoryview) -> tuple[str, list[str], dict[str, int]]:
    """Operator of a NodeProto, the names of its inputs, its attributes that are whole numbers."""
    operator, inputs, settings = "", list[str](), dict[str, int]()
    for number, value in _fields(node):
        if number == 1:
            inputs.append(_text(value))
        elif number == 4:
            operator = _text(value)
        elif number == 5:
            attribute = dict(_fields(_bytes(value)))
            whole = attribute.get(3)  # AttributeProto.i
            if isinstance(whole, int):
                settings[_text(attribute[1])] = whole
    return operator, inputs, settings


def _fields(message: memoryview) -> Iterator[Field]:
    """Fields of a message in order (wire format: protobuf.dev/programming-guides/encoding)."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        value: int | memoryview
        if kind == _VARINT:
            value, place = _varint(message, place)
        else:
            length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(kind, -1)
            if kind == _LENGTH:
                length, place = _varint(message, place)
            if length < 0 or place + length > len(message):
                raise ValueError(f"no field at byte {place}")
            value = message[place : place + length]
            place += length
        yield tag >> 3, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, lowest first; returns the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _varints(packed: memoryview) -> list[int]:
    values, place = list[int](), 0
    while place < len(packed):
        value, place = _varint(packed, place)
        values.append(value)
    return values


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message is expected")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8")
