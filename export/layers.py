"""Leaf modules: the only places, with `attention.py` and `quantized_linear.py`, that know dialect and weight format.

Shapes are those of `torch.nn` as the checkpoint has them; arrays are changed on their way into the graph where that
saves work at run time (a Linear is stored transposed, a quantized one packed).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .graph import Array, Module, Op, Parameter, Style, TensorSource, Value, WeightForm
from .quantized_linear import QuantizedLinear

_FLOAT16_BOUND = 65504.0 - 1000.0  # the reference's
_ROWS_AT_ONCE = 4096  # rows of a large table converted at a time: 4096 × 3584 × 4 bytes = 59 MB


def linear(
    inputs: int, outputs: int, style: Style, *, bias: bool = True, rows: npt.NDArray[np.int64] | None = None
) -> Module:
    """Return a Linear layer in the weight format of `style`: as the checkpoint has it quantized, else as asked for.

    `rows (outputs)` puts the outputs in another order than the checkpoint's.
    """
    form = style.stored_form
    if form is None and style.bits is not None:
        form = WeightForm("rtn", style.bits, style.group_size)
    if form is not None:
        return QuantizedLinear(inputs, outputs, style, form, bias=bias, rows=rows)
    return Linear(inputs, outputs, style, bias=bias, rows=rows)


def output_head(inputs: int, outputs: int, style: Style) -> Module:
    """Return a head onto a vocabulary: floats, unless the checkpoint has it quantized."""
    if style.stored_form is not None:
        return QuantizedLinear(inputs, outputs, style, style.stored_form, bias=False)
    return OutputHead(inputs, outputs, style)


class Linear(Module):
    """`x (…, inputs) → (…, outputs)`; the weight is stored as MatMul wants it, `(inputs, outputs)`."""

    def __init__(
        self, inputs: int, outputs: int, style: Style, *, bias: bool = True, rows: npt.NDArray[np.int64] | None = None
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self.rows = inputs, outputs, rows
        self.weight = Parameter((inputs, outputs), style.dtype)
        self.bias = Parameter((outputs,), style.dtype) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """Emit MatMul and, with a bias, Add."""
        y = op.MatMul(x, self.weight)
        return op.Add(y, self.bias) if self.bias is not None else y

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[Value, Array]]:
        """Transpose the checkpoint's `(outputs, inputs)`."""
        rows = slice(None) if self.rows is None else self.rows
        yield self.weight, source.read(f"{prefix}weight", (self.outputs, self.inputs))[rows].T
        if self.bias is not None:
            yield self.bias, source.read(f"{prefix}bias", (self.outputs,))[rows]


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
