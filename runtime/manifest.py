"""What a bundle says of itself: `manifest.json`, typed.

The exporter fills these structures and the runtime reads them; nothing else passes between the two but the files they
name. Decoding is strict: a missing, unknown or ill-typed entry is an error that names its path in the JSON.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..errors import BundleError

SCHEMA_VERSION = 1
"""Raised whenever an older runtime could misread a newer bundle."""

MANIFEST_NAME = "manifest.json"

FloatType = Literal["float32", "float16"]
CacheType = Literal["float32", "float16", "int8"]
Dialect = Literal["ort", "standard"]
ComponentName = Literal["audio_encoder", "vision_encoder", "thinker", "talker", "dit", "vocoder"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every entry of the manifest."""


class FileRecord(Record, frozen=True):
    """A file of the bundle: its size and SHA-256, by which damage is found."""

    size_bytes: int
    sha256: str


class Quantization(Record, frozen=True):
    """How a component's linear layers are stored."""

    method: str
    """Field's name of the method: `rtn`, `awq`, `gptq`."""
    bits: int
    group_size: int
    """Weights that share a scale; −1: a whole row."""
    symmetric: bool
    accuracy_level: int
    """ONNX Runtime's MatMulNBits accuracy level: 1 computes in fp32, 4 with int8 activations on a CPU."""
    source: str = "export"
    """Who chose the codes: `export`, or what a quantized checkpoint says of itself, as `gptqmodel:2.0.0`."""
    other_bits: dict[str, int] = {}
    """Linear layers stored otherwise than the others, by name: 4, 8, or 16 and 32 for floats."""


class Component(Record, frozen=True):
    """One graph: `<name>.onnx` with its weights in `<name>.data`."""

    graph: str
    data: str
    dtype: FloatType
    """Type of activations, of weights that are not quantized, and of the graph's float inputs and outputs."""
    dialect: Dialect
    parameters: int
    """Weights the checkpoint held for it, before any packing."""
    quantization: Quantization | None


class KVCache(Record, frozen=True, omit_defaults=True):
    """A decoder's key/value cache: per layer `(1, kv_heads, positions, head_dim)` for keys and for values."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: CacheType | None = None
    """None, and not in the file: the component's type. Scales of int8 are in the graph."""

    def stored_as(self, component: Component) -> CacheType:
        """Type of the cache's buffers."""
        return self.dtype or component.dtype


class Thinker(Record, frozen=True):
    """The language model: inputs and outputs of `thinker.onnx` and its embedding table."""

    hidden_size: int
    vocab_size: int
    max_positions: int
    kv_cache: KVCache
    rope_theta: float
    mrope_section: list[int]
    eos_token_ids: list[int]
    embedding: str
    """File: `(vocab_size, hidden_size)` array in NumPy's format, memory-mapped; rows are gathered on the host."""


class Talker(Record, frozen=True):
    """The speech-code model: inputs and outputs of `talker.onnx`, its code embedding table, its special tokens."""

    embedding_size: int
    vocab_size: int
    max_positions: int
    kv_cache: KVCache
    rope_theta: float
    mrope_section: list[int]
    embedding: str
    """File: `(vocab_size, embedding_size)` array in NumPy's format."""
    codec_bos_token_id: int
    codec_eos_token_id: int
    codec_pad_token_id: int
    codec_mask_token_id: int
    text_eos_token_id: int
    text_pad_token_id: int


class Audio(Record, frozen=True):
    """The ear: Whisper's log-mel front end and the encoder's block length."""

    sample_rate_hz: int
    n_fft: int
    hop_samples: int
    mel_bins: int
    block_frames: int
    """Frames one encoder block takes (200 = 2 s); nothing in the encoder crosses a block."""
    max_frames: int
    """Frames after which the checkpoint's feature extractor cuts a clip."""


class Vision(Record, frozen=True):
    """The eye: image and video preprocessing and the encoder's geometry."""

    patch_pixels: int
    temporal_patch_frames: int
    merge_patches: int
    window_pixels: int
    hidden_size: int
    """Width of an embedding, equal to the Thinker's."""
    image_min_pixels: int
    image_max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    mean: list[float]
    std: list[float]


class OdeSchedule(Record, frozen=True):
    """Times at which the DiT is evaluated, and how the evaluations are combined.

    `rk4` is the 3/8-rule Runge-Kutta of the reference: step `i` takes rows `3i … 3i+3` of the modulation table.
    """

    solver: Literal["rk4"]
    times: list[float]
    """All evaluation times in order, `3 * steps + 1` of them, from 0 (noise) to 1 (mel)."""
    guidance: float


class Token2Wav(Record, frozen=True):
    """The voice: DiT (codes → mel) and BigVGAN (mel → waveform)."""

    code_count: int
    """Codes 0 … code_count − 1 have an embedding; no other may reach the DiT."""
    frames_per_code: int
    block_frames: int
    mel_bins: int
    sample_rate_hz: int
    samples_per_frame: int
    vocoder_context_frames: int
    """Mel frames on each side of a frame that reach its samples: the vocoder's, when it works piece by piece."""
    max_frames: int
    ode: OdeSchedule
    modulation: str
    """File: `(len(ode.times), 6 * layers + 2, width)` float32 array, the adaLN modulation at each time."""


class Tokens(Record, frozen=True):
    """Ids the prompt is assembled from, beyond what the tokenizer itself does."""

    audio: int
    audio_bos: int
    audio_eos: int
    image: int
    video: int
    vision_bos: int
    vision_eos: int
    position_ids_per_second: int
    seconds_per_chunk: int


class Voice(Record, frozen=True):
    """A speaker; its arrays lie in `voices.safetensors`.

    `<name>.cond (1, speaker width)`: the speaker vector; `<name>.encoding (1, encoder width)`: the speaker encoder's
    output for the voice's reference mel; `<name>.null_encoding`: its output for silence of the same length, which the
    unconditional half of the guidance sees.
    """

    bos_token_id: int


class Manifest(Record, frozen=True):
    """The whole of `manifest.json`."""

    schema_version: int
    nearfield_version: str
    model: str
    """Name of the checkpoint's directory, for people."""
    components: dict[ComponentName, Component]
    thinker: Thinker
    talker: Talker
    audio: Audio
    vision: Vision
    token2wav: Token2Wav
    tokens: Tokens
    voices: dict[str, Voice]
    files: dict[str, FileRecord]
    """Every other file of the bundle, by name."""


class _Version(msgspec.Struct):
    """The only entry every schema has: read first, so that a newer manifest is refused for the right reason."""

    schema_version: int


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, origin: str) -> Manifest:
    """Read a manifest; `origin` names it in errors.

    Raises `BundleError` when it is not JSON, of another schema version, or has a wrong, missing or unknown entry.
    """
    try:
        version = msgspec.json.decode(data, type=_Version).schema_version
    except msgspec.DecodeError as error:
        raise BundleError(f"{origin} is not a Nearfield manifest ({error}); export the bundle again") from error
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{origin} has schema version {version}, this Nearfield reads up to {SCHEMA_VERSION}; update Nearfield"
        )
    if version < SCHEMA_VERSION:
        raise BundleError(
            f"{origin} has schema version {version}, this Nearfield reads {SCHEMA_VERSION}; export the bundle again"
        )
    try:
        return msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise BundleError(f"{origin} is damaged: {error}; export the bundle again") from error
