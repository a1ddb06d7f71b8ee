"""The Thinker: embeddings of text, audio, image and video in, text logits and hidden states out.

Inputs: `inputs_embeds f (1, S, D)`, `position_ids int64 (3, S)`, cache.
Outputs: `logits float32 (1, V)` of the last position, `last_hidden_state f (1, S, D)` after the final norm (the Talker
takes it), cache. Checkpoint prefix: `thinker.`, of which the encoders are components of their own.
"""

from __future__ import annotations

from .attention import POSITION_IDS, CacheShape, split_cache_inputs
from .decoder import LOGITS_TYPE, Decoder, DecoderConfig, last_position, logits_port
from .graph import ComponentGraph, Module, Op, Port, Style, Value, build
from .layers import output_head


class Thinker(Module):
    """Decoder and head (checkpoint: `thinker`)."""

    def __init__(self, config: DecoderConfig, style: Style, cache: CacheShape) -> None:
        super().__init__()
        self.style, self.cache = style, cache
        self.model = Decoder(config, style.at("model"))
        self.lm_head = output_head(config.hidden_size, config.vocab_size, style.at("lm_head"))

    def forward(self, op: Op, inputs_embeds: Value, position_ids: Value, *cache: Value) -> list[Value]:
        """Return logits, hidden states and the present cache."""
        caches = split_cache_inputs(self.style, self.cache.layers, cache, self.cache.scales)
        hidden, present = self.model(op, inputs_embeds, position_ids, caches)
        logits = op.Cast(self.lm_head(op, last_position(op, hidden)), to=LOGITS_TYPE)
        return [logits, hidden, *present]


def thinker_graph(config: DecoderConfig, style: Style, cache: CacheShape | None = None) -> ComponentGraph:
    """Build the Thinker's graph; `cache` if it is kept in another type than the style's."""
    cache = cache or config.cache
    root = Thinker(config, style.at("thinker"), cache)
    width = config.hidden_size
    model = build(
        root,
        style,
        "thinker",
        inputs=[
            Port("inputs_embeds", style.dtype, (1, "positions", width)),
            POSITION_IDS,
            *cache.input_ports(style),
        ],
        outputs=[
            logits_port(config.vocab_size),
            Port("last_hidden_state", style.dtype, (1, "positions", width)),
            *cache.output_ports(style),
        ],
    )
    return ComponentGraph("thinker", model, root, "thinker.")
