"""The audio encoder: mel frames in, embeddings at 25 a second out, in blocks of 2 seconds that do not know each other.

Inputs: `mel f (blocks, 128, 200)`, `frames int64 (blocks)` saying how many of a block's frames are sound, 1 … 200.
Outputs: `embeddings f (blocks, 50, D)`; a block of n frames fills the first `((n − 1)//2 + 1) // 2`, zeros follow.
Checkpoint prefix: `thinker.audio_tower.`.

Convolution, positions and attention of the reference stay inside a block too (arXiv 2503.20215, section 2.2), so the
blocks are a batch here. What a block holds beyond its frames is masked and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..errors import CheckpointError
from .attention import MASKED, full_attention
from .config import Section
from .graph import INT64, ComponentGraph, Module, ModuleList, Op, Port, Style, Value, build
from .layers import Conv1d, LayerNorm, bounded, constant, linear

_NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's own; the configuration does not set it
_MAX_TIMESCALE = 10_000.0


@dataclass(frozen=True)
class AudioEncoderConfig:
    """Settings of the audio encoder."""

    mel_bins: int
    width: int
    layers: int
    heads: int
    ffn: int
    block_frames: int
    output_width: int

    @classmethod
    def from_hf(cls, section: Section) -> AudioEncoderConfig:
        """Read `thinker_config.audio_config`; raises `CheckpointError` for what this encoder does not do."""
        activation = section.text("activation_function", default="gelu")
        if activation != "gelu":
            raise CheckpointError(f"{section.path}.activation_function is {activation!r}; Nearfield's is 'gelu'")
        half_block_frames = section.integer("n_window", default=100)
        if half_block_frames % 2:
            raise CheckpointError(
                f"{section.path}.n_window is {half_block_frames}; expected an even number, or the pairs that are "
                "averaged into embeddings would cross blocks"
            )
        return cls(
            mel_bins=section.integer("num_mel_bins"),
            width=section.integer("d_model", "hidden_size"),
            layers=section.integer("encoder_layers", "num_hidden_layers"),
            heads=section.integer("encoder_attention_heads", "num_attention_heads"),
            ffn=section.integer("encoder_ffn_dim", "intermediate_size"),
            block_frames=2 * half_block_frames,
            output_width=section.integer("output_dim"),
        )


class AudioAttention(Module):
    """Attention inside a block (checkpoint: `self_attn`); keys have no bias."""

    def __init__(self, config: AudioEncoderConfig, style: Style) -> None:
        super().__init__()
        self.heads, self.style = config.heads, style
        self.k_proj = linear(config.width, config.width, style.at("k_proj"), bias=False)
        self.v_proj = linear(config.width, config.width, style.at("v_proj"))
        self.q_proj = linear(config.width, config.width, style.at("q_proj"))
        self.out_proj = linear(config.width, config.width, style.at("out_proj"))

    def forward(self, op: Op, x: Value, mask: Value) -> Value:
        """Return `(B, S, width)`."""
        query, key, value = self.q_proj(op, x), self.k_proj(op, x), self.v_proj(op, x)
        return self.out_proj(op, full_attention(op, self.style, query, key, value, self.heads, mask))


class AudioLayer(Module):
    """Attention and feed-forward, each after its norm and around a residual (checkpoint: `layers.N`)."""

    def __init__(self, config: AudioEncoderConfig, style: Style) -> None:
        super().__init__()
        self.style = style
        self.self_attn = AudioAttention(config, style.at("self_attn"))
        self.self_attn_layer_norm = LayerNorm(config.width, _NORM_EPSILON, style)
        self.fc1 = linear(config.width, config.ffn, style.at("fc1"))
        self.fc2 = linear(config.ffn, config.width, style.at("fc2"))
        self.final_layer_norm = LayerNorm(config.width, _NORM_EPSILON, style)

    def forward(self, op: Op, x: Value, mask: Value) -> Value:
        """Return `(B, S, width)`."""
        x = op.Add(x, self.self_attn(op, self.self_attn_layer_norm(op, x), mask))
        x = op.Add(x, self.fc2(op, op.Gelu(self.fc1(op, self.final_layer_norm(op, x)))))
        return bounded(op, x, self.style)


class AudioEncoder(Module):
    """The whole encoder (checkpoint: `thinker.audio_tower`)."""

    def __init__(self, config: AudioEncoderConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.conv1 = Conv1d(config.mel_bins, config.width, 3, style, padding=1)
        self.conv2 = Conv1d(config.width, config.width, 3, style, stride=2, padding=1)
        self.layers = ModuleList([AudioLayer(config, style.at(f"layers.{i}")) for i in range(config.layers)])
        self.ln_post = LayerNorm(config.width, _NORM_EPSILON, style)
        self.proj = linear(config.width, config.output_width, style.at("proj"))

    def forward(self, op: Op, mel: Value, frames: Value) -> list[Value]:
        """Return `embeddings (B, 50, D)`."""
        length = op.Unsqueeze(frames, [1])  # (B, 1)
        x = self.convolve(op, mel, length)
        mask = self.attention_mask(op, length)
        for layer in self.layers:
            x = layer(op, x, mask)
        return [self.embed(op, x, length)]

    def convolve(self, op: Op, mel: Value, length: Value) -> Value:
        """Halve the rate and add positions: `(B, 100, width)`.

        Both convolutions see zeros beyond a block's frames, as the reference's do at the end of a clip.
        """
        zero = constant(op, 0.0, self.style)
        sounding = op.Unsqueeze(op.Less(_range(op, 0, self.config.block_frames, 1), length), [1])  # (B, 1, 200)
        x = op.Gelu(self.conv1(op, op.Where(sounding, mel, zero)))
        x = op.Gelu(self.conv2(op, op.Where(sounding, x, zero)))  # (B, width, 100)
        table = sinusoids(self.config.block_frames // 2, self.config.width).astype(self.style.numpy_dtype)
        return op.Add(op.Transpose(x, perm=[0, 2, 1]), op.Constant(value=ir.tensor(table)))

    def attention_mask(self, op: Op, length: Value) -> Value:
        """0 where a position comes from the block's frames, else very low: `(B, 1, 100, 100)`."""
        positions = self.config.block_frames // 2
        filled = op.Less(_range(op, 0, 2 * positions, 2), length)  # (B, 100): position i is filled if frame 2i is
        mask = op.Where(filled, constant(op, 0.0, self.style), constant(op, MASKED, self.style))
        return op.Expand(op.Unsqueeze(mask, [1, 2]), [1, 1, positions, 1])

    def embed(self, op: Op, x: Value, length: Value) -> Value:
        """Average pairs of positions and project them: `(B, 50, D)`."""
        pairs = op.Reshape(x, [0, -1, 2, self.config.width])  # (B, 50, 2, width)
        embeddings = self.proj(op, self.ln_post(op, op.ReduceMean(pairs, [2], keepdims=0)))
        return self._clear_unfilled(op, embeddings, length)

    def _clear_unfilled(self, op: Op, embeddings: Value, length: Value) -> Value:
        """Put zeros where a pair of positions is not wholly filled: `(B, 50, D)`; the reference drops those."""
        filled = op.Less(_range(op, 2, self.config.block_frames, 4), length)  # (B, 50): the pair ends at frame 4i + 2
        return op.Where(op.Unsqueeze(filled, [2]), embeddings, constant(op, 0.0, self.style))


def audio_encoder_graph(config: AudioEncoderConfig, style: Style) -> ComponentGraph:
    """Build the audio encoder's graph."""
    root = AudioEncoder(config, style.at("thinker.audio_tower"))
    model = build(
        root,
        style,
        "audio_encoder",
        inputs=[
            Port("mel", style.dtype, ("blocks", config.mel_bins, config.block_frames)),
            Port("frames", INT64, ("blocks",)),
        ],
        outputs=[Port("embeddings", style.dtype, ("blocks", config.block_frames // 4, config.output_width))],
    )
    # The reference keeps the embeddings of the sound's begin and end marks here, and takes the Thinker's instead.
    unused = ("thinker.audio_tower.audio_bos_eos_token.weight",)
    return ComponentGraph("audio_encoder", model, root, "thinker.audio_tower.", unused)


def sinusoids(positions: int, width: int) -> npt.NDArray[np.float32]:
    """Whisper's position table `(positions, width)`: sines, then cosines, of timescales 1 … 10000."""
    timescales = np.exp(-np.log(_MAX_TIMESCALE) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(positions)[:, None] * timescales[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _range(op: Op, start: int, stop: int, step: int) -> Value:
    """Return int64 `start, start + step, …` below `stop`."""
    return op.Constant(value=ir.tensor(np.arange(start, stop, step, dtype=np.int64)))
