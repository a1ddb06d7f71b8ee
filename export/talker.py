"""The Talker: rows of Thinker states in, speech-code logits out, 50 codes a second.

Inputs: `inputs_embeds f (1, S, E)` (Thinker state + embedding, or code embedding + reply row; E is the Thinker's
width), `position_ids int64 (3, S)`, cache. Outputs: `logits float32 (1, Vt)` of the last position, cache.
Checkpoint prefix: `talker.`.
"""

from __future__ import annotations

from .attention import POSITION_IDS, CacheShape, split_cache_inputs
from .decoder import LOGITS_TYPE, Decoder, DecoderConfig, last_position, logits_port
from .graph import ComponentGraph, Module, Op, Port, Style, Value, build
from .layers import linear, output_head


class Talker(Module):
    """Projection, decoder and head (checkpoint: `talker`)."""

    def __init__(self, config: DecoderConfig, embedding_size: int, style: Style, cache: CacheShape) -> None:
        super().__init__()
        self.style, self.cache = style, cache
        self.thinker_to_talker_proj = linear(embedding_size, config.hidden_size, style.at("thinker_to_talker_proj"))
        self.model = Decoder(config, style.at("model"))
        self.codec_head = output_head(config.hidden_size, config.vocab_size, style.at("codec_head"))

    def forward(self, op: Op, inputs_embeds: Value, position_ids: Value, *cache: Value) -> list[Value]:
        """Return logits and the present cache."""
        caches = split_cache_inputs(self.style, self.cache.layers, cache, self.cache.scales)
        hidden, present = self.model(op, self.thinker_to_talker_proj(op, inputs_embeds), position_ids, caches)
        logits = op.Cast(self.codec_head(op, last_position(op, hidden)), to=LOGITS_TYPE)
        return [logits, *present]


def talker_graph(
    config: DecoderConfig, embedding_size: int, style: Style, cache: CacheShape | None = None
) -> ComponentGraph:
    """Build the Talker's graph; `embedding_size` is the width of the rows it takes, `cache` as the Thinker's."""
    cache = cache or config.cache
    root = Talker(config, embedding_size, style.at("talker"), cache)
    model = build(
        root,
        style,
        "talker",
        inputs=[
            Port("inputs_embeds", style.dtype, (1, "positions", embedding_size)),
            POSITION_IDS,
            *cache.input_ports(style),
        ],
        outputs=[logits_port(config.vocab_size), *cache.output_ports(style)],
    )
    return ComponentGraph("talker", model, root, "talker.")
