"""How much memory a bundle will take, known before anything of it is loaded.

Inputs: a bundle (its manifest and what its graph files say of themselves) and a `Workload`: device, context, length of
a video … → output: a `MemoryPlan`, a line for every component and for what else there is, in bytes.

Each line is an upper estimate. Weights and caches are counted; what a run takes besides is its widest product times a
number measured on a CPU (docs/measurements/memory_plan.py, whose figures beside the plan's are in memory_plan.txt). No
GPU has been measured: what is assumed of one says so in its line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import msgspec
import numpy as np

from ..errors import ContextLimitError, InputError
from .bundle import Bundle
from .decoder import CHUNK_POSITIONS
from .encoders import BLOCKS_PER_CALL, PATCHES_PER_CALL
from .graph_file import GraphFacts, read_graph_facts
from .manifest import ComponentName, FloatType, KVCache, Manifest
from .mel import audio_tokens, mel_frames
from .parts import CONTEXT, MAX_CODES
from .session import Device
from .token2wav import PIECE_FRAMES
from .windows import WindowPlan

Place = Literal["device", "host"]
"""Where memory is taken: `host` is main memory, and with device `cpu` everything is there."""

VIDEO_FPS = 2.0
VIDEO_FRAME_PIXELS = 768 * 28 * 28
"""Frames a second, and pixels a frame is scaled down to: the defaults of Qwen's own video reader (qwen-omni-utils)."""

IMAGE_PIXELS = 1280 * 28 * 28
"""Pixels an image is scaled down to unless told otherwise."""

TEXT_POSITIONS = 640
"""Kept free beside a video: the system prompt and a question (128), and the reply (512)."""

_MIB = 1 << 20

# Measured on a CPU with ONNX Runtime 1.32 (docs/measurements/memory_plan.txt).
_PROCESS_BYTES = 100 * _MIB  # Python with NumPy, ONNX Runtime and the tokenizer
_FLOAT16_ON_CPU = 2.6  # a CPU computes in float32: the weights become that, and part of the arena stays unused
_PACKED_ON_CPU = {"ort": 1.2, "standard": 3.0}  # packed anew for the processor; `standard` first fuses operators
_LIVE_ROWS = {"dit": 9.0}  # arrays as wide as the widest product that a run holds at once
_LIVE_ROWS_OF_OTHERS = 6.0
_LIVE_SAMPLES = 16.0  # the same for the vocoder, arrays of one row of its last convolution's channels a sample
_ARENA_GROWTH = 2.0  # arrays that grow with the context: the arena doubles, and keeps what it has outgrown

# Assumed, never measured here.
_CUDA_CONTEXT_BYTES = 1024 * _MIB  # context, cuBLAS and cuDNN with their workspaces
_CUDA_HOST_BYTES = 2048 * _MIB  # the same libraries in main memory


@dataclass(frozen=True)
class Workload:
    """What memory is to suffice for."""

    device: Device = "cpu"
    context: int = CONTEXT
    """Positions of the Thinker."""
    video_seconds: float = 0.0
    """Of one video with its sound, 0 for none."""
    video_fps: float = VIDEO_FPS
    frame_pixels: int = VIDEO_FRAME_PIXELS
    image_pixels: int = IMAGE_PIXELS
    """Of the largest image, 0 for none."""
    codes: int = MAX_CODES
    """Of speech a reply may have, 0 for silence."""


@dataclass(frozen=True)
class MemoryLine:
    """What one component, or something beside them, takes."""

    name: str
    place: Place
    weights_bytes: int = 0
    """Taken as long as it is loaded: weights, tables, libraries."""
    cache_bytes: int = 0
    """Keys and values of the whole context."""
    work_bytes: int = 0
    """Most that a run takes besides; arenas keep it, so lines add up though components take turns."""
    loading_bytes: int = 0
    """Taken besides the weights while they are loaded, and given back."""
    note: str = ""

    @property
    def total_bytes(self) -> int:
        """All it holds at once when everything is loaded and running."""
        return self.weights_bytes + self.cache_bytes + self.work_bytes


@dataclass(frozen=True)
class MemoryPlan:
    """What a bundle takes for a workload."""

    workload: Workload
    lines: tuple[MemoryLine, ...]
    video_positions: int
    """Of the context, for the video."""

    def needed_bytes(self, place: Place) -> int:
        """Most memory that is taken at once: when all runs, or when the last weights are loaded."""
        lines = [line for line in self.lines if line.place == place]
        weights = sum(line.weights_bytes for line in lines)
        loading = max((line.loading_bytes for line in lines), default=0)
        return max(sum(line.total_bytes for line in lines), weights + loading)

    def largest(self, place: Place) -> MemoryLine:
        """The line that takes most."""
        return max((line for line in self.lines if line.place == place), key=lambda line: line.total_bytes)

    def fits(self, free_bytes: Mapping[Place, int | None]) -> bool:
        """Whether it fits into what is free; what is not known is taken to suffice."""
        return all(self.needed_bytes(place) <= free for place, free in free_bytes.items() if free is not None)


def cache_bytes(cache: KVCache, positions: int, item_bytes: int) -> int:
    """Bytes of the keys and values of so many positions in all layers."""
    return 2 * cache.layers * cache.kv_heads * cache.head_dim * positions * item_bytes


def video_positions(manifest: Manifest, workload: Workload) -> int:
    """Positions a video takes of the context: its frames at the largest size allowed, its sound, four marks."""
    if workload.video_seconds <= 0:
        return 0
    vision, audio = manifest.vision, manifest.audio
    pairs = -(-_video_frames(workload) // vision.temporal_patch_frames)
    seen = pairs * (_frame_pixels(manifest, workload) // (vision.patch_pixels * vision.merge_patches) ** 2)
    heard = audio_tokens(mel_frames(math.ceil(workload.video_seconds * audio.sample_rate_hz), audio))
    return seen + heard + 4  # beginning and end of vision and of audio


class MemoryPlanner:
    """Makes the plans of one bundle."""

    def __init__(self, manifest: Manifest, graphs: Mapping[ComponentName, GraphFacts], mapped_bytes: int = 0) -> None:
        """`mapped_bytes`: size of the tables that are mapped into main memory."""
        self.manifest, self._graphs, self._mapped_bytes = manifest, graphs, mapped_bytes

    @classmethod
    def of(cls, bundle: Bundle) -> MemoryPlanner:
        """Read what is needed of a bundle; raises `BundleError` when a graph file is damaged."""
        manifest = bundle.manifest
        names: tuple[ComponentName, ...] = get_args(ComponentName)
        tables = (manifest.thinker.embedding, manifest.talker.embedding, manifest.token2wav.modulation)
        return cls(
            manifest,
            {name: read_graph_facts(bundle.graph_path(name)) for name in names},
            sum(manifest.files[name].size_bytes for name in tables),
        )

    def plan(self, workload: Workload) -> MemoryPlan:
        """Return the plan for a workload.

        Raises `InputError` for a context the model does not have, `ContextLimitError` for one that cannot hold the
        video; both say which would do.
        """
        self._check(workload)
        parts: list[tuple[ComponentName, Callable[[Workload, GraphFacts], tuple[int, int]]]] = [
            ("audio_encoder", self._audio_encoder),
            ("vision_encoder", self._vision_encoder),
            ("thinker", self._thinker),
            ("talker", self._talker),
            ("dit", self._dit),
            ("vocoder", self._vocoder),
        ]
        components = [self._component(name, workload, *part(workload, self._graphs[name])) for name, part in parts]
        lines = (*components, *self._beside(workload))
        return MemoryPlan(workload, lines, video_positions(self.manifest, workload))

    def largest_context(self, workload: Workload, free_bytes: Mapping[Place, int | None]) -> int | None:
        """Return the largest context up to the workload's that fits into what is free, None when none does."""
        low = 1 if not workload.video_seconds else video_positions(self.manifest, workload) + TEXT_POSITIONS
        high = workload.context
        fitting = None
        while low <= high:  # plans grow with the context
            middle = (low + high) // 2
            if self.plan(replace(workload, context=middle)).fits(free_bytes):
                fitting, low = middle, middle + 1
            else:
                high = middle - 1
        return fitting

    def _check(self, workload: Workload) -> None:
        most, model = self.manifest.thinker.max_positions, self.manifest.model
        if not 1 <= workload.context <= most:
            raise InputError(f"context is {workload.context}; {model} has positions for 1 … {most}")
        video = video_positions(self.manifest, workload)
        needed = video + TEXT_POSITIONS
        if video and workload.context < needed:
            advice = (
                f"use a context of {needed}" if needed <= most
                else f"{model} has {most}: use a video of {self._seconds_that_fit(workload)} s, or smaller frames"
            )  # fmt: skip
            raise ContextLimitError(
                f"a video of {workload.video_seconds:g} s takes {video} positions ({_video_frames(workload)} frames of "
                f"{_frame_pixels(self.manifest, workload)} pixels, and its sound), text beside it {TEXT_POSITIONS}; "
                f"the context holds {workload.context}: {advice}"
            )

    def _seconds_that_fit(self, workload: Workload) -> int:
        """Whole seconds of video that the model's positions hold."""
        most = self.manifest.thinker.max_positions - TEXT_POSITIONS
        seconds = math.floor(workload.video_seconds)
        while seconds and video_positions(self.manifest, replace(workload, video_seconds=seconds)) > most:
            seconds -= 1
        return seconds

    def _component(self, name: ComponentName, workload: Workload, cache: int, work: int) -> MemoryLine:
        facts, component = self._graphs[name], self.manifest.components[name]
        if workload.device != "cpu":  # weights stay as they are; what passes through main memory is mapped
            weights = facts.float32_bytes + facts.float16_bytes + facts.packed_bytes
            return MemoryLine(name, "device", weights, cache, work)
        weights = round(
            facts.float32_bytes
            + _FLOAT16_ON_CPU * facts.float16_bytes
            + _PACKED_ON_CPU[component.dialect] * facts.packed_bytes
        )
        return MemoryLine(name, "host", weights, cache, work, loading_bytes=4 * facts.largest_float_elements)

    def _audio_encoder(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        positions = BLOCKS_PER_CALL * self.manifest.audio.block_frames // 2
        return 0, self._products("audio_encoder", workload, positions, max(facts.widths))

    def _vision_encoder(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        """Work on a run's patches; an image is one run, of a video as many pairs of frames as fit into one."""
        vision = self.manifest.vision
        area = vision.patch_pixels**2
        patches = min(workload.image_pixels, vision.image_max_pixels) // area
        if workload.video_seconds:
            pair = _frame_pixels(self.manifest, workload) // area
            patches = max(patches, pair * max(1, PATCHES_PER_CALL // pair))
        pixels = 3 * vision.temporal_patch_frames * area
        copies = 3 * 4 * patches * pixels  # as they are cut, in window order, in the encoder's type
        return 0, copies + self._products("vision_encoder", workload, patches, max(facts.widths))

    def _thinker(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        thinker = self.manifest.thinker
        return self._decoder("thinker", workload, facts, thinker.kv_cache, workload.context, thinker.vocab_size)

    def _talker(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        talker = self.manifest.talker
        positions = min(workload.context + MAX_CODES, talker.max_positions)  # as `load_parts` has it
        return self._decoder("talker", workload, facts, talker.kv_cache, positions, talker.vocab_size)

    def _decoder(
        self, name: ComponentName, workload: Workload, facts: GraphFacts, cache: KVCache, context: int, vocab_size: int
    ) -> tuple[int, int]:
        """Cache, and work on a chunk of the prompt at the end of the context."""
        component = self.manifest.components[name]
        shared = component.dialect == "ort"
        stored = cache_bytes(cache, context, np.dtype(cache.stored_as(component)).itemsize)
        width = max(facts.widths - {vocab_size})  # the head sees the last position only
        chunk = min(CHUNK_POSITIONS, context)
        work = self._products(name, workload, chunk, width)
        scores = 4 * facts.heads * chunk * context
        if workload.device == "cpu" and shared and component.dtype == "float16":
            # GroupQueryAttention without a flash kernel: all scores, and a layer's keys and values as float32.
            as_floats = cache_bytes(msgspec.structs.replace(cache, layers=1), context, 4)
            work += round(_ARENA_GROWTH * scores) + as_floats
        elif not shared:
            work += scores
        # `standard` reads one cache and writes another, a chunk longer, on each run.
        return (stored if shared else 2 * stored), work

    def _dit(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        """Work on both halves of the guidance at once, over the longest window of speech."""
        speech = self.manifest.token2wav
        window = WindowPlan.streaming(speech).most_blocks * speech.block_frames
        frames = min(workload.codes * speech.frames_per_code, window)
        return 0, self._products("dit", workload, 2 * frames, max(facts.widths))

    def _vocoder(self, workload: Workload, facts: GraphFacts) -> tuple[int, int]:
        speech = self.manifest.token2wav
        frames = min(PIECE_FRAMES + 2 * speech.vocoder_context_frames, workload.codes * speech.frames_per_code)
        row = speech.samples_per_frame * facts.last_channels * self._work_item_bytes("vocoder", workload)
        return 0, round(_LIVE_SAMPLES * frames * row)

    def _products(self, name: ComponentName, workload: Workload, rows: int, width: int) -> int:
        """Bytes of the arrays that a run over so many rows holds at once."""
        live = _LIVE_ROWS.get(name, _LIVE_ROWS_OF_OTHERS)
        return round(live * rows * width * self._work_item_bytes(name, workload))

    def _work_item_bytes(self, name: ComponentName, workload: Workload) -> int:
        """A CPU computes in float32 whatever the type."""
        return 4 if workload.device == "cpu" else _item_bytes(self.manifest.components[name].dtype)

    def _beside(self, workload: Workload) -> list[MemoryLine]:
        """Lines of what is no component."""
        thinker = self.manifest.thinker
        pixels = _video_frames(workload) * _frame_pixels(self.manifest, workload)
        heard = math.ceil(workload.video_seconds * self.manifest.audio.sample_rate_hz)
        # Embeddings, hidden states and the Talker's rows as float32, media embeddings in their own type.
        rows = workload.context * thinker.hidden_size * 16
        lines = [
            MemoryLine("prompt", "host", work_bytes=rows + 3 * pixels + 4 * heard, note="rows, frames, sound"),
            MemoryLine("tables", "host", self._mapped_bytes, note="mapped files: the system may drop them"),
            MemoryLine("process", "host", _PROCESS_BYTES, note="Python and libraries, measured"),
        ]
        if workload.device != "cpu":
            lines += [
                MemoryLine("GPU libraries", "device", _CUDA_CONTEXT_BYTES, note="assumed, never measured"),
                MemoryLine("GPU libraries", "host", _CUDA_HOST_BYTES, note="assumed, never measured"),
            ]
        return lines


def _video_frames(workload: Workload) -> int:
    return math.ceil(workload.video_seconds * workload.video_fps)


def _frame_pixels(manifest: Manifest, workload: Workload) -> int:
    return min(workload.frame_pixels, manifest.vision.video_max_pixels)


def _item_bytes(dtype: FloatType) -> int:
    return 2 if dtype == "float16" else 4
