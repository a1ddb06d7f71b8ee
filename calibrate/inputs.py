"""What the Thinker is given for each calibration sample (the Talker: `speech.py`; encoders and DiT: `fronts.py`).

Inputs: samples, a checkpoint → outputs: `Steps`, embeddings `float32 (S, E)` with TMRoPE ids `(3, S)`, as the runtime
would feed them for the conversation with its reply. Encoders and Talker run as the graphs that are deployed, in
float32, one after another, so that memory holds one of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..export.audio_encoder import audio_encoder_graph
from ..export.bind import Reader, Weights, write_component
from ..export.checkpoint import Checkpoint
from ..export.export import Configs
from ..export.graph import ComponentGraph
from ..export.vision_encoder import vision_encoder_graph
from ..runtime.encoders import AudioEncoder, VisionEncoder
from ..runtime.messages import Audio, Image, Video
from ..runtime.prompt import media_parts
from ..runtime.session import Session, SessionSettings, open_session
from .front import Front
from .layers import STYLE
from .samples import Sample

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

EMBEDDING = "thinker.model.embed_tokens.weight"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Steps:
    """One sample as a decoder reads it."""

    embeddings: Float32
    """(S, E)."""
    position_ids: Int64
    """(3, S)."""
    prompt: int
    """Positions before the reply."""
    is_media: npt.NDArray[np.bool_]
    """(S): rows that an encoder made."""
    codes: Int64
    """(n): of a sample that the Talker reads, the speech codes it drew."""

    @classmethod
    def of(cls, record: Mapping[str, npt.NDArray[Any]]) -> Steps:
        """From arrays by name, as `vars` gives them and a file keeps them."""
        return cls(
            embeddings=record["embeddings"],
            position_ids=record["position_ids"],
            prompt=int(record["prompt"]),
            is_media=record["is_media"],
            codes=record["codes"],
        )


Progress = Callable[[str, float, float], None]
"""Called with what is at work, how much of it is done, and how much there is."""


def thinker_steps(
    checkpoint: Checkpoint, weights: Weights, samples: Sequence[Sample], folder: Path, threads: int | None,
    progress: Progress,
) -> list[Steps]:  # fmt: skip
    """Lay out every sample with its reply and embed it; `folder` takes graphs for the time being.

    `weights` are those of the encoders: the checkpoint's, or what their codes stand for. Raises `InputError` for a
    sample that is longer than the model's positions.
    """
    front = Front.read(checkpoint.path, checkpoint.config)
    configs = Configs.from_hf(checkpoint.config)
    prompts = [front.prompt(sample.messages) for sample in samples]
    replies = [front.tokenizer.encode(sample.reply) for sample in samples]
    for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True), start=1):
        length = len(prompt.token_ids) + len(reply)
        if length > configs.thinker.max_positions:
            raise InputError(
                f"calibration sample {number} takes {length} positions; the model has {configs.thinker.max_positions}: "
                "shorten it"
            )
    tokens = [np.append(prompt.token_ids, reply) for prompt, reply in zip(prompts, replies, strict=True)]
    used = np.unique(np.concatenate(tokens))
    table = embedding_rows(checkpoint, used)
    rows = [table[np.searchsorted(used, each)] for each in tokens]
    encoded = _encode(weights, configs, front, samples, folder, threads, progress)
    steps = []
    for index, prompt in enumerate(prompts):
        for slot in prompt.slots:
            rows[index][slot.indices] = encoded[index, slot.part, "audio" if slot.kind == "audio" else "vision"]
        last = int(prompt.position_ids[0, -1])
        reply_ids = np.tile(np.arange(last + 1, last + 1 + len(replies[index])), (3, 1))
        is_media = np.append(prompt.is_media, np.zeros(len(replies[index]), np.bool_))
        positions = np.concatenate([prompt.position_ids, reply_ids], axis=1)
        steps.append(Steps(rows[index], positions, len(prompt.token_ids), is_media, np.empty(0, np.int64)))
    return steps


def embedding_rows(checkpoint: Checkpoint, token_ids: Int64) -> Float32:
    """Rows of the Thinker's embedding table for sorted, different `token_ids`; the table is read in blocks."""
    rows = np.empty((len(token_ids), checkpoint.shape(EMBEDDING)[1]), np.float32)
    for start, block in checkpoint.rows(EMBEDDING, _ROWS_AT_ONCE):
        first, last = np.searchsorted(token_ids, [start, start + len(block)])
        rows[first:last] = block[token_ids[first:last] - start]
    return rows


def media_of(samples: Sequence[Sample]) -> tuple[list[tuple[int, int, Audio]], list[tuple[int, int, Image | Video]]]:
    """All sounds, and all pictures and videos, each with its sample and its place among the sample's media."""
    sounds: list[tuple[int, int, Audio]] = []
    shown: list[tuple[int, int, Image | Video]] = []
    for index, sample in enumerate(samples):
        for place, part in enumerate(media_parts(sample.messages)):
            if isinstance(part, Audio):
                sounds.append((index, place, part))
                continue
            shown.append((index, place, part))
            if isinstance(part, Video) and part.audio is not None:
                sounds.append((index, place, part.audio))
    return sounds, shown


def _encode(
    weights: Weights, configs: Configs, front: Front, samples: Sequence[Sample], folder: Path,
    threads: int | None, progress: Progress,
) -> dict[tuple[int, int, str], Float32]:  # fmt: skip
    """Embeddings of every sound and picture, by sample, place among its media, and "audio" or "vision"."""
    sounds, shown = media_of(samples)
    encoded: dict[tuple[int, int, str], Float32] = {}
    if sounds:
        hearing = AudioEncoder(
            open_component(weights, audio_encoder_graph(configs.audio, STYLE), folder, threads),
            front.audio,
            "float32",
        )
        for done, (index, place, sound) in enumerate(sounds):
            progress("hearing", done, len(sounds))
            encoded[index, place, "audio"] = hearing.hear(sound)
        del hearing  # its weights, before the next are loaded
    if shown:
        sight = VisionEncoder(
            open_component(weights, vision_encoder_graph(configs.vision, STYLE), folder, threads),
            front.vision,
            "float32",
        )
        for done, (index, place, picture) in enumerate(shown):
            progress("seeing", done, len(shown))
            encoded[index, place, "vision"] = sight.see(picture)
    return encoded


def open_component(weights: Weights, component: ComponentGraph, folder: Path, threads: int | None) -> Session:
    """Write a component's graph in full precision and load it."""
    write_component(component, Reader(weights), folder)
    return open_session(folder / f"{component.name}.onnx", SessionSettings(threads=threads))
