"""A Linear layer whose weight is quantized: 4- or 8-bit codes with a scale and a zero point a group.

`x (…, inputs) → (…, outputs)`. Checkpoint: the layer's own `weight`, rounded here, or the codes it is stored as
(`quantized_checkpoint.py`), which come into the graph as they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import QuantizationError
from ..quantize.grid import Grid
from ..quantize.packing import (
    Floats,
    QuantizedWeight,
    block_size,
    pack_dequantize_linear,
    pack_dequantize_linear_symmetric,
    pack_matmul_nbits,
)
from ..quantize.rtn import round_to_nearest
from . import graph
from .graph import CONTRIB, Array, Module, Op, Parameter, Style, TensorSource, Value, WeightForm

_CODE_TYPES = {4: (graph.UINT4, graph.INT4), 8: (graph.UINT8, graph.INT8)}


class QuantizedLinear(Module):
    """`ort`: one MatMulNBits. `standard`: DequantizeLinear on blocks of codes, then MatMul, which providers fuse.

    A symmetric weight has no zero points in the graph. In `standard` its codes are signed: TensorRT takes no others.
    Act-order costs one Gather of the input, which puts the inputs of each group side by side.
    """

    def __init__(
        self, inputs: int, outputs: int, style: Style, form: WeightForm, *,
        bias: bool = True, rows: npt.NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs, self.outputs, self.style, self.form, self.rows = inputs, outputs, style, form, rows
        self.block_size = block_size(inputs if form.group_size == -1 else form.group_size, inputs)
        blocks = -(-inputs // self.block_size)
        if style.contrib:
            code_bytes = self.block_size * form.bits // 8
            self.weight = Parameter((outputs, blocks, code_bytes), graph.UINT8)
            self.scales = Parameter((outputs, blocks), style.dtype)
            zeros, zeros_type = (outputs, -(-blocks * form.bits // 8)), graph.UINT8
        else:
            unsigned, signed = _CODE_TYPES[form.bits]
            self.weight = Parameter((inputs, outputs), signed if form.symmetric else unsigned)
            self.scales = Parameter((blocks, outputs), style.dtype)
            zeros, zeros_type = (blocks, outputs), unsigned
        self.zeros = None if form.symmetric else Parameter(zeros, zeros_type)
        self.order = Parameter((inputs,), graph.INT64) if form.reordered else None
        self.bias = Parameter((outputs,), style.dtype) if bias else None

    def forward(self, op: Op, x: Value) -> Value:
        """Emit the product with the quantized weight and, with a bias, Add."""
        if self.order is not None:
            x = op.Gather(x, self.order, axis=-1)
        if self.style.contrib:
            y = op.MatMulNBits(
                x, self.weight, self.scales, *self._zeros(),
                K=self.inputs, N=self.outputs, bits=self.form.bits, block_size=self.block_size,
                accuracy_level=self.style.accuracy_level, _domain=CONTRIB,
            )  # fmt: skip
        else:
            dequantized = op.DequantizeLinear(
                self.weight, self.scales, *self._zeros(), axis=0, block_size=self.block_size
            )
            y = op.MatMul(x, dequantized)
        return op.Add(y, self.bias) if self.bias is not None else y

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[Value, Array]]:
        """Take the checkpoint's codes, or quantize its weight, and pack them for the dialect."""
        name, shape = f"{prefix}weight", (self.outputs, self.inputs)
        try:
            if self.form.source is not None:
                quantized = source.quantized(name, shape)
            else:
                weight = source.read(name, shape).astype(np.float32)
                quantized = round_to_nearest(weight, self._grid())
            yield from self._packed(quantized)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
        if self.bias is not None:
            bias = source.read(f"{prefix}bias", (self.outputs,))
            yield self.bias, bias if self.rows is None else bias[self.rows]

    def _grid(self) -> Grid:
        return Grid(self.form.bits, self.form.group_size, self.form.symmetric, self.style.numpy_dtype)

    def _packed(self, quantized: QuantizedWeight) -> Iterator[tuple[Value, Array]]:
        if self.rows is not None:
            quantized = quantized.of_rows(self.rows)
        quantized, order = quantized.in_group_order()
        quantized = quantized.in_blocks(self.block_size)
        if self.order is not None:
            assert order is not None  # as the form says
            yield self.order, order
        if not self.style.contrib and self.form.symmetric:
            codes, scales = pack_dequantize_linear_symmetric(quantized)
        else:
            pack = pack_matmul_nbits if self.style.contrib else pack_dequantize_linear
            codes, scales, zeros = pack(quantized)
            if self.zeros is not None:
                yield self.zeros, zeros
        yield self.weight, codes
        yield self.scales, self._exact(scales)

    def _exact(self, scales: Floats) -> Floats:
        """`scales` in the graph's float type: the same numbers, as the codes were chosen for them."""
        dtype = self.style.numpy_dtype
        with np.errstate(over="ignore"):  # found below
            stored: Floats = scales.astype(dtype)
        if not np.array_equal(stored, scales):
            raise QuantizationError(
                f"its scales, {scales.min():.3g} to {scales.max():.3g}, do not all fit {dtype} exactly; "
                "export with 32-bit floats (--dtype float32)"
            )
        return stored

    def _zeros(self) -> list[ir.Value]:
        return [] if self.zeros is None else [self.zeros]
