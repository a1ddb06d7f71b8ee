"""The parts that can be quantized, as stacks of layers: where they lie, the graph of one, where AWQ's scales go.

| part | what is quantized | what of `Given.others` its layers take |
|---|---|---|
| thinker, talker | decoder layers | position ids, an empty cache |
| audio | the audio encoder's layers | how many mel frames each block of 2 s holds |
| vision | the vision encoder's blocks | places of the patches and their windows |
| dit | the DiT's blocks | how many frames there are, the modulation at one time |

What comes before and after the layers (convolutions, embeddings, projections, heads) is not: `policy.py` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..export.attention import POSITION_IDS, mrope_tables, split_cache_inputs
from ..export.audio_encoder import AudioEncoder, AudioEncoderConfig, AudioLayer
from ..export.decoder import DecoderConfig, DecoderLayer
from ..export.dit import DiT, DiTBlock
from ..export.dit_config import DIT_PREFIX, DiTConfig
from ..export.export import Configs
from ..export.graph import INT64, Op, Port, Value
from ..export.vision_encoder import VisionBlock, VisionEncoder, VisionEncoderConfig
from ..runtime.manifest import ComponentName
from .inputs import Steps
from .layer import Fold
from .layers import STYLE, Given, LayerGraph, layer_graph
from .policy import Part


@dataclass(frozen=True)
class Component:
    """A part as a stack of layers."""

    part: Part
    root: str
    """Checkpoint prefix of the part, with its dot: a key of `export.quantized_checkpoint.SECTIONS`."""
    path: str
    """From there to its layers, with a dot."""
    layers: int
    graph_of: Callable[[int, str], LayerGraph]
    """The graph of the layer of a number, whose weights lie under a prefix."""
    folds: tuple[Fold, ...]
    """Where AWQ's scales are taken back, in the order they are found."""

    def prefix(self, layer: int) -> str:
        """Where a layer's parameters lie in the checkpoint."""
        return f"{self.root}{self.path}{layer}."

    def graph(self, layer: int) -> LayerGraph:
        """The graph of a layer."""
        return self.graph_of(layer, self.prefix(layer))


def components(configs: Configs) -> Mapping[Part, Component]:
    """All parts of a checkpoint."""
    return {
        "thinker": _decoder("thinker", configs.thinker),
        "talker": _decoder("talker", configs.talker),
        "audio": _audio(configs.audio),
        "vision": _vision(configs.vision),
        "dit": _dit(configs.dit),
    }


def decoder_layer(config: DecoderConfig) -> tuple[DecoderLayer, list[Port], Callable[..., Sequence[Value]]]:
    """One layer of a decoder: its module, its inputs, the hidden states first, and what computes those after it and
    its keys and values."""
    root, cache = DecoderLayer(config, STYLE), replace(config.cache, layers=1)

    def forward(op: Op, hidden: Value, position_ids: Value, *past: Value) -> Sequence[Value]:
        cos, sin = mrope_tables(op, STYLE, position_ids, config.rope_theta, list(config.mrope_section))
        (kept,) = split_cache_inputs(STYLE, 1, past)
        results: Sequence[Value] = root(op, hidden, cos, sin, kept)
        return results

    hidden = Port("hidden", STYLE.dtype, (1, "positions", config.hidden_size))
    return root, [hidden, POSITION_IDS, *cache.input_ports(STYLE)], forward


def _decoder(part: Part, config: DecoderConfig) -> Component:
    name: ComponentName = "thinker" if part == "thinker" else "talker"

    def graph(_: int, prefix: str) -> LayerGraph:
        root, inputs, forward = decoder_layer(config)
        return layer_graph(name, root, prefix, inputs, lambda *values: forward(*values)[0])

    # The scales of o and down change the weights of v and up: they are found first.
    folds = (
        Fold("self_attn.o_proj", "self_attn.v_proj", _value_channels(config)),
        Fold("mlp.down_proj", "mlp.up_proj"),
        Fold("self_attn.q_proj", "input_layernorm"),
        Fold("mlp.gate_proj", "post_attention_layernorm"),
    )
    return Component(part, f"{part}.", "model.layers.", config.layers, graph, folds)


def decoder_given(config: DecoderConfig, steps: Steps) -> Given:
    """A sample as a decoder's layers take it: all at once, after nothing."""
    count = len(steps.embeddings)
    past: npt.NDArray[Any] = np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)
    others = {
        "position_ids": steps.position_ids,
        "past_key_values.0.key": past,
        "past_key_values.0.value": past,
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
    }
    return Given(steps.embeddings[None], others)


def _value_channels(config: DecoderConfig) -> npt.NDArray[np.int64]:
    """For each input of o, the output of v it is a mixture of: heads of a group share their values."""
    heads = np.arange(config.heads) // (config.heads // config.kv_heads)
    return (heads[:, None] * config.head_dim + np.arange(config.head_dim)).ravel()


def _audio(config: AudioEncoderConfig) -> Component:
    def graph(_: int, prefix: str) -> LayerGraph:
        root, encoder = AudioLayer(config, STYLE), AudioEncoder(replace(config, layers=0), STYLE)

        def forward(op: Op, hidden: Value, frames: Value) -> Value:
            after: Value = root(op, hidden, encoder.attention_mask(op, op.Unsqueeze(frames, [1])))
            return after

        hidden = Port("hidden", STYLE.dtype, ("blocks", config.block_frames // 2, config.width))
        return layer_graph("audio_encoder", root, prefix, [hidden, Port("frames", INT64, ("blocks",))], forward)

    # GELU stands between fc1 and fc2: what fc1 puts out cannot be divided.
    folds = (
        Fold("self_attn.out_proj", "self_attn.v_proj"),
        Fold("self_attn.q_proj", "self_attn_layer_norm"),
        Fold("fc1", "final_layer_norm"),
    )
    return Component("audio", "thinker.audio_tower.", "layers.", config.layers, graph, folds)


def _vision(config: VisionEncoderConfig) -> Component:
    def graph(layer: int, prefix: str) -> LayerGraph:
        root, encoder = VisionBlock(config, STYLE), VisionEncoder(replace(config, layers=0), STYLE)

        def forward(op: Op, hidden: Value, positions: Value, window_slots: Value, patch_slots: Value) -> Value:
            cos, sin = encoder.rotary_tables(op, positions)
            alone = layer not in config.full_attention_layers
            windows = encoder.windows(op, hidden, window_slots, patch_slots) if alone else None
            after: Value = root(op, hidden, cos, sin, windows)
            return after

        inputs = [
            Port("hidden", STYLE.dtype, ("temporal_patches", "patches", config.width)),
            Port("positions", INT64, ("patches", 2)),
            Port("window_slots", INT64, ("windows", config.window_patches)),
            Port("patch_slots", INT64, ("patches",)),
        ]
        return layer_graph("vision_encoder", root, prefix, inputs, forward)

    folds = (
        Fold("attn.proj", "attn.v"),
        Fold("mlp.down_proj", "mlp.up_proj"),
        Fold("attn.q", "norm1"),
        Fold("mlp.gate_proj", "norm2"),
    )
    return Component("vision", "thinker.visual.", "blocks.", config.layers, graph, folds)


def _dit(config: DiTConfig) -> Component:
    def graph(layer: int, prefix: str) -> LayerGraph:
        dit = DiT(config, STYLE)  # only its methods are used here, which take their sizes from it
        root = DiTBlock(config, STYLE, layer)

        def forward(op: Op, hidden: Value, frames: Value, modulation: Value) -> Value:
            rows = dit.modulation_rows(op, modulation)[6 * layer : 6 * layer + 6]
            after: Value = root(op, hidden, rows, dit.blocks(op, frames, op.Shape(hidden, start=1, end=2)))
            return after

        inputs = [
            Port("hidden", STYLE.dtype, (2, "padded_frames", config.hidden_size)),
            Port("frames", INT64, (1,)),
            Port("modulation", STYLE.dtype, (config.modulation_rows, config.hidden_size)),
        ]
        return layer_graph("dit", root, prefix, inputs, forward)

    # Its norms have no weights of their own, and GELU stands between the two Linears of a feed-forward.
    folds = (Fold("attn.to_out.0", "attn.to_v"),)
    return Component("dit", DIT_PREFIX, "transformer_blocks.", config.layers, graph, folds)
