"""Leaf modules: the only places, with `attention.py`, that know the dialect and the weight format.

Shapes are those of `torch.nn` as the checkpoint has them; arrays are changed on their way into the graph where that
saves work at run time (a Linear is stored transposed, an INT4 Linear packed).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ..errors import QuantizationError
from ..quantize.packing import pack_dequantize_linear, pack_matmul_nbits
from ..quantize.rtn import round_to_nearest
from .graph import CONTRIB, UINT4, UINT8, Array, Module, Op, Parameter, Style, TensorSource, Value

_FLOAT16_BOUND = 65504.0 - 1000.0  # the reference's
_ROWS_AT_ONCE = 4096  # rows of a large table converted at a time: 4096 × 3584 × 4 bytes = 59 MB


def linear(inputs: int, outputs: int, style: Style, *, bias: bool = True) -> Module:
    """Return a Linear layer in the weight format of `style`."""
    if style.bits == 4:
        return Int4Linear(inputs, outputs, style, bias=bias)
    return Linear(inputs, outputs, style, bias=bias)


class Linear(Module):
    """`x (…, inputs) → (…, outputs)`; the weight is stored as MatMul wants it, `(inputs, outputs)`."""

    def __init__(self, inputs: int, outputs: int, style: Style, *, bias: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.weight = Parameter((inputs, outputs), style.dtype)
        self.bias = Parameter((outputs,), style.dtype) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """Emit MatMul and, with a bias, Add."""
        y = op.MatMul(x, self.weight)
        return op.Add(y, self.bias) if self.bias is not None else y

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[Value, Array]]:
        """Transpose the checkpoint's `(outputs, inputs)`."""
        yield self.weight, source.read(f"{prefix}weight", (self.outputs, self.inputs)).T
        if self.bias is not None:
            yield self.bias, source.read(f"{prefix}bias", (self.outputs,))


class Int4Linear(Module):
    """A Linear whose weight is 4-bit codes with a scale and a zero point a group (`quantize/packing.py`).

    `ort`: one MatMulNBits. `standard`: DequantizeLinear on uint4 blocks, then MatMul, which providers fuse.
    """

    def __init__(self, inputs: int, outputs: int, style: Style, *, bias: bool = True) -> None:
        super().__init__()
        self.inputs, self.outputs, self.style = inputs, outputs, style
        groups = -(-inputs // style.group_size)
        if style.contrib:
            self.weight = Parameter((outputs, groups, style.group_size // 2), UINT8)
            self.scales = Parameter((outputs, groups), style.dtype)
            self.zeros = Parameter((outputs, -(-groups // 2)), UINT8)
        else:
            self.weight = Parameter((inputs, outputs), UINT4)
            self.scales = Parameter((groups, outputs), style.dtype)
            self.zeros = Parameter((groups, outputs), UINT4)
        self.bias = Parameter((outputs,), style.dtype) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """Emit the 4-bit product and, with a bias, Add."""
        if self.style.contrib:
            y = op.MatMulNBits(
                x, self.weight, self.scales, self.zeros,
                K=self.inputs, N=self.outputs, bits=4, block_size=self.style.group_size,
                accuracy_level=self.style.accuracy_level, _domain=CONTRIB,
            )  # fmt: skip
        else:
            dequantized = op.DequantizeLinear(
                self.weight, self.scales, self.zeros, axis=0, block_size=self.style.group_size
            )
            y = op.MatMul(x, dequantized)
        return op.Add(y, self.bias) if self.bias is not None else y

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[Value, Array]]:
        """Quantize the checkpoint's weight and pack it for the dialect."""
        weight = source.read(f"{prefix}weight", (self.outputs, self.inputs)).astype(np.float32)
        try:
            quantized = round_to_nearest(weight, self.style.group_size, self.style.numpy_dtype)
        except QuantizationError as error:
            raise QuantizationError(f"{prefix}weight: {error}") from error
        pack = pack_matmul_nbits if self.style.contrib else pack_dequantize_linear
        yield from zip((self.weight, self.scales, self.zeros), pack(quantized), strict=True)
        if self.bias is not None:
            yield self.bias, source.read(f"{prefix}bias", (self.outputs,))


class OutputHead(Module):
    """A Linear without bias onto a vocabulary, `x (1, inputs) → (1, outputs)`, kept as the checkpoint has it.

    Gemm reads `(outputs, inputs)` directly, so that a head of a gigabyte is copied in row blocks and never transposed.
    """

    def __init__(self, inputs: int, outputs: int, style: Style) -> None:
        super().__init__()
        self.inputs, self.outputs, self.style = inputs, outputs, style
        self.weight = Parameter((outputs, inputs), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit Gemm with the weight transposed."""
        return op.Gemm(x, self.weight, transB=1)

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[Value, Array]]:
        """Convert row block by row block."""
        shape = (self.outputs, self.inputs)
        array = np.empty(shape, self.style.numpy_dtype)
        for start, rows in source.rows(f"{prefix}weight", shape, _ROWS_AT_ONCE):
            array[start : start + len(rows)] = rows
        yield self.weight, array


class RMSNorm(Module):
    """`x · weight / sqrt(mean(x²) + epsilon)` over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, size: int, epsilon: float, style: Style) -> None:
        super().__init__()
        self.epsilon, self.style = epsilon, style
        self.weight = Parameter((size,), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit the dialect's normalization; both keep the sum of squares in float32."""
        if self.style.contrib:
            return op.SimplifiedLayerNormalization(x, self.weight, axis=-1, epsilon=self.epsilon, stash_type=1)
        return op.RMSNormalization(x, self.weight, axis=-1, epsilon=self.epsilon, stash_type=1)


class LayerNorm(Module):
    """Layer normalization over the last axis with weight and bias."""

    def __init__(self, size: int, epsilon: float, style: Style) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = Parameter((size,), style.dtype)
        self.bias = Parameter((size,), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit LayerNormalization."""
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self.epsilon)


class Conv1d(Module):
    """1-D convolution `(B, in, T) → (B, out, T′)` with bias."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, style: Style, *, stride: int = 1, padding: int = 0,
        dilation: int = 1, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.stride, self.padding, self.dilation = kernel, stride, padding, dilation
        self.weight = Parameter((outputs, inputs, kernel), style.dtype)
        self.bias = Parameter((outputs,), style.dtype) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """Emit Conv."""
        return op.Conv(
            x, self.weight, self.bias, kernel_shape=[self.kernel], strides=[self.stride],
            pads=[self.padding, self.padding], dilations=[self.dilation],
        )  # fmt: skip


def constant(op: Op, value: float, style: Style) -> Value:
    """Return a scalar in the style's float type."""
    return op.Constant(value=ir.tensor(np.array(value, style.numpy_dtype)))


def bounded(op: Op, x: Value, style: Style) -> Value:
    """In float16 stop short of infinity, which a norm would turn into NaN; nothing in float32.

    The reference does so in its audio encoder. The vision encoder's last feed-forward is known to pass the range of a
    half float at some image sizes (llama.cpp issue 17534).
    """
    if style.float_type == "float32":
        return x
    return op.Clip(x, constant(op, -_FLOAT16_BOUND, style), constant(op, _FLOAT16_BOUND, style))


def silu(op: Op, x: Value) -> Value:
    """`x · sigmoid(x)`."""
    return op.Mul(x, op.Sigmoid(x))
