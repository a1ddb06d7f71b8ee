"""The vision encoder: patches of images or video frames in, one embedding for every 2 × 2 patches out.

Inputs: `pixels f (T, P, 1176)`, T temporal patches (two frames each) of P patches in window order; `positions int64
(P, 2)`, row and column; `window_slots int64 (W, 64)`, the patch in each slot of each window, −1 where a window is cut
by the image's edge; `patch_slots int64 (P)`, the slot of each patch, counted through all windows.
Outputs: `embeddings f (T, P/4, D)` in window order. Checkpoint prefix: `thinker.visual.`.

Most layers attend inside windows of 112 × 112 pixels, a few over the whole temporal patch (Qwen2.5-VL, arXiv
2502.13923, section 2.1.1). Nothing crosses temporal patches, so they are a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..errors import CheckpointError
from .attention import MASKED, full_attention, rotary
from .config import Section
from .graph import (
    FLOAT32,
    INT64,
    Array,
    ComponentGraph,
    Module,
    ModuleList,
    Op,
    Parameter,
    Port,
    Style,
    TensorSource,
    Value,
    build,
)
from .layers import RMSNorm, bounded, constant, linear, silu

_NORM_EPSILON = 1e-6  # the reference's constant


@dataclass(frozen=True)
class VisionEncoderConfig:
    """Settings of the vision encoder."""

    channels: int
    patch_pixels: int
    temporal_patch_frames: int
    merge_patches: int
    window_pixels: int
    width: int
    layers: int
    heads: int
    ffn: int
    full_attention_layers: tuple[int, ...]
    rope_theta: float
    output_width: int

    @classmethod
    def from_hf(cls, section: Section) -> VisionEncoderConfig:
        """Read `thinker_config.vision_config`, either spelling; raises `CheckpointError` for what is not done here."""
        activation = section.text("hidden_act", default="silu")
        if activation != "silu":
            raise CheckpointError(f"{section.path}.hidden_act is {activation!r}; Nearfield's is 'silu'")
        rope = section.section("rope_parameters") if section.has("rope_parameters") else section
        config = cls(
            channels=section.integer("in_channels", "in_chans", default=3),
            patch_pixels=section.integer("patch_size"),
            temporal_patch_frames=section.integer("temporal_patch_size"),
            merge_patches=section.integer("spatial_merge_size"),
            window_pixels=section.integer("window_size"),
            width=section.integer("hidden_size"),
            layers=section.integer("depth", "num_hidden_layers"),
            heads=section.integer("num_heads", "num_attention_heads"),
            ffn=section.integer("intermediate_size"),
            full_attention_layers=section.integers("fullatt_block_indexes"),
            rope_theta=rope.number("rope_theta", default=10_000.0),
            output_width=section.integer("out_hidden_size"),
        )
        if config.window_pixels % (config.patch_pixels * config.merge_patches):
            raise CheckpointError(
                f"{section.path}.window_size is {config.window_pixels}; expected a multiple of patch_size × "
                f"spatial_merge_size, {config.patch_pixels * config.merge_patches}"
            )
        if config.head_dim * config.heads != config.width or config.head_dim % 4:
            raise CheckpointError(
                f"{section.path}.hidden_size is {config.width}; expected num_heads, {config.heads}, times a multiple "
                "of 4, so that half of a head turns with the row and half with the column"
            )
        return config

    @property
    def patch_values(self) -> int:
        """Numbers in a patch: channels × frames × pixels."""
        return self.channels * self.temporal_patch_frames * self.patch_pixels**2

    @property
    def window_patches(self) -> int:
        """Slots of a window."""
        return (self.window_pixels // self.patch_pixels) ** 2

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.width // self.heads


@dataclass(frozen=True)
class Windows:
    """How patches go into windows and back, as graph values."""

    window_slots: Value
    """`(W, 64)`: patch of each slot, −1 for none."""
    patch_slots: Value
    """`(P)`: slot of each patch."""
    in_a_row: Value
    """Shape `(T, W · 64, width)` of all slots of each temporal patch."""
    mask: Value
    """`(T · W, 1, 64, 64)`: 0 where a slot has a patch, else very low."""


class PatchProjection(Module):
    """The checkpoint's convolution, whose kernel covers exactly one patch: a product with the flattened patch."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.config = config
        self.weight = Parameter((config.patch_values, config.width), style.dtype)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit MatMul."""
        return op.MatMul(x, self.weight)

    def bind_own(self, prefix: str, source: TensorSource) -> Iterator[tuple[ir.Value, Array]]:
        """Flatten the kernel `(width, channels, frames, rows, columns)` in the order the patches are in."""
        config = self.config
        shape = (config.width, config.channels, config.temporal_patch_frames, config.patch_pixels, config.patch_pixels)
        weight = source.read(f"{prefix}weight", shape)
        yield self.weight, weight.reshape(config.width, config.patch_values).T


class PatchEmbed(Module):
    """Patches to hidden states (checkpoint: `patch_embed`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.proj = PatchProjection(config, style)

    def forward(self, op: Op, pixels: Value) -> Value:
        """Return `(T, P, width)`."""
        return self.proj(op, pixels)


class VisionAttention(Module):
    """Attention with row and column rotation, over a window or over all patches (checkpoint: `attn`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.q = linear(config.width, config.width, style.at("q"))
        self.k = linear(config.width, config.width, style.at("k"))
        self.v = linear(config.width, config.width, style.at("v"))
        self.proj = linear(config.width, config.width, style.at("proj"))

    def forward(self, op: Op, x: Value, cos: Value, sin: Value, windows: Windows | None) -> Value:
        """Return `(T, P, width)`; without `windows` every patch sees all of its temporal patch."""
        heads = self.config.heads
        query = rotary(op, self.style, self.q(op, x), cos, sin, heads)
        key = rotary(op, self.style, self.k(op, x), cos, sin, heads)
        value = self.v(op, x)
        if windows is None:
            return self.proj(op, full_attention(op, self.style, query, key, value, heads))
        query, key, value = (self._into_windows(op, x, windows) for x in (query, key, value))
        out = full_attention(op, self.style, query, key, value, heads, windows.mask)
        return self.proj(op, op.Gather(op.Reshape(out, windows.in_a_row), windows.patch_slots, axis=1))

    def _into_windows(self, op: Op, x: Value, windows: Windows) -> Value:
        """`(T, P, width) → (T · W, 64, width)`; empty slots repeat the last patch and are masked."""
        slots = op.Gather(x, windows.window_slots, axis=1)  # (T, W, 64, width)
        return op.Reshape(slots, [-1, self.config.window_patches, self.config.width])


class VisionMLP(Module):
    """SwiGLU feed-forward with biases (checkpoint: `mlp`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.gate_proj = linear(config.width, config.ffn, style.at("gate_proj"))
        self.up_proj = linear(config.width, config.ffn, style.at("up_proj"))
        self.down_proj = linear(config.ffn, config.width, style.at("down_proj"))

    def forward(self, op: Op, x: Value) -> Value:
        """Emit `down(silu(gate(x)) · up(x))`."""
        return self.down_proj(op, op.Mul(silu(op, self.gate_proj(op, x)), self.up_proj(op, x)))


class VisionBlock(Module):
    """Attention and feed-forward, each after its norm and around a residual (checkpoint: `blocks.N`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, _NORM_EPSILON, style)
        self.norm2 = RMSNorm(config.width, _NORM_EPSILON, style)
        self.attn = VisionAttention(config, style.at("attn"))
        self.mlp = VisionMLP(config, style.at("mlp"))
        self.style = style

    def forward(self, op: Op, x: Value, cos: Value, sin: Value, windows: Windows | None) -> Value:
        """Return `(T, P, width)`."""
        x = op.Add(x, self.attn(op, self.norm1(op, x), cos, sin, windows))
        return bounded(op, op.Add(x, self.mlp(op, self.norm2(op, x))), self.style)


class Gelu(Module):
    """The exact GELU, a module only because the checkpoint counts it (`merger.mlp.1`)."""

    def forward(self, op: Op, x: Value) -> Value:
        """Emit Gelu."""
        return op.Gelu(x)


class PatchMerger(Module):
    """2 × 2 patches, which stand in a row, to one embedding (checkpoint: `merger`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.merged_width = merged = config.width * config.merge_patches**2
        self.ln_q = RMSNorm(config.width, _NORM_EPSILON, style)
        hidden = linear(merged, merged, style.at("mlp.0"))
        self.mlp = ModuleList([hidden, Gelu(), linear(merged, config.output_width, style.at("mlp.2"))])

    def forward(self, op: Op, x: Value) -> Value:
        """Return `(T, P/4, D)`."""
        x = op.Reshape(self.ln_q(op, x), [0, -1, self.merged_width])
        for layer in self.mlp:
            x = layer(op, x)
        return x


class VisionEncoder(Module):
    """The whole encoder (checkpoint: `thinker.visual`)."""

    def __init__(self, config: VisionEncoderConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.patch_embed = PatchEmbed(config, style)
        self.blocks = ModuleList([VisionBlock(config, style.at(f"blocks.{i}")) for i in range(config.layers)])
        self.merger = PatchMerger(config, style.at("merger"))

    def forward(self, op: Op, pixels: Value, positions: Value, window_slots: Value, patch_slots: Value) -> list[Value]:
        """Return `embeddings (T, P/4, D)`."""
        cos, sin = self.rotary_tables(op, positions)
        windows = self.windows(op, pixels, window_slots, patch_slots)
        x = self.patch_embed(op, pixels)
        for index, block in enumerate(self.blocks):
            x = block(op, x, cos, sin, None if index in self.config.full_attention_layers else windows)
        return [self.merger(op, x)]

    def rotary_tables(self, op: Op, positions: Value) -> tuple[Value, Value]:
        """Cosine and sine `(P, head_dim / 2)`: the first half turns with the row, the second with the column.

        Angles are computed in float32 whatever the style: a half float cannot tell large angles apart.
        """
        half = self.config.head_dim // 2
        exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
        frequencies = (1.0 / self.config.rope_theta**exponents).astype(np.float32)
        places = op.Unsqueeze(op.Cast(positions, to=FLOAT32), [2])  # (P, 2, 1)
        angles = op.Reshape(op.Mul(places, op.Constant(value=ir.tensor(frequencies))), [-1, half])
        return op.Cast(op.Cos(angles), to=self.style.dtype), op.Cast(op.Sin(angles), to=self.style.dtype)

    def windows(self, op: Op, pixels: Value, window_slots: Value, patch_slots: Value) -> Windows:
        """Prepare what all window layers share."""
        slots = self.config.window_patches
        frames = op.Shape(pixels, start=0, end=1)
        in_a_row = op.Concat(frames, op.Constant(value_ints=[-1, self.config.width]), axis=0)
        low, zero = constant(op, MASKED, self.style), constant(op, 0.0, self.style)
        keys = op.Unsqueeze(op.Where(op.Less(window_slots, [0]), low, zero), [1])  # (W, 1, 64)
        mask = op.Expand(keys, op.Concat(frames, op.Constant(value_ints=[1, slots, 1]), axis=0))  # (T, W, 64, 64)
        return Windows(window_slots, patch_slots, in_a_row, op.Reshape(mask, [-1, 1, slots, slots]))


def vision_encoder_graph(config: VisionEncoderConfig, style: Style) -> ComponentGraph:
    """Build the vision encoder's graph."""
    root = VisionEncoder(config, style.at("thinker.visual"))
    model = build(
        root,
        style,
        "vision_encoder",
        inputs=[
            Port("pixels", style.dtype, ("temporal_patches", "patches", config.patch_values)),
            Port("positions", INT64, ("patches", 2)),
            Port("window_slots", INT64, ("windows", config.window_patches)),
            Port("patch_slots", INT64, ("patches",)),
        ],
        outputs=[Port("embeddings", style.dtype, ("temporal_patches", "merged_patches", config.output_width))],
    )
    return ComponentGraph("vision_encoder", model, root, "thinker.visual.")
