"""A checkpoint → a bundle: every component declared, filled and written, then the tables and files around them.

`export_bundle` reads top to bottom like the list of what a bundle holds. Everything is written into a temporary
directory that becomes the bundle only when it is whole (`bundle_writer.BundleWriter`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import save

from .. import __version__
from ..errors import CheckpointError, ExportError
from ..runtime import manifest
from .attention import CacheScales, CacheShape
from .audio_encoder import AudioEncoderConfig, audio_encoder_graph
from .bigvgan import BigVGANConfig, vocoder_graph
from .bind import Progress, Reader, write_component
from .bundle_writer import BundleWriter
from .checkpoint import Checkpoint
from .config import Section
from .decoder import DecoderConfig
from .dit import dit_graph
from .dit_config import DiTConfig
from .dit_modulation import modulation_table, rk4_times
from .graph import Array, ComponentGraph, Style, WeightForm
from .layers import Linear
from .preprocessor import read_audio, read_vision
from .quantized_linear import QuantizedLinear
from .speaker_encoder import encode_speaker
from .talker import talker_graph
from .thinker import thinker_graph
from .tokenizer_files import collect_tokenizer
from .vision_encoder import VisionEncoderConfig, vision_encoder_graph
from .voices import VoiceArrays, read_voices

_ROWS_AT_ONCE = 4096
_ODE_POINTS, _ODE_SWAY, _GUIDANCE = 10, -1.0, 0.5  # the reference's Token2Wav defaults


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    `bits`: 4 stores the Linear layers of Thinker and Talker as INT4 (round-to-nearest), 16 and 32 store floats. Of a
    checkpoint that is quantized already, 4 keeps everything as it is: its codes, whatever their bits, and as floats
    what it has as floats, because who quantized it left that out on purpose; 16 and 32 dequantize.
    `float_type`: activations and everything that is not INT4; by default float32 for 32 bits, else float16.
    `token2wav_float_type`: the DiT and the vocoder, which the reference always runs in float32.
    `accuracy_level`: how a CPU multiplies INT4 weights: 4 with int8 activations (fast), 1 in float32 (exact).
    `kv_cache`: the type Thinker and Talker keep keys and values in: `same` as activations; int8 needs `kv_scales`.
    """

    bits: Literal[4, 16, 32] = 4
    float_type: manifest.FloatType | None = None
    token2wav_float_type: manifest.FloatType = "float32"
    dialect: manifest.Dialect = "ort"
    group_size: int = 128
    accuracy_level: Literal[1, 4] = 4
    kv_cache: Literal["same", "float16", "int8"] = "same"
    kv_scales: Mapping[manifest.ComponentName, CacheScales] = field(default_factory=dict)
    """Of `thinker` and `talker`, as `calibrate/kv_scales.py` finds them."""
    overwrite: bool = False

    def style(self, *, quantized: bool = False) -> Style:
        """Style of a component, `quantized` if it is one whose Linear layers may be INT4."""
        float_type = self.float_type or ("float32" if self.bits == 32 else "float16")
        bits = 4 if quantized and self.bits == 4 else None
        return Style(self.dialect, float_type, bits, self.group_size, self.accuracy_level)

    def token2wav_style(self) -> Style:
        """Style of the DiT and the vocoder; a checkpoint may have the DiT quantized."""
        return Style(self.dialect, self.token2wav_float_type, accuracy_level=self.accuracy_level)

    def cache(self, name: manifest.ComponentName, config: DecoderConfig) -> CacheShape:
        """Cache of a decoder; raises `ExportError` for a type that the dialect or the scales do not allow."""
        if self.kv_cache in ("same", self.style().float_type):
            return config.cache
        if self.dialect != "ort":
            raise ExportError(
                f"dialect {self.dialect!r} keeps keys and values as {self.style().float_type} only, not as "
                f"{self.kv_cache}; leave --kv-cache out, or use --dialect ort"
            )
        if self.kv_cache == "float16":
            return replace(config.cache, dtype="float16")
        scales, shape = self.kv_scales.get(name), (config.layers, config.kv_heads, config.head_dim)
        if scales is None:
            raise ExportError(f"an int8 cache needs scales for the {name}'s keys and values; name --calibration data")
        for array in (scales.key, scales.value):
            if array.shape != shape or not (np.isfinite(array).all() and (array > 0).all()):
                raise ExportError(
                    f"scales of the {name}'s cache must be {shape} positive numbers, found {array.shape} from "
                    f"{array.min():g} to {array.max():g}; find them anew for this checkpoint"
                )
        return replace(config.cache, dtype="int8", scales=scales)


@dataclass(frozen=True)
class Configs:
    """Settings of every component, read before anything is written, so that a wrong file is found at once."""

    audio: AudioEncoderConfig
    vision: VisionEncoderConfig
    thinker: DecoderConfig
    talker: DecoderConfig
    embedding_size: int
    dit: DiTConfig
    vocoder: BigVGANConfig

    @classmethod
    def from_hf(cls, config: Section) -> Configs:
        """Read the sections of `config.json`; raises `CheckpointError`."""
        thinker, talker = config.section("thinker_config"), config.section("talker_config")
        token2wav = config.section("token2wav_config")
        return cls(
            audio=AudioEncoderConfig.from_hf(thinker.section("audio_config")),
            vision=VisionEncoderConfig.from_hf(thinker.section("vision_config")),
            thinker=DecoderConfig.from_hf(thinker.section("text_config")),
            talker=DecoderConfig.from_hf(talker),
            embedding_size=talker.integer("embedding_size"),
            dit=DiTConfig.from_hf(token2wav.section("dit_config")),
            vocoder=BigVGANConfig.from_hf(token2wav.section("bigvgan_config")),
        )

    def graphs(
        self, options: ExportOptions, stored: Mapping[str, WeightForm] | None = None
    ) -> list[tuple[ComponentGraph, Style]]:
        """Declare the six graphs, each with its style; `stored` are the layers the checkpoint has quantized."""
        plain, int4, token2wav = options.style(), options.style(quantized=True), options.token2wav_style()
        if stored and options.bits == 4:
            int4 = plain = replace(plain, stored=stored)
            token2wav = replace(token2wav, stored=stored)
        return [
            (audio_encoder_graph(self.audio, plain), plain),
            (vision_encoder_graph(self.vision, plain), plain),
            (thinker_graph(self.thinker, int4, options.cache("thinker", self.thinker)), int4),
            (talker_graph(self.talker, self.embedding_size, int4, options.cache("talker", self.talker)), int4),
            (dit_graph(self.dit, token2wav), token2wav),
            (vocoder_graph(self.vocoder, token2wav), token2wav),
        ]


def export_bundle(
    checkpoint_path: Path, target: Path, options: ExportOptions, progress: Progress | None = None
) -> manifest.Manifest:
    """Export the checkpoint in `checkpoint_path` as the bundle `target` and return its manifest.

    Raises `CheckpointError`, `ExportError`, `QuantizationError` or `BundleError`; nothing half-written stays.
    """
    checkpoint = Checkpoint.open(checkpoint_path)
    configs = Configs.from_hf(checkpoint.config)
    voices = read_voices(checkpoint_path / "spk_dict.pt")
    tokenizer_json, chat_template = collect_tokenizer(checkpoint_path)
    reader = Reader(checkpoint, progress)
    needed_bytes = _expected_bytes(checkpoint, options)
    with BundleWriter(target, overwrite=options.overwrite, needed_bytes=needed_bytes) as writer:
        components: dict[manifest.ComponentName, manifest.Component] = {}
        unused: list[str] = []
        for component, style in configs.graphs(options, checkpoint.stored_forms):
            written = write_component(component, reader, writer.directory)
            writer.add(written.files)
            unused += component.unused
            components[component.name] = manifest.Component(
                graph=written.graph,
                data=written.data,
                dtype=style.float_type,
                dialect=style.dialect,
                parameters=written.parameters,
                quantization=_quantization(component, style),
            )
        thinker = _thinker(checkpoint.config, configs.thinker, options.cache("thinker", configs.thinker))
        talker_cache = options.cache("talker", configs.talker)
        talker = talker_settings(checkpoint.config.section("talker_config"), configs, talker_cache)
        dtype = options.style().numpy_dtype
        for table, name in ((thinker.embedding, "thinker"), (talker.embedding, "talker")):
            reader.component, tensor = name, f"{name}.model.embed_tokens.weight"
            shape = checkpoint.shape(tensor)
            blocks = (rows for _, rows in reader.rows(tensor, shape, _ROWS_AT_ONCE))
            writer.write_array(table, shape, dtype, blocks)
        token2wav = token2wav_settings(configs)
        reader.component = "dit"
        modulation = modulation_table(configs.dit, reader, token2wav.ode.times)
        writer.write_array(token2wav.modulation, modulation.shape, modulation.dtype, [modulation])
        writer.path_of("voices.safetensors").write_bytes(save(_voice_arrays(configs.dit, reader, voices)))
        writer.path_of("tokenizer.json").write_bytes(tokenizer_json)
        writer.path_of("chat_template.jinja").write_text(chat_template, encoding="utf-8", newline="\n")
        reader.check_all_taken(unused)
        thinker_config = checkpoint.config.section("thinker_config")
        return writer.finish(
            lambda files: manifest.Manifest(
                schema_version=manifest.SCHEMA_VERSION,
                nearfield_version=__version__,
                model=checkpoint_path.resolve().name,
                components=components,
                thinker=thinker,
                talker=talker,
                audio=read_audio(checkpoint_path, thinker_config.section("audio_config")),
                vision=read_vision(checkpoint_path, thinker_config.section("vision_config")),
                token2wav=token2wav,
                tokens=special_tokens(thinker_config),
                voices={name: manifest.Voice(bos_token_id=voice.bos_token_id) for name, voice in voices.items()},
                files=files,
            )
        )


def _expected_bytes(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """About how much room the bundle takes, to refuse a disk that is too small before hours of work."""
    float_bytes = options.style().numpy_dtype.itemsize
    speech_bytes = options.token2wav_style().numpy_dtype.itemsize
    forms = checkpoint.stored_forms if options.bits == 4 else {}
    rounded = WeightForm("rtn", 4, options.group_size) if options.bits == 4 and not forms else None
    total = 0.0
    for name in checkpoint.names:
        bytes_each: float = speech_bytes if name.startswith("token2wav.") else float_bytes
        form = forms.get(name.removesuffix(".weight"))
        if name.startswith(("thinker.model.layers.", "talker.model.layers.")):
            form = form or rounded
        if form is not None:  # a code, and its share of a scale and a zero
            group = form.group_size if form.group_size > 0 else checkpoint.shape(name)[1]
            bytes_each = form.bits / 8 + (bytes_each + form.bits / 8) / group
        total += bytes_each * math.prod(checkpoint.shape(name))
    return int(total)


def _quantization(component: ComponentGraph, style: Style) -> manifest.Quantization | None:
    """What is true of most of the weights of a component's Linear layers, and the layers that differ."""
    modules = component.root.named_modules()
    layers = {name: module for name, module in modules if isinstance(module, Linear | QuantizedLinear)}
    sizes: Counter[WeightForm] = Counter()
    for layer in layers.values():
        if isinstance(layer, QuantizedLinear):
            sizes[replace(layer.form, reordered=False)] += layer.inputs * layer.outputs
    if not sizes:
        return None
    form = sizes.most_common(1)[0][0]
    floats = 8 * style.numpy_dtype.itemsize
    bits = {name: layer.form.bits if isinstance(layer, QuantizedLinear) else floats for name, layer in layers.items()}
    return manifest.Quantization(
        method=form.method,
        bits=form.bits,
        group_size=form.group_size,
        symmetric=form.symmetric,
        accuracy_level=style.accuracy_level,
        source=form.source or "export",
        other_bits={name: layer_bits for name, layer_bits in bits.items() if layer_bits != form.bits},
    )


def _thinker(section: Section, config: DecoderConfig, cache: CacheShape) -> manifest.Thinker:
    return manifest.Thinker(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        kv_cache=_kv_cache(cache),
        rope_theta=config.rope_theta,
        mrope_section=list(config.mrope_section),
        eos_token_ids=_eos_token_ids(section),
        embedding="thinker_embedding.npy",
    )


def talker_settings(section: Section, configs: Configs, cache: CacheShape | None = None) -> manifest.Talker:
    """What the runtime has to know of the Talker, from `talker_config`; raises `CheckpointError`.

    `cache` if it is kept in another type than the graph's.
    """
    config = configs.talker
    return manifest.Talker(
        embedding_size=configs.embedding_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        kv_cache=_kv_cache(cache or config.cache),
        rope_theta=config.rope_theta,
        mrope_section=list(config.mrope_section),
        embedding="talker_embedding.npy",
        codec_bos_token_id=section.integer("tts_codec_start_token_id"),
        codec_eos_token_id=section.integer("tts_codec_end_token_id"),
        codec_pad_token_id=section.integer("tts_codec_pad_token_id"),
        codec_mask_token_id=section.integer("tts_codec_mask_token_id"),
        text_eos_token_id=section.integer("tts_text_end_token_id"),
        text_pad_token_id=section.integer("tts_text_pad_token_id"),
    )


def _kv_cache(cache: CacheShape) -> manifest.KVCache:
    return manifest.KVCache(layers=cache.layers, kv_heads=cache.kv_heads, head_dim=cache.head_dim, dtype=cache.dtype)


def _eos_token_ids(config: Section) -> list[int]:
    """Ids that end a reply: published files keep them with the Thinker, some derived from them elsewhere."""
    thinker = config.section("thinker_config")
    for section in (thinker, thinker.section("text_config"), config):
        if section.has("eos_token_id"):
            value = section.values["eos_token_id"]
            return [int(item) for item in value] if isinstance(value, list) else [section.integer("eos_token_id")]
    raise CheckpointError(f"{thinker.path} has no eos_token_id, so that no reply could end; download config.json again")


def token2wav_settings(configs: Configs) -> manifest.Token2Wav:
    """What the runtime has to know of the DiT and the vocoder."""
    dit = configs.dit
    times = [float(time) for time in rk4_times(_ODE_POINTS, _ODE_SWAY)]
    return manifest.Token2Wav(
        code_count=dit.num_embeds,
        frames_per_code=dit.repeats,
        block_frames=dit.block_size,
        mel_bins=dit.mel_dim,
        sample_rate_hz=24_000,  # BigVGAN's product of rates, 240 samples a frame, at the DiT's 100 frames a second
        samples_per_frame=configs.vocoder.samples_per_frame,
        vocoder_context_frames=configs.vocoder.context_frames,
        max_frames=dit.max_positions,
        ode=manifest.OdeSchedule(solver="rk4", times=times, guidance=_GUIDANCE),
        modulation="dit_modulation.npy",
    )


def special_tokens(thinker: Section) -> manifest.Tokens:
    """The ids of the tokens that stand for sounds and pictures, and of those around them."""
    return manifest.Tokens(
        audio=thinker.integer("audio_token_id", "audio_token_index"),
        audio_bos=thinker.integer("audio_start_token_id"),
        audio_eos=thinker.integer("audio_end_token_id"),
        image=thinker.integer("image_token_id", "image_token_index"),
        video=thinker.integer("video_token_id", "video_token_index"),
        vision_bos=thinker.integer("vision_start_token_id"),
        vision_eos=thinker.integer("vision_end_token_id"),
        position_ids_per_second=thinker.integer("position_id_per_seconds"),
        seconds_per_chunk=thinker.integer("seconds_per_chunk"),
    )


def _voice_arrays(config: DiTConfig, reader: Reader, voices: dict[str, VoiceArrays]) -> dict[str, Array]:
    """Arrays of `voices.safetensors` (see `runtime.manifest.Voice`)."""
    arrays: dict[str, Array] = {}
    for name, voice in voices.items():
        arrays[f"{name}.cond"] = voice.cond
        arrays[f"{name}.encoding"] = encode_speaker(config, reader, voice.ref_mel)
        arrays[f"{name}.null_encoding"] = encode_speaker(config, reader, np.zeros_like(voice.ref_mel))
    return arrays
