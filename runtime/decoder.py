"""A decoder graph with its key/value cache: Thinker and Talker are two of them.

Inputs: embeddings `(S, width)` and their TMRoPE ids `(3, S)` → outputs: `logits float32 (1, V)` of the last position
and, where the graph has it, `last_hidden_state (S, width)`.

The cache lies on the session's device and is bound, never passed: dialect `ort` writes into one buffer allocated once
for the whole context, bound as past and present alike, so that a step costs the same wherever it stands; `standard`
hands the present tensors of a call to the next as its past. In `ort` it may be kept in fewer bits than the rest
(`KVCache.dtype`): the graph rounds what it writes, and reads what it has written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from ..errors import BundleError, ContextLimitError
from .manifest import Component, KVCache
from .session import Array, Memory, Session

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

CHUNK_POSITIONS = 512
"""Prompt positions in one run of the graph: bounds the activations' memory, at the price of a run more."""

_HIDDEN = "last_hidden_state"
_HOST = Memory("cpu")

_OWN_CACHE_TYPE_SINCE = (1, 27)
_INT8_BESIDE_FLOAT16_SINCE = (1, 29)
"""Versions of ONNX Runtime; before, some fail as they load a graph and some as they run it."""


def check_cache_type(name: str, component: Component, cache: KVCache) -> None:
    """Raise `BundleError` when the ONNX Runtime installed here cannot keep this cache; `name` is for people."""
    stored = cache.stored_as(component)
    if stored == component.dtype:
        return
    since = _INT8_BESIDE_FLOAT16_SINCE if component.dtype == "float16" else _OWN_CACHE_TYPE_SINCE
    installed = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if installed < since:
        needed = ".".join(map(str, since))
        raise BundleError(
            f"{name} keeps its cache as {stored} beside {component.dtype}, which ONNX Runtime can from {needed} on; "
            f"{onnxruntime.__version__} is installed: install onnxruntime>={needed} (for CUDA onnxruntime-gpu), or "
            "export the bundle again with --kv-cache same"
        )


@dataclass(frozen=True)
class DecoderOutput:
    """What a run gave: `logits float32 (1, V)` of the last position, hidden states `(S, width)` or None."""

    logits: Float32
    last_hidden_state: Array | None


class Decoder:
    """One sequence in progress. `length` positions are in the cache; the next ones attend to all of them.

    A run that fails leaves the sequence as it was.
    """

    def __init__(
        self,
        session: Session,
        component: Component,
        cache: KVCache,
        *,
        name: str,
        vocab_size: int,
        context: int,
        chunk_positions: int = CHUNK_POSITIONS,
    ) -> None:
        """`name` is what errors call it; `context` is the most positions it can hold, allocated at once in `ort`."""
        self.name, self.context = name, context
        self._session, self._vocab_size, self._chunk_positions = session, vocab_size, chunk_positions
        self._dtype = np.dtype(component.dtype)
        self._binding = session.binding()
        self._has_hidden = _HIDDEN in session.output_names
        shared = component.dialect == "ort"
        kind = _SharedCache if shared else _GrowingCache
        self._cache: _Cache = kind(self._binding, session.memory, cache, context, np.dtype(cache.stored_as(component)))
        self._length = 0

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._length

    def prefill(self, embeddings: Array, position_ids: Int64) -> DecoderOutput:
        """Append `embeddings (S, width)` at `position_ids (3, S)`, in chunks; hidden states are those of all chunks.

        Raises `ContextLimitError`, before anything is run, when they do not fit.
        """
        count, width = embeddings.shape
        if count == 0:
            raise ValueError(f"{self.name}: there are no positions to feed")
        self.check_fits(count)
        hidden = np.empty((count, width), self._dtype) if self._has_hidden else None
        logits = np.empty((1, self._vocab_size), np.float32)
        start_length = self._length
        try:
            for start in range(0, count, self._chunk_positions):
                chunk = slice(start, min(start + self._chunk_positions, count))
                self._run(embeddings[chunk], position_ids[:, chunk], logits, None if hidden is None else hidden[chunk])
        except BaseException:  # an interruption too
            self.truncate(start_length)
            raise
        return DecoderOutput(logits, hidden)

    def step(self, embedding: Array, position: int) -> DecoderOutput:
        """Append one `embedding (width,)` whose three TMRoPE ids are `position`. Raises as `prefill`."""
        return self.prefill(embedding[None], np.full((3, 1), position, np.int64))

    def truncate(self, length: int) -> None:
        """Forget all positions from `length` on. In `ort` nothing is copied."""
        if not 0 <= length <= self._length:
            raise ValueError(f"{self.name} holds {self._length} positions and cannot be cut to {length}")
        if length < self._length:
            self._cache.truncate(length)
            self._length = length

    def reset(self) -> None:
        """Forget everything."""
        self.truncate(0)

    def check_fits(self, count: int) -> None:
        """Raise `ContextLimitError` when `count` more positions do not fit."""
        if self._length + count > self.context:
            raise ContextLimitError(
                f"{self.name}: {count} positions after the {self._length} already there make {self._length + count}, "
                f"its context holds {self.context}; shorten the conversation (text, sound, image sizes), "
                "or load the bundle with a larger context"
            )

    def _run(self, embeddings: Array, position_ids: Int64, logits: Float32, hidden: Array | None) -> None:
        """Run the graph on one chunk; `logits` and `hidden` are written in place."""
        count = len(embeddings)
        binding = self._binding
        # Held until the run is over: a binding of ONNX Runtime up to 1.29 keeps no array alive.
        rows = np.ascontiguousarray(embeddings[None], self._dtype)  # (1, S, width)
        ids = np.ascontiguousarray(position_ids, np.int64)
        binding.bind_cpu_input("inputs_embeds", rows)
        binding.bind_cpu_input("position_ids", ids)
        binding.bind_ortvalue_output("logits", _HOST.place(logits))
        if hidden is not None:
            binding.bind_ortvalue_output(_HIDDEN, _HOST.place(hidden[None]))
        self._cache.prepare(self._length, count)
        self._session.run_bound(binding)
        self._cache.commit()
        self._length += count


class _Cache(Protocol):
    """Where keys and values lie between runs."""

    def prepare(self, past: int, new: int) -> None:
        """Bind the cache's inputs and outputs for a run of `new` positions after `past`."""
        ...

    def commit(self) -> None:
        """Take over what the run wrote."""
        ...

    def truncate(self, length: int) -> None:
        """Drop positions from `length` on."""
        ...


def _names(cache: KVCache, prefix: str) -> list[str]:
    return [f"{prefix}.{layer}.{kind}" for layer in range(cache.layers) for kind in ("key", "value")]


class _SharedCache:
    """Dialect `ort`: a buffer `(1, kv_heads, context, head_dim)` for each tensor, written in place by the graph."""

    def __init__(
        self, binding: onnxruntime.IOBinding, memory: Memory, cache: KVCache, context: int, dtype: np.dtype[Any]
    ) -> None:
        self._binding = binding
        shape = (1, cache.kv_heads, context, cache.head_dim)
        names = list(zip(_names(cache, "past_key_values"), _names(cache, "present"), strict=True))
        # Zeros, not what was in memory: a masked product with NaN would still be NaN.
        self._buffers = [memory.zeros(shape, dtype) for _ in names]  # held here, as a binding may not
        for (past, present), buffer in zip(names, self._buffers, strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        self._lengths: tuple[Array, Array] | None = None

    def prepare(self, past: int, new: int) -> None:
        self._lengths = np.array([past + new - 1], np.int32), np.array(past + new, np.int32)
        for name, value in zip(("seqlens_k", "total_sequence_length"), self._lengths, strict=True):
            self._binding.bind_cpu_input(name, value)

    def commit(self) -> None:
        """Nothing to do: the graph wrote in place."""

    def truncate(self, length: int) -> None:
        """Nothing to do: what lies after the length is not read, and is written over."""


class _GrowingCache:
    """Dialect `standard`: the present tensors of one run are the past of the next."""

    def __init__(
        self, binding: onnxruntime.IOBinding, memory: Memory, cache: KVCache, context: int, dtype: np.dtype[Any]
    ) -> None:
        del context  # nothing is allocated ahead
        self._binding, self._memory, self._shape, self._dtype = binding, memory, cache, dtype
        self._past_names, self._present_names = _names(cache, "past_key_values"), _names(cache, "present")
        self._past: Sequence[onnxruntime.OrtValue] = [self._tensor(0) for _ in self._past_names]
        self._present: Sequence[onnxruntime.OrtValue] = []

    def prepare(self, past: int, new: int) -> None:
        self._present = [self._tensor(past + new) for _ in self._present_names]
        for name, value in zip(self._past_names, self._past, strict=True):
            self._binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._present_names, self._present, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def commit(self) -> None:
        self._past, self._present = self._present, []

    def truncate(self, length: int) -> None:
        self._past = [self._memory.place(value.numpy()[:, :, :length]) for value in self._past]

    def _tensor(self, positions: int) -> onnxruntime.OrtValue:
        return self._memory.empty((1, self._shape.kv_heads, positions, self._shape.head_dim), self._dtype)
