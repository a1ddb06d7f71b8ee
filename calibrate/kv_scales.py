"""Scales of an int8 key/value cache: how large the keys and values of each channel get on calibration data.

Inputs: a checkpoint and calibration samples → output: for Thinker and Talker `CacheScales`, float32
`(layers, kv_heads, head_dim)`, which the graph holds as they are. Each layer runs alone, as the graph that is deployed,
in float32 and with the weights the checkpoint has (those its codes stand for, if it is quantized): memory is that of
one layer and the hidden states of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..export.attention import CacheScales
from ..export.checkpoint import Checkpoint
from ..export.decoder import DecoderConfig
from ..export.export import Configs
from ..export.graph import ComponentGraph, Port, build
from ..runtime.manifest import ComponentName
from .components import decoder_given, decoder_layer
from .inputs import Float32, Progress, Steps, open_component, thinker_steps
from .layers import STYLE
from .samples import Sample
from .speech import last_hidden_states, talker_steps

LARGEST_CODE = 127

MARGIN = 1.05
"""Of the largest seen: what is beyond is cut off. See docs/measurements/kv_cache.txt."""


def kv_scales(
    checkpoint: Checkpoint, samples: Sequence[Sample], folder: Path, threads: int | None, progress: Progress
) -> dict[ComponentName, CacheScales]:
    """Find the scales of both decoders; `folder` takes graphs for the time being. Raises `InputError`."""
    configs = Configs.from_hf(checkpoint.config)
    steps = thinker_steps(checkpoint, checkpoint, samples, folder, threads, progress)
    thinker, states = decoder_scales("thinker", configs.thinker, checkpoint, steps, folder, threads, progress)
    spoken = talker_steps(checkpoint, steps, last_hidden_states(checkpoint, states), folder, threads, progress)
    talker, _ = decoder_scales("talker", configs.talker, checkpoint, spoken, folder, threads, progress)
    return {"thinker": thinker, "talker": talker}


def decoder_scales(
    name: ComponentName, config: DecoderConfig, checkpoint: Checkpoint, steps: Sequence[Steps],
    folder: Path, threads: int | None, progress: Progress,
) -> tuple[CacheScales, list[Float32]]:  # fmt: skip
    """The scales of one decoder, and its hidden states `(S, width)` after the last layer, before the final norm."""
    given = [decoder_given(config, it) for it in steps]
    states = [it.hidden for it in given]
    shape = (config.layers, config.kv_heads, config.head_dim)
    keys, values = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for layer in range(config.layers):
        session = open_component(checkpoint, layer_graph(name, config, layer), folder, threads)
        for index, it in enumerate(given):
            progress(f"{name}'s keys and values", layer * len(given) + index, config.layers * len(given))
            outputs = session.run({"hidden": states[index], **it.others})
            states[index] = outputs["result"]
            keys[layer] = np.maximum(keys[layer], largest_keys(outputs["present.0.key"]))
            values[layer] = np.maximum(values[layer], np.abs(outputs["present.0.value"][0]).max(axis=1))
    return CacheScales(_scale(keys), _scale(values)), [state[0] for state in states]


def largest_keys(keys: Float32) -> Float32:
    """The largest each channel of `keys (1, kv_heads, S, head_dim)` can be at any position, `(kv_heads, head_dim)`.

    Rotary embedding turns channel `i` and channel `i + head_dim/2` into each other as positions go on, the slowest
    pairs over tens of thousands of them: what bounds both, wherever they stand, is the length of the pair.
    """
    first, second = np.split(keys[0], 2, axis=-1)  # (kv_heads, S, head_dim / 2)
    length = np.hypot(first, second).max(axis=1)
    return np.concatenate([length, length], axis=-1)


def layer_graph(name: ComponentName, config: DecoderConfig, layer: int) -> ComponentGraph:
    """One decoder layer: hidden states in; out come `result`, hidden states, and the layer's keys and values."""
    root, inputs, forward = decoder_layer(config)
    result = Port("result", STYLE.dtype, inputs[0].shape)
    outputs = [result, *replace(config.cache, layers=1).output_ports(STYLE)]
    model = build(root, STYLE, name, inputs, outputs, forward)
    return ComponentGraph(name, model, root, f"{name}.model.layers.{layer}.")


def _scale(largest: Float32) -> Float32:
    """Value of a code; a channel that is always zero gets any scale that is one."""
    return np.where(largest > 0, largest * np.float32(MARGIN / LARGEST_CODE), np.float32(1))
