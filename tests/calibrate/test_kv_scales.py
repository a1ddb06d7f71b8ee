"""Scales of an int8 cache: they bound keys and values at every position, and what they lose on nano is little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.calibrate.inputs import Float32, Steps, thinker_steps
from nearfield.calibrate.kv_scales import LARGEST_CODE, MARGIN, decoder_scales, kv_scales, largest_keys
from nearfield.calibrate.samples import Sample
from nearfield.export.attention import CacheScales, CacheShape
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.export import Configs
from nearfield.export.graph import Style
from nearfield.export.thinker import thinker_graph
from nearfield.nano.questions import load, messages
from nearfield.runtime.decoder import Decoder
from nearfield.runtime.manifest import Component, KVCache
from nearfield.runtime.messages import Message, Text
from nearfield.runtime.session import SessionSettings, open_session
from tolerances import CACHE_LOSS, FP32_RELATIVE, relative_error

CALIBRATED_ON, JUDGED_ON = 24, 8


def quiet(_: str, __: float, ___: float) -> None:
    pass


@dataclass(frozen=True)
class Nano:
    """Nano's Thinker and conversations it reads, typed ones, which need no encoder."""

    checkpoint: Checkpoint
    config: DecoderConfig
    steps: list[Steps]
    scales: CacheScales
    folder: Path

    def hidden(self, cache: CacheShape, first_position: int = 0) -> Float32:
        """Hidden states of the conversations that are judged, with a cache of this type."""
        config = self.config
        written = write_component(
            thinker_graph(config, Style("ort", "float32"), cache), Reader(self.checkpoint), self.folder
        )
        component = Component(graph="", data="", dtype="float32", dialect="ort", parameters=0, quantization=None)
        shape = KVCache(layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=cache.dtype)
        decoder = Decoder(
            open_session(self.folder / written.graph, SessionSettings(threads=1)), component, shape,
            name="Thinker", vocab_size=config.vocab_size, context=256,
        )  # fmt: skip
        found = []
        for it in self.steps[CALIBRATED_ON:]:
            decoder.reset()
            found.append(decoder.prefill(it.embeddings, it.position_ids + first_position).last_hidden_state)
        return np.concatenate([states for states in found if states is not None])


@pytest.fixture(scope="module")
def nano(checkpoint_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Nano:
    checkpoint, folder = Checkpoint.open(checkpoint_nano), tmp_path_factory.mktemp("nano")
    config = Configs.from_hf(checkpoint.config).thinker
    typed = [item for item in load() if item.task == "typed"][::3][: CALIBRATED_ON + JUDGED_ON]
    samples = [Sample(messages(item), item.reply) for item in typed]
    steps = thinker_steps(checkpoint, checkpoint, samples, folder, 1, quiet)
    scales, _ = decoder_scales("thinker", config, checkpoint, steps[:CALIBRATED_ON], folder, 1, quiet)
    return Nano(checkpoint, config, steps, scales, folder)


@pytest.fixture(scope="module")
def exact(nano: Nano) -> Float32:
    return nano.hidden(nano.config.cache)


def test_a_float16_cache_loses_next_to_nothing_on_nano(nano: Nano, exact: Float32) -> None:
    found = nano.hidden(replace(nano.config.cache, dtype="float16"))
    assert 0 < relative_error(found, exact) <= CACHE_LOSS["float16"]


@pytest.mark.parametrize("first_position", [0, 20_000])
def test_an_int8_cache_loses_little_on_nano_however_far_it_has_come(
    nano: Nano, exact: Float32, first_position: int
) -> None:
    found = nano.hidden(replace(nano.config.cache, dtype="int8", scales=nano.scales), first_position)
    assert relative_error(found, exact) <= CACHE_LOSS["int8"]


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_other_scales_lose_more(nano: Nano, exact: Float32, factor: float) -> None:
    wrong = CacheScales(nano.scales.key * np.float32(factor), nano.scales.value * np.float32(factor))
    found = nano.hidden(replace(nano.config.cache, dtype="int8", scales=wrong))
    assert relative_error(found, exact) > CACHE_LOSS["int8"]


@given(st.integers(0, 2**32 - 1), st.floats(-4e4, 4e4))
def test_a_key_stays_within_its_bound_wherever_it_is_turned(seed: int, angle: float) -> None:
    keys = np.random.default_rng(seed).standard_normal((1, 2, 5, 6)).astype(np.float32)
    bound = largest_keys(keys)
    first, second = np.split(keys, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    assert (np.abs(turned[0]).max(axis=1) <= bound * (1 + 1e-6)).all()
    assert bound.max() <= np.sqrt(2) * np.abs(keys).max(), "no more than it must be"


def test_layers_alone_find_what_the_whole_graph_writes(checkpoint_7b: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoint_7b)
    config = Configs.from_hf(checkpoint.config).thinker
    rng = np.random.default_rng(3)
    count = 11
    steps = [
        Steps(
            rng.standard_normal((count, config.hidden_size)).astype(np.float32),
            np.stack([np.arange(count), np.arange(count) // 2, np.arange(count) % 3]),
            count, np.zeros(count, np.bool_), np.empty(0, np.int64),
        )
        for _ in range(3)
    ]  # fmt: skip
    scales, states = decoder_scales("thinker", config, checkpoint, steps, tmp_path, 1, quiet)
    assert [state.shape for state in states] == [(count, config.hidden_size)] * 3
    written = write_component(thinker_graph(config, Style("ort", "float32")), Reader(checkpoint), tmp_path)
    session = open_session(tmp_path / written.graph, SessionSettings(threads=1))
    empty = np.zeros((1, config.kv_heads, count, config.head_dim), np.float32)
    runs = [
        session.run(
            {name: empty for name in session.input_names if name.startswith("past_key_values.")}
            | {
                "inputs_embeds": it.embeddings[None],
                "position_ids": it.position_ids,
                "seqlens_k": np.array([count - 1], np.int32),
                "total_sequence_length": np.array(count, np.int32),
            }
        )
        for it in steps
    ]
    statistic: dict[str, Callable[[Float32], Float32]] = {
        "key": largest_keys,
        "value": lambda values: np.abs(values[0]).max(axis=1),
    }
    for layer in range(config.layers):
        for kind, largest_of in statistic.items():
            largest = np.max([largest_of(run[f"present.{layer}.{kind}"]) for run in runs], axis=0)
            found = getattr(scales, kind)[layer] * (LARGEST_CODE / MARGIN)
            assert relative_error(found, largest) <= FP32_RELATIVE


def test_both_decoders_are_measured(checkpoint_3b: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoint_3b)
    samples = [Sample([Message("user", [Text(f"How much is {n} and one?")])], f"It is {n + 1}.") for n in range(2)]
    scales = kv_scales(checkpoint, samples, tmp_path, 1, quiet)
    configs = Configs.from_hf(checkpoint.config)
    for config, found in ((configs.thinker, scales["thinker"]), (configs.talker, scales["talker"])):
        for array in (found.key, found.value):
            assert array.shape == (config.layers, config.kv_heads, config.head_dim)
            assert array.dtype == np.float32
            assert (array > 0).all()
