"""What the Talker is given for each calibration sample: the Thinker's rows, and the codes it says them with.

Inputs: the Thinker's steps and its last hidden states → outputs: the Talker's `Steps`, already through its projection.
The codes are drawn by the Talker itself in full precision, as at run time, from a seed a sample; voices take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..export.checkpoint import Checkpoint
from ..export.export import Configs, talker_settings
from ..export.talker import talker_graph
from ..export.voices import read_voices
from ..runtime import manifest
from ..runtime.decoder import Decoder, DecoderOutput
from ..runtime.sampling import TALKER_DEFAULT
from ..runtime.session import Array, Session
from ..runtime.talker import Talker
from ..runtime.thinker import talker_prompt_rows
from .inputs import Float32, Int64, Progress, Steps, embedding_rows, open_component
from .layers import STYLE

MOST_CODES = 250
"""Codes drawn for a sample: five seconds of speech."""


class _Recording(Decoder):
    """A decoder that keeps what it was fed."""

    def __init__(self, session: Session, cache: manifest.KVCache, *, vocab_size: int, context: int) -> None:
        component = manifest.Component(
            graph="", data="", dtype="float32", dialect=STYLE.dialect, parameters=0, quantization=None
        )
        super().__init__(session, component, cache, name="Talker", vocab_size=vocab_size, context=context)
        self._fed: list[tuple[Array, Int64]] = []

    def prefill(self, embeddings: Array, position_ids: Int64) -> DecoderOutput:
        self._fed.append((embeddings, position_ids))
        return super().prefill(embeddings, position_ids)

    def taken(self) -> tuple[Float32, Int64]:
        """All that was fed since the last call: `(S, E)` and `(3, S)`."""
        embeddings = np.concatenate([rows for rows, _ in self._fed]).astype(np.float32, copy=False)
        position_ids = np.concatenate([ids for _, ids in self._fed], axis=1)
        self._fed.clear()
        return embeddings, position_ids


@dataclass(frozen=True)
class _SomeRows:
    """The rows of a table that are asked for, under the numbers they have in it."""

    numbers: Int64
    rows: Float32

    def __getitem__(self, numbers: Int64) -> Float32:
        return self.rows[np.searchsorted(self.numbers, numbers)]


def last_hidden_states(checkpoint: Checkpoint, states: Iterable[Float32]) -> list[Float32]:
    """The Thinker's `last_hidden_state (S, D)` from what its last layer puts out: its final norm, outside of all."""
    weight = checkpoint.read("thinker.model.norm.weight").astype(np.float32)
    epsilon = np.float32(Configs.from_hf(checkpoint.config).thinker.norm_epsilon)
    return [each / np.sqrt(np.mean(each**2, axis=-1, keepdims=True) + epsilon) * weight for each in states]


def talker_steps(
    checkpoint: Checkpoint, steps: Sequence[Steps], hidden: Sequence[Float32], folder: Path, threads: int | None,
    progress: Progress,
) -> list[Steps]:  # fmt: skip
    """Speak every sample's reply; `hidden (S, D)` are the Thinker's last hidden states for `steps`."""
    configs = Configs.from_hf(checkpoint.config)
    settings = talker_settings(checkpoint.config.section("talker_config"), configs)
    voices = [voice.bos_token_id for _, voice in sorted(read_voices(checkpoint.path / "spk_dict.pt").items())]
    context = max(len(it.embeddings) for it in steps) + MOST_CODES + 2
    session = open_component(checkpoint, talker_graph(configs.talker, configs.embedding_size, STYLE), folder, threads)
    decoder = _Recording(session, settings.kv_cache, vocab_size=settings.vocab_size, context=context)
    words = np.unique([settings.text_eos_token_id, settings.text_pad_token_id, *voices])
    text = _SomeRows(words, embedding_rows(checkpoint, words))
    codes = checkpoint.read("talker.model.embed_tokens.weight").astype(np.float32, copy=False)
    talker = Talker(decoder, settings, codes, text, code_count=configs.dit.num_embeds)
    projection, bias = (
        checkpoint.read(f"talker.thinker_to_talker_proj.{name}").astype(np.float32) for name in ("weight", "bias")
    )
    spoken = []
    for number, (it, states) in enumerate(zip(steps, hidden, strict=True)):
        progress("speaking", number, len(steps))
        position_ids = it.position_ids[:, : it.prompt]
        talker.reset()
        talker.read(
            talker_prompt_rows(states[: it.prompt], it.embeddings[: it.prompt], it.is_media[: it.prompt]), position_ids
        )
        talker.begin(
            next_position=int(position_ids[0, -1]) + 1,
            largest_position=int(position_ids.max()),
            voice_bos_token_id=voices[number % len(voices)],
            sampling=TALKER_DEFAULT,
            generator=np.random.default_rng(number),
            max_codes=MOST_CODES,
        )
        for row in states[it.prompt :] + it.embeddings[it.prompt :]:
            talker.push(row)
        talker.finish_text()
        drawn = np.array(list(talker.codes()), np.int64)
        fed, all_position_ids = decoder.taken()
        embeddings: Float32 = fed @ projection.T + bias
        spoken.append(Steps(embeddings, all_position_ids, it.prompt, np.zeros(len(embeddings), np.bool_), drawn))
    return spoken
