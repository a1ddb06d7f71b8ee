"""A cache kept in fewer bits than the rest: what is read is what is stored, in half or a quarter of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from bundles import make_manifest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.calibrate.inputs import Steps
from nearfield.calibrate.kv_scales import decoder_scales
from nearfield.errors import BundleError
from nearfield.export.attention import CacheScales
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.graph import Style
from nearfield.export.thinker import thinker_graph
from nearfield.runtime.decoder import Decoder, check_cache_type
from nearfield.runtime.manifest import CacheType, Component, FloatType, KVCache, decode, encode
from nearfield.runtime.session import Array, Memory, Session, SessionSettings, open_session
from tolerances import CHUNKED_CACHE, relative_error

POSITIONS, CONTEXT = 29, 33


def component(dtype: FloatType = "float32") -> Component:
    return Component(graph="", data="", dtype=dtype, dialect="ort", parameters=0, quantization=None)


def prompt(seed: int, width: int) -> tuple[Array, Array]:
    """Embeddings `(S, D)` and ids `(3, S)` that differ on all three axes."""
    steps = np.arange(POSITIONS)
    embeddings = np.random.default_rng(seed).standard_normal((POSITIONS, width)).astype(np.float32)
    return embeddings, np.stack([steps, steps // 2 + 3, steps % 7])


@dataclass(frozen=True)
class Case:
    """The Thinker's graph with one type of cache."""

    session: Session
    config: DecoderConfig
    dtype: CacheType
    scales: CacheScales | None

    @property
    def cache(self) -> KVCache:
        config = self.config
        return KVCache(layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim, dtype=self.dtype)

    def open(self, chunk_positions: int = 512) -> Decoder:
        return Decoder(
            self.session, component(), self.cache, name="Thinker", vocab_size=self.config.vocab_size,
            context=CONTEXT, chunk_positions=chunk_positions,
        )  # fmt: skip

    def written(self, output: str) -> Array:
        """What a prompt leaves in one of the cache's buffers."""
        embeddings, position_ids = prompt(99, self.config.hidden_size)
        empty = np.zeros((1, self.config.kv_heads, POSITIONS, self.config.head_dim), self.dtype)
        cache = {name: empty for name in self.session.input_names if name.startswith("past_key_values.")}
        lengths = {
            "seqlens_k": np.array([POSITIONS - 1], np.int32),
            "total_sequence_length": np.array(POSITIONS, np.int32),
        }
        inputs = {"inputs_embeds": embeddings[None], "position_ids": position_ids, **cache, **lengths}
        return self.session.run(inputs)[output]


@pytest.fixture(scope="module")
def cases(checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[CacheType, Case]:
    checkpoint = Checkpoint.open(checkpoint_3b)
    config = DecoderConfig.from_hf(checkpoint.config.section("thinker_config").section("text_config"))
    folder = tmp_path_factory.mktemp("calibration")
    no_media, no_codes = np.zeros(POSITIONS, np.bool_), np.empty(0, np.int64)
    steps = [Steps(*prompt(seed, config.hidden_size), POSITIONS, no_media, no_codes) for seed in range(8)]
    scales, _ = decoder_scales("thinker", config, checkpoint, steps, folder, 1, lambda *_: None)
    cases: dict[CacheType, Case] = {}
    for dtype in get_args(CacheType):
        cache = replace(config.cache, dtype=dtype, scales=scales if dtype == "int8" else None)
        directory = tmp_path_factory.mktemp(dtype)
        written = write_component(thinker_graph(config, Style("ort", "float32"), cache), Reader(checkpoint), directory)
        cases[dtype] = Case(
            open_session(directory / written.graph, SessionSettings(threads=1)), config, dtype, cache.scales
        )
    return cases


@pytest.fixture(params=["float16", "int8"])
def case(request: pytest.FixtureRequest, cases: dict[CacheType, Case]) -> Case:
    return cases[request.param]


def test_pieces_of_any_size_equal_one_piece(case: Case) -> None:
    embeddings, position_ids = prompt(99, case.config.hidden_size)
    whole = case.open().prefill(embeddings, position_ids)
    for chunk_positions in (1, 7, 28):
        pieces = case.open(chunk_positions=chunk_positions).prefill(embeddings, position_ids)
        assert relative_error(pieces.logits, whole.logits) <= CHUNKED_CACHE[case.dtype]
        assert pieces.last_hidden_state is not None
        assert whole.last_hidden_state is not None
        assert relative_error(pieces.last_hidden_state, whole.last_hidden_state) <= CHUNKED_CACHE[case.dtype]


def test_cutting_back_and_going_on_by_steps_equals_a_fresh_start(case: Case) -> None:
    embeddings, position_ids = prompt(99, case.config.hidden_size)
    position_ids[:] = position_ids[0]  # steps have one id for all axes
    whole = case.open().prefill(embeddings, position_ids)
    decoder = case.open()
    other, other_ids = prompt(98, case.config.hidden_size)

    @given(st.integers(20, POSITIONS - 1))
    def check(kept: int) -> None:
        decoder.reset()
        decoder.prefill(embeddings[:kept], position_ids[:, :kept])
        decoder.prefill(other[kept:], other_ids[:, kept:])
        decoder.truncate(kept)
        for place in range(kept, POSITIONS):
            output = decoder.step(embeddings[place], int(position_ids[0, place]))
        assert decoder.length == POSITIONS
        assert relative_error(output.logits, whole.logits) <= CHUNKED_CACHE[case.dtype]

    check()


def test_what_is_stored_stands_for_the_keys_and_values(case: Case, cases: dict[CacheType, Case]) -> None:
    for kind in ("key", "value"):
        exact, stored = (it.written(f"present.0.{kind}")[0] for it in (cases["float32"], case))  # (KV, S, H)
        if case.dtype == "float16":
            np.testing.assert_array_equal(stored, exact.astype(np.float16))
            continue
        assert case.scales is not None
        scale = getattr(case.scales, kind)[0][:, None]
        cut = np.clip(exact, -127 * scale, 127 * scale)
        assert (np.abs(stored * scale - cut) <= 0.501 * scale).all()
        assert np.abs(stored).max() > 100, "its codes are used"


@dataclass(frozen=True)
class CountingMemory(Memory):
    """Memory that notes how many bytes are taken of it."""

    taken: list[int] = field(default_factory=list)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> onnxruntime.OrtValue:
        self.taken.append(prod(shape) * np.dtype(dtype).itemsize)
        return super().zeros(shape, dtype)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_it_takes_the_bytes_of_its_type(
    cases: dict[CacheType, Case], dtype: CacheType, item_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, memory = cases[dtype].config, CountingMemory("cpu")
    monkeypatch.setattr(cases[dtype].session, "memory", memory)
    cases[dtype].open()
    assert sum(memory.taken) == 2 * config.layers * config.kv_heads * config.head_dim * CONTEXT * item_bytes


@pytest.mark.parametrize(
    ("dtype", "cache", "version", "needed"),
    [
        ("float32", "int8", "1.26.0", "1.27"),
        ("float32", "float16", "1.26.0", "1.27"),
        ("float32", "int8", "1.27.0", None),
        ("float16", "int8", "1.28.1", "1.29"),
        ("float16", "int8", "1.29.0", None),
        ("float16", "float16", "1.23.0", None),
        ("float32", None, "1.23.0", None),
    ],
)
def test_an_onnx_runtime_that_is_too_old_for_it_is_named(
    dtype: FloatType, cache: CacheType | None, version: str, needed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    shape = KVCache(layers=1, kv_heads=1, head_dim=2, dtype=cache)
    if needed is None:
        check_cache_type("Thinker", component(dtype), shape)
        return
    expected = rf"Thinker .* {cache} beside {dtype}, .* from {needed} on; {version} is installed.*--kv-cache same"
    with pytest.raises(BundleError, match=expected):
        check_cache_type("Thinker", component(dtype), shape)


def test_the_manifest_says_it_only_where_it_differs() -> None:
    old = make_manifest({})
    assert b'"dtype": null' not in encode(old)
    assert decode(encode(old), "m").thinker.kv_cache.stored_as(component("float16")) == "float16"
    cache = msgspec.structs.replace(old.thinker.kv_cache, dtype="int8")
    new = msgspec.structs.replace(old, thinker=msgspec.structs.replace(old.thinker, kv_cache=cache))
    assert decode(encode(new), "m") == new
    assert new.thinker.kv_cache.stored_as(component("float16")) == "int8"
