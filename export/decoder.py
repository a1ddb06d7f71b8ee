"""The decoder shared by Thinker and Talker: a Qwen2 stack with TMRoPE and a key/value cache.

Inputs: hidden states `(1, S, width)`, `position_ids int64 (3, S)`, the cache of every layer.
Outputs: hidden states `(1, S, width)` after the final norm, the present cache of every layer.
Checkpoint prefixes: `thinker.model.`, `talker.model.` (`embed_tokens` there is gathered on the host, not in the graph).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..errors import CheckpointError
from .attention import Cache, CacheShape, cached_attention, mrope_tables, rotary
from .config import Section
from .graph import Module, ModuleList, Op, Port, Style, Value
from .layers import RMSNorm, linear, silu


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of one decoder stack."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm_epsilon: float
    rope_theta: float
    mrope_section: tuple[int, ...]

    @classmethod
    def from_hf(cls, section: Section) -> DecoderConfig:
        """Read `thinker_config.text_config` or `talker_config`, in either spelling."""
        if section.flag("use_sliding_window", default=False):
            raise CheckpointError(f"{section.path}.use_sliding_window is true; Nearfield has full attention only")
        hidden_size, heads = section.integer("hidden_size"), section.integer("num_attention_heads")
        head_dim = section.integer("head_dim", default=hidden_size // heads)
        if section.text("hidden_act", default="silu") != "silu":
            raise CheckpointError(
                f"{section.path}.hidden_act is {section.text('hidden_act')!r}; Nearfield has 'silu' only"
            )
        rope = section.section("rope_parameters", "rope_scaling")
        kind = rope.text("rope_type", "type", default="default")
        if kind not in ("default", "mrope"):
            raise CheckpointError(f"{rope.path}.rope_type is {kind!r}; Nearfield has plain multimodal RoPE only")
        theta = rope if rope.has("rope_theta") else section
        sections = rope.integers("mrope_section", default=(16, 24, 24))
        if 2 * sum(sections) != head_dim:
            raise CheckpointError(f"{rope.path}.mrope_section {list(sections)} must add up to half of {head_dim}")
        return cls(
            hidden_size=hidden_size,
            layers=section.integer("num_hidden_layers"),
            heads=heads,
            kv_heads=section.integer("num_key_value_heads", default=heads),
            head_dim=head_dim,
            intermediate_size=section.integer("intermediate_size"),
            vocab_size=section.integer("vocab_size"),
            max_positions=section.integer("max_position_embeddings"),
            norm_epsilon=section.number("rms_norm_eps", default=1e-6),
            rope_theta=theta.number("rope_theta", default=1_000_000.0),
            mrope_section=sections,
        )

    @property
    def cache(self) -> CacheShape:
        """Geometry of the key/value cache."""
        return CacheShape(self.layers, self.kv_heads, self.head_dim)


class SelfAttention(Module):
    """Grouped-query attention with biases on q, k and v (checkpoint: `self_attn`)."""

    def __init__(self, config: DecoderConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q_proj = linear(config.hidden_size, queries, style.at("q_proj"))
        self.k_proj = linear(config.hidden_size, keys, style.at("k_proj"))
        self.v_proj = linear(config.hidden_size, keys, style.at("v_proj"))
        self.o_proj = linear(queries, config.hidden_size, style.at("o_proj"), bias=False)

    def forward(self, op: Op, x: Value, cos: Value, sin: Value, cache: Cache) -> tuple[Value, Value, Value]:
        """Return the result `(1, S, width)` and this layer's present keys and values."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        query = rotary(op, self.style, self.q_proj(op, x), cos, sin, heads)
        key = rotary(op, self.style, self.k_proj(op, x), cos, sin, kv_heads)
        out, present_key, present_value = cached_attention(
            op, self.style, query, key, self.v_proj(op, x), cache, heads, kv_heads
        )
        return self.o_proj(op, out), present_key, present_value


class MLP(Module):
    """SwiGLU feed-forward (checkpoint: `mlp`)."""

    def __init__(self, config: DecoderConfig, style: Style) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = linear(width, inner, style.at("gate_proj"), bias=False)
        self.up_proj = linear(width, inner, style.at("up_proj"), bias=False)
        self.down_proj = linear(inner, width, style.at("down_proj"), bias=False)

    def forward(self, op: Op, x: Value) -> Value:
        """Emit `down(silu(gate(x)) · up(x))`."""
        return self.down_proj(op, op.Mul(silu(op, self.gate_proj(op, x)), self.up_proj(op, x)))


class DecoderLayer(Module):
    """Attention and MLP, each after its norm and around a residual (checkpoint: `layers.N`)."""

    def __init__(self, config: DecoderConfig, style: Style) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, style.at("self_attn"))
        self.mlp = MLP(config, style.at("mlp"))
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon, style)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_epsilon, style)

    def forward(self, op: Op, x: Value, cos: Value, sin: Value, cache: Cache) -> tuple[Value, Value, Value]:
        """Return the new hidden states and this layer's present keys and values."""
        attended, key, value = self.self_attn(op, self.input_layernorm(op, x), cos, sin, cache)
        x = op.Add(x, attended)
        return op.Add(x, self.mlp(op, self.post_attention_layernorm(op, x))), key, value


class Decoder(Module):
    """The stack and its final norm (checkpoint: `thinker.model`, `talker.model`)."""

    def __init__(self, config: DecoderConfig, style: Style) -> None:
        super().__init__()
        self.config, self.style = config, style
        self.layers = ModuleList([DecoderLayer(config, style.at(f"layers.{i}")) for i in range(config.layers)])
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon, style)

    def forward(self, op: Op, x: Value, position_ids: Value, caches: list[Cache]) -> tuple[Value, list[Value]]:
        """Return normed hidden states `(1, S, width)` and the present cache, keys and values by turns."""
        cos, sin = mrope_tables(op, self.style, position_ids, self.config.rope_theta, list(self.config.mrope_section))
        present: list[Value] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, key, value = layer(op, x, cos, sin, cache)
            present += [key, value]
        return self.norm(op, x), present


def last_position(op: Op, hidden: Value) -> Value:
    """Take the last position of `(1, S, width)` as `(1, width)`: the only one whose logits are wanted."""
    return op.Gather(hidden, op.Constant(value_int=-1), axis=1)


LOGITS_TYPE = ir.DataType.FLOAT


def logits_port(vocab_size: int) -> Port:
    """Output `logits float32 (1, V)` of the last position."""
    return Port("logits", LOGITS_TYPE, (1, vocab_size))
