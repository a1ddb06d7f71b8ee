"""The decoder over real Thinker and Talker graphs: chunks, cutting, the context's limit, flat steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import ContextLimitError
from nearfield.export.bind import Reader, write_component
from nearfield.export.checkpoint import Checkpoint
from nearfield.export.decoder import DecoderConfig
from nearfield.export.graph import Style
from nearfield.export.talker import talker_graph
from nearfield.export.thinker import thinker_graph
from nearfield.runtime.decoder import Decoder, DecoderOutput
from nearfield.runtime.manifest import Component, Dialect, KVCache
from nearfield.runtime.session import Array, Session, SessionSettings, open_session
from tolerances import CHUNKED_PREFILL, relative_error

POSITIONS, CONTEXT = 29, 33
WIDTH = 160  # the 3B-shaped checkpoint's


@dataclass(frozen=True)
class Case:
    """A graph, loaded once, over which a test opens its own decoders."""

    session: Session
    name: str
    dialect: Dialect
    cache: KVCache
    vocab_size: int

    def open(self, session: Session | None = None, context: int = CONTEXT, chunk_positions: int = 512) -> Decoder:
        component = Component(graph="", data="", dtype="float32", dialect=self.dialect, parameters=0, quantization=None)
        return Decoder(
            session or self.session, component, self.cache, name=self.name, vocab_size=self.vocab_size,
            context=context, chunk_positions=chunk_positions,
        )  # fmt: skip


@pytest.fixture(scope="module", params=["thinker-ort", "thinker-standard", "talker-ort", "talker-standard"])
def case(request: pytest.FixtureRequest, checkpoint_3b: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, dialect = request.param.split("-")
    checkpoint = Checkpoint.open(checkpoint_3b)
    style = Style(dialect, "float32")
    thinker_section = checkpoint.config.section("thinker_config").section("text_config")
    config = DecoderConfig.from_hf(thinker_section if name == "thinker" else checkpoint.config.section("talker_config"))
    graph = thinker_graph(config, style) if name == "thinker" else talker_graph(config, WIDTH, style)
    directory = tmp_path_factory.mktemp(request.param)
    written = write_component(graph, Reader(checkpoint), directory)
    session = open_session(directory / written.graph, SessionSettings(threads=1))
    cache = KVCache(layers=config.layers, kv_heads=config.kv_heads, head_dim=config.head_dim)
    return Case(session, name, dialect, cache, config.vocab_size)


def prompt() -> tuple[Array, Array]:
    """Embeddings `(S, D)` and ids `(3, S)` that differ on all three axes."""
    steps = np.arange(POSITIONS)
    embeddings = np.random.default_rng(5).standard_normal((POSITIONS, WIDTH)).astype(np.float32)
    return embeddings, np.stack([steps, steps // 2 + 3, steps % 7])


def assert_same(out: DecoderOutput, expected: DecoderOutput) -> None:
    assert relative_error(out.logits, expected.logits) <= CHUNKED_PREFILL
    if expected.last_hidden_state is not None:
        assert out.last_hidden_state is not None
        assert relative_error(out.last_hidden_state, expected.last_hidden_state) <= CHUNKED_PREFILL


@pytest.mark.parametrize("chunk_positions", [1, 2, 3, 7, 16, 28])
def test_chunks_of_any_size_equal_one_piece(case: Case, chunk_positions: int) -> None:
    embeddings, position_ids = prompt()
    whole = case.open().prefill(embeddings, position_ids)
    assert_same(case.open(chunk_positions=chunk_positions).prefill(embeddings, position_ids), whole)


def test_several_prefills_and_steps_equal_one_piece(case: Case) -> None:
    embeddings, position_ids = prompt()
    position_ids[:, 20:] = position_ids[0, 20:]  # steps have one id for all axes
    whole = case.open().prefill(embeddings, position_ids)
    decoder = case.open()
    decoder.prefill(embeddings[:13], position_ids[:, :13])
    decoder.prefill(embeddings[13:20], position_ids[:, 13:20])
    for place in range(20, POSITIONS):
        output = decoder.step(embeddings[place], int(position_ids[0, place]))
    assert decoder.length == POSITIONS
    assert relative_error(output.logits, whole.logits) <= CHUNKED_PREFILL


def test_cutting_back_and_going_on_equals_a_fresh_start(case: Case) -> None:
    embeddings, position_ids = prompt()
    whole = case.open().prefill(embeddings, position_ids)
    decoder = case.open()
    other = np.random.default_rng(6).standard_normal((CONTEXT, WIDTH)).astype(np.float32)

    @given(st.integers(0, POSITIONS - 1))
    def check(kept: int) -> None:
        decoder.reset()
        assert decoder.length == 0
        if kept:
            decoder.prefill(embeddings[:kept], position_ids[:, :kept])
        decoder.prefill(other[kept:], np.zeros((3, CONTEXT - kept), np.int64))  # to the end of the context
        decoder.truncate(kept)
        assert decoder.length == kept
        output = decoder.prefill(embeddings[kept:], position_ids[:, kept:])
        assert relative_error(output.logits, whole.logits) <= CHUNKED_PREFILL

    check()


def test_results_stay_what_they_were_when_the_decoder_goes_on(case: Case) -> None:
    embeddings, position_ids = prompt()
    decoder = case.open()
    first = decoder.prefill(embeddings, position_ids)
    logits = first.logits.copy()
    decoder.step(embeddings[3], 99)
    np.testing.assert_array_equal(first.logits, logits)


def test_what_does_not_fit_is_refused_before_anything_runs(case: Case) -> None:
    embeddings, position_ids = prompt()
    decoder = case.open(context=POSITIONS + 1)
    decoder.prefill(embeddings, position_ids)
    expected = (
        rf"2 positions after the {POSITIONS} already there make {POSITIONS + 2}, its context holds {POSITIONS + 1}; "
        r"shorten the conversation \(text, sound, image sizes\), or load the bundle with a larger context"
    )
    with pytest.raises(ContextLimitError, match=expected):
        decoder.prefill(embeddings[:2], position_ids[:, :2])
    assert decoder.length == POSITIONS
    decoder.step(embeddings[0], POSITIONS)  # the last place
    with pytest.raises(ContextLimitError, match="1 positions after the 30"):
        decoder.step(embeddings[0], POSITIONS + 1)


def test_an_empty_prefill_and_a_cut_beyond_the_end_are_refused(case: Case) -> None:
    decoder = case.open()
    with pytest.raises(ValueError, match="no positions to feed"):
        decoder.prefill(np.zeros((0, WIDTH), np.float32), np.zeros((3, 0), np.int64))
    with pytest.raises(ValueError, match="holds 0 positions and cannot be cut to 1"):
        decoder.truncate(1)


class FailingSession(Session):
    """A session whose run fails the given time."""

    def __init__(self, session: Session, fails_at_run: int, error: BaseException) -> None:
        self.__dict__.update(session.__dict__)
        self._runs, self._fails_at_run, self._error = 0, fails_at_run, error

    def run_bound(self, binding: Any) -> None:
        self._runs += 1
        if self._runs == self._fails_at_run:
            raise self._error
        super().run_bound(binding)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_failed_run_leaves_the_sequence_as_it_was(case: Case, error: BaseException) -> None:
    embeddings, position_ids = prompt()
    whole = case.open().prefill(embeddings, position_ids)
    decoder = case.open(session=FailingSession(case.session, 3, error), chunk_positions=8)
    decoder.prefill(embeddings[:5], position_ids[:, :5])
    with pytest.raises(type(error)):
        decoder.prefill(embeddings[5:], position_ids[:, 5:])  # its second chunk
    assert decoder.length == 5
    output = decoder.prefill(embeddings[5:], position_ids[:, 5:])
    assert relative_error(output.logits, whole.logits) <= CHUNKED_PREFILL


class BindingLog:
    """A binding that notes what is bound to it."""

    def __init__(self, binding: Any) -> None:
        self.inner, self.bound = binding, list[str]()

    def bind_cpu_input(self, name: str, array: Array) -> None:
        self.bound.append(name)
        self.inner.bind_cpu_input(name, array)

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self.bound.append(name)
        self.inner.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        self.bound.append(name)
        self.inner.bind_ortvalue_output(name, value)


class LoggedSession(Session):
    """A session that logs its one binding."""

    def __init__(self, session: Session) -> None:
        self.__dict__.update(session.__dict__)
        self.log = BindingLog(session.binding())

    def binding(self) -> BindingLog:
        return self.log

    def run_bound(self, binding: BindingLog) -> None:
        super().run_bound(binding.inner)


def test_a_step_in_dialect_ort_binds_nothing_that_grows_with_the_length(case: Case) -> None:
    embeddings, position_ids = prompt()
    session = LoggedSession(case.session)
    decoder = case.open(session=session)
    decoder.prefill(embeddings, position_ids)
    session.log.bound.clear()
    decoder.step(embeddings[0], POSITIONS)
    per_position = {"inputs_embeds", "position_ids", "seqlens_k", "total_sequence_length", "logits"}
    cached = [name for name in session.log.bound if name.startswith(("past_key_values.", "present."))]
    if case.dialect == "ort":
        assert set(session.log.bound) - {"last_hidden_state"} == per_position
    else:
        assert len(cached) == 4 * case.cache.layers, "past and present, key and value, of each layer"
