"""The DiT of Token2Wav: one evaluation of the velocity that carries noise to a mel, classifier-free guidance included.

Inputs: `mel f (1, F, 80)` (the current state), `codes int64 (1, F/2)`, `speaker f (1, 192)`, `encoding f (2, 128)` (of
the reference mel, of a zero mel), `modulation f (6·layers + 2, width)` (`dit_modulation.py`'s at one time),
`guidance f ()` → output `velocity f (1, F, 80)`. Checkpoint prefix: `token2wav.code2wav_dit_model.`.

A frame attends to its own block of 24 frames; in a few layers also to the block before or after. Attention is computed
block by block, which equals the reference's masked F × F attention and grows linearly with F. Adaptive layer norm is
that of Peebles and Xie (DiT, arXiv 2212.09748): it depends on the time alone, so its weights stay out of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .attention import MASKED, full_attention, rotary
from .dit_config import DIT_PREFIX, DiTConfig
from .graph import (
    FLOAT32,
    INT64,
    ComponentGraph,
    Module,
    ModuleList,
    Op,
    Parameter,
    Port,
    Style,
    Value,
    build,
)
from .layers import constant, linear

_NORM_EPSILON = 1e-6  # the reference's constant
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Blocks:
    """What all layers share, as graph values; P is F rounded up to whole blocks, N the number of blocks."""

    cos: Value
    """`(P, head_dim / 2)`"""
    sin: Value
    key_mask: Value
    """`(1, P)`: 0 for a frame, very low for padding."""
    no_keys: Value
    """`(1, 24)`: very low, for a block that is not there."""


def _halves(head_dim: int, outputs: int) -> npt.NDArray[np.int64]:
    """Order in which the outputs of queries and keys are wanted.

    Only head 0 is rotated, and the checkpoint keeps its pairs side by side: `x0 y0 x1 y1 …`; `rotary` wants
    `x0 x1 … y0 y1 …`. Queries and keys change alike, so scores do not.
    """
    pairs = np.arange(head_dim).reshape(-1, 2)
    return np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(head_dim, outputs)])


class DiTAttention(Module):
    """Attention of every block to itself and to the neighbours its layer looks at (checkpoint: `attn`)."""

    def __init__(self, config: DiTConfig, style: Style, *, look_backward: bool, look_ahead: bool) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.look_backward, self.look_ahead = look_backward, look_ahead
        self.inner = config.heads * config.head_dim
        halves = _halves(config.head_dim, self.inner)
        self.to_q = linear(config.hidden_size, self.inner, style.at("to_q"), rows=halves)
        self.to_k = linear(config.hidden_size, self.inner, style.at("to_k"), rows=halves)
        self.to_v = linear(config.hidden_size, self.inner, style.at("to_v"))
        self.to_out = ModuleList([linear(self.inner, config.hidden_size, style.at("to_out.0"))])

    def forward(self, op: Op, x: Value, blocks: Blocks) -> Value:
        """`(2, P, width) → (2, P, width)`."""
        size = self.config.block_size
        query = op.Reshape(self._rotate_head_0(op, self.to_q(op, x), blocks), [-1, size, self.inner])  # (2N, 24, inner)
        key = self._with_neighbours(op, self._rotate_head_0(op, self.to_k(op, x), blocks))  # (2N, 24…72, inner)
        value = self._with_neighbours(op, self.to_v(op, x))
        out = full_attention(op, self.style, query, key, value, self.config.heads, self._mask(op, blocks))
        return self.to_out[0](op, op.Reshape(out, [2, -1, self.inner]))

    def _rotate_head_0(self, op: Op, x: Value, blocks: Blocks) -> Value:
        head_dim = self.config.head_dim
        head_0, others = op.Split(x, [head_dim, self.inner - head_dim], axis=-1, _outputs=2)
        return op.Concat(rotary(op, self.style, head_0, blocks.cos, blocks.sin, heads=1), others, axis=-1)

    def _with_neighbours(self, op: Op, x: Value) -> Value:
        """`(2, P, inner) → (2N, 24 · blocks seen, inner)`."""
        parts = [op.Reshape(part, [-1, self.config.block_size, self.inner]) for part in self._shifted(op, x)]
        return op.Concat(*parts, axis=1) if len(parts) > 1 else parts[0]

    def _mask(self, op: Op, blocks: Blocks) -> Value:
        """Hide padding, and blocks that are not there: `(2N, 1, 24, 24 · blocks seen)`."""
        size = self.config.block_size
        parts = [op.Reshape(part, [-1, 1, size]) for part in self._shifted(op, blocks.key_mask, blocks.no_keys)]
        keys = op.Concat(*parts, axis=2) if len(parts) > 1 else parts[0]  # (N, 1, 24 · blocks seen)
        rows = op.Expand(keys, [2, 1, size, 1])  # (2, N, 24, 24 · blocks seen)
        return op.Reshape(rows, [-1, 1, size, size * len(parts)])

    def _shifted(self, op: Op, x: Value, beyond: Value | None = None) -> list[Value]:
        """For each block seen, `x (…, P, …)` moved so that it stands at the place of the block that looks.

        `beyond` is what stands beyond either end; by default any block does, as the mask hides it.
        """
        size = self.config.block_size
        parts = [x]
        if beyond is None and (self.look_backward or self.look_ahead):
            beyond = op.Slice(x, [0], [size], [1])
        if self.look_backward:
            parts.insert(0, op.Concat(beyond, op.Slice(x, [0], [-size], [1]), axis=1))
        if self.look_ahead:
            parts.append(op.Concat(op.Slice(x, [size], [_LAST], [1]), beyond, axis=1))
        return parts


class _Gelu(Module):
    """GELU by its tanh approximation; a module because the checkpoint counts it (`ff.ff.1`)."""

    def forward(self, op: Op, x: Value) -> Value:
        return op.Gelu(x, approximate="tanh")


class _Dropout(Module):
    """Nothing at run time; a module because the checkpoint counts it (`ff.ff.2`)."""

    def forward(self, op: Op, x: Value) -> Value:  # noqa: ARG002  # a module's forward takes the builder
        return x


class DiTFeedForward(Module):
    """Two Linear layers with GELU between (checkpoint: `ff`)."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.hidden_size * config.ff_mult
        first, last = linear(width, inner, style.at("ff.0")), linear(inner, width, style.at("ff.3"))
        self.ff = ModuleList([first, _Gelu(), _Dropout(), last])

    def forward(self, op: Op, x: Value) -> Value:
        """`(2, P, width) → (2, P, width)`."""
        for layer in self.ff:
            x = layer(op, x)
        return x


class DiTBlock(Module):
    """Attention and feed-forward, modulated and gated by six rows (checkpoint: `transformer_blocks.N`)."""

    def __init__(self, config: DiTConfig, style: Style, layer: int) -> None:
        super().__init__()
        self.attn = DiTAttention(
            config,
            style.at("attn"),
            look_backward=layer in config.look_backward_layers,
            look_ahead=layer in config.look_ahead_layers,
        )
        self.ff = DiTFeedForward(config, style.at("ff"))

    def forward(self, op: Op, x: Value, rows: Sequence[Value], blocks: Blocks) -> Value:
        """`(2, P, width) → (2, P, width)`."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = rows
        attended = self.attn(op, _modulated_norm(op, x, scale_msa, shift_msa), blocks)
        x = op.Add(x, op.Mul(gate_msa, attended))
        return op.Add(x, op.Mul(gate_mlp, self.ff(op, _modulated_norm(op, x, scale_mlp, shift_mlp))))


def _modulated_norm(op: Op, x: Value, scale: Value, shift: Value) -> Value:
    """`norm(x) · scale + shift`: modulation takes the place of the norm's weight and bias."""
    return op.LayerNormalization(x, scale, shift, axis=-1, epsilon=_NORM_EPSILON)


class CodeEmbedding(Module):
    """Embedding of the codes, and of code 0 for the unconditional half (checkpoint: `text_embed.codec_embed`)."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        self.repeats = config.repeats
        self.weight = Parameter((config.num_embeds + 1, config.emb_dim), style.dtype)

    def forward(self, op: Op, codes: Value) -> Value:
        """`(1, F/2) → (2, F, embedding)`."""
        both = op.Unsqueeze(op.Concat(codes, op.Sub(codes, codes), axis=0), [2])
        per_frame = op.Reshape(op.Expand(both, [1, 1, self.repeats]), [2, -1])
        return op.Gather(self.weight, per_frame, axis=0)


class TextEmbed(Module):
    """Holds the code embedding (checkpoint: `text_embed`)."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        self.codec_embed = CodeEmbedding(config, style)

    def forward(self, op: Op, codes: Value) -> Value:
        """`(1, F/2) → (2, F, embedding)`."""
        return self.codec_embed(op, codes)


class InputEmbed(Module):
    """Projects what a frame consists of; its speaker encoder runs at export (checkpoint: `input_embed`)."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        columns = config.mel_dim + config.enc_dim + config.emb_dim + config.enc_emb_dim
        self.proj = linear(columns, config.hidden_size, style.at("proj"))

    def forward(self, op: Op, mel: Value, encoding: Value, codes: Value, speaker: Value) -> Value:
        """`mel (1, F, 80), encoding (2, 128), codes (2, F, embedding), speaker (1, 192) → (2, F, width)`."""
        every_frame = op.Concat([1], op.Shape(mel, start=1, end=2), [1], axis=0)
        speakers = op.Concat(speaker, op.Sub(speaker, speaker), axis=0)  # the unconditional half has a zero vector
        columns = op.Concat(
            op.Expand(mel, [2, 1, 1]),
            op.Expand(op.Unsqueeze(encoding, [1]), every_frame),
            codes,
            op.Expand(op.Unsqueeze(speakers, [1]), every_frame),
            axis=2,
        )
        return self.proj(op, columns)


class DiT(Module):
    """The whole DiT (checkpoint: `token2wav.code2wav_dit_model`)."""

    def __init__(self, config: DiTConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.text_embed = TextEmbed(config, style)
        self.input_embed = InputEmbed(config, style.at("input_embed"))
        self.transformer_blocks = ModuleList(
            [DiTBlock(config, style.at(f"transformer_blocks.{layer}"), layer) for layer in range(config.layers)]
        )
        self.proj_out = linear(config.hidden_size, config.mel_dim, style.at("proj_out"))

    def forward(
        self, op: Op, mel: Value, codes: Value, speaker: Value, encoding: Value, modulation: Value, guidance: Value
    ) -> list[Value]:
        """Return `velocity (1, F, 80)`."""
        x, frames, padded = self.embed(op, mel, codes, speaker, encoding)
        rows = self.modulation_rows(op, modulation)
        blocks = self.blocks(op, frames, padded)
        for layer, block in enumerate(self.transformer_blocks):
            x = block(op, x, rows[6 * layer : 6 * layer + 6], blocks)
        scale, shift = rows[-2:]
        x = _modulated_norm(op, op.Slice(x, [0], frames, [1]), scale, shift)  # (2, F, width)
        conditional, unconditional = op.Split(self.proj_out(op, x), axis=0, num_outputs=2, _outputs=2)
        return [op.Add(conditional, op.Mul(op.Sub(conditional, unconditional), guidance))]

    def embed(self, op: Op, mel: Value, codes: Value, speaker: Value, encoding: Value) -> tuple[Value, Value, Value]:
        """What a frame consists of, with zeros up to whole blocks, `(2, P, width)`; F and P, each `(1)`."""
        frames = op.Shape(mel, start=1, end=2)
        size = self.config.block_size
        padded = op.Mul(op.Div(op.Add(frames, [size - 1]), [size]), [size])
        x = self.input_embed(op, mel, encoding, self.text_embed(op, codes), speaker)
        padding = op.Concat([2], op.Sub(padded, frames), [self.config.hidden_size], axis=0)
        return op.Concat(x, op.Expand(constant(op, 0.0, self.style), padding), axis=1), frames, padded

    def modulation_rows(self, op: Op, modulation: Value) -> Sequence[Value]:
        """Split into rows `(1, width)`, with 1 added to the scales: norms are multiplied by 1 + scale."""
        count = self.config.modulation_rows
        ones = np.zeros((count, 1), self.style.numpy_dtype)
        ones[1:-2:3] = 1  # of shift, scale, gate
        ones[-2] = 1  # the final norm has scale before shift
        scaled = op.Add(modulation, op.Constant(value=ir.tensor(ones)))
        rows: Sequence[Value] = op.Split(scaled, axis=0, num_outputs=count, _outputs=count)
        return rows

    def blocks(self, op: Op, frames: Value, padded: Value) -> Blocks:
        """Rotation and key mask; angles are float32 whatever the style: a half float cannot tell late frames apart."""
        positions = op.Range(op.Constant(value_int=0), op.Squeeze(padded, [0]), op.Constant(value_int=1))  # (P)
        exponents = np.arange(0, self.config.head_dim, 2, dtype=np.float32) / np.float32(self.config.head_dim)
        frequencies = op.Constant(value=ir.tensor((1.0 / self.config.rope_theta**exponents).astype(np.float32)))
        angles = op.Mul(op.Unsqueeze(op.Cast(positions, to=FLOAT32), [1]), frequencies)
        seen, masked = constant(op, 0.0, self.style), constant(op, MASKED, self.style)
        no_keys = op.Expand(masked, [1, self.config.block_size])
        dtype = self.style.dtype
        return Blocks(
            cos=op.Cast(op.Cos(angles), to=dtype),
            sin=op.Cast(op.Sin(angles), to=dtype),
            key_mask=op.Unsqueeze(op.Where(op.Less(positions, frames), seen, masked), [0]),
            no_keys=no_keys,
        )


def dit_graph(config: DiTConfig, style: Style) -> ComponentGraph:
    """Build the DiT's graph. The rest of its prefix is read by `modulation_table` and `speaker_encoder`."""
    root = DiT(config, style.at(DIT_PREFIX.rstrip(".")))
    mel = (1, "frames", config.mel_dim)
    model = build(
        root,
        style,
        "dit",
        inputs=[
            Port("mel", style.dtype, mel),
            Port("codes", INT64, (1, "codes")),
            Port("speaker", style.dtype, (1, config.enc_emb_dim)),
            Port("encoding", style.dtype, (2, config.enc_dim)),
            Port("modulation", style.dtype, (config.modulation_rows, config.hidden_size)),
            Port("guidance", style.dtype, ()),
        ],
        outputs=[Port("velocity", style.dtype, mel)],
    )
    return ComponentGraph("dit", model, root, DIT_PREFIX, unused=(f"{DIT_PREFIX}rotary_embed.inv_freq",))
