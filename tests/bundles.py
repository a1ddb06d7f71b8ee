"""A bundle without a model: every file a bundle has, a few bytes each, written the way an export writes them."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from nearfield.export.bundle_writer import BundleWriter
from nearfield.runtime import manifest
from safetensors.numpy import save

THINKER_EMBEDDING = np.arange(12, dtype=np.float16).reshape(4, 3)
TALKER_EMBEDDING = np.arange(15, dtype=np.float16).reshape(5, 3)
MODULATION = np.arange(56, dtype=np.float32).reshape(4, 14, 1)
VOICE = {
    "Ethan.cond": np.full((1, 6), 1, np.float32),
    "Ethan.encoding": np.full((1, 4), 2, np.float32),
    "Ethan.null_encoding": np.full((1, 4), 3, np.float32),
}
CHAT_TEMPLATE = "{{ messages }} — ä\n"


def write_bundle(path: Path, *, overwrite: bool = False, model: str = "tiny") -> manifest.Manifest:
    """Write the bundle `path` and return its manifest."""
    with BundleWriter(path, overwrite=overwrite) as writer:
        fill(writer)
        return writer.finish(lambda files: make_manifest(files, model))


def fill(writer: BundleWriter) -> None:
    """Write every file but the manifest."""
    for component in get_args(manifest.ComponentName):
        writer.path_of(f"{component}.onnx").write_bytes(b"graph of " + component.encode())
        writer.path_of(f"{component}.data").write_bytes(b"weights of " + component.encode())
    writer.write_array("thinker_embedding.npy", (4, 3), np.float16, [THINKER_EMBEDDING[:3], THINKER_EMBEDDING[3:]])
    writer.write_array("talker_embedding.npy", (5, 3), np.float16, [TALKER_EMBEDDING])
    np.save(writer.path_of("dit_modulation.npy"), MODULATION)
    writer.path_of("voices.safetensors").write_bytes(save(VOICE))
    writer.path_of("tokenizer.json").write_bytes(b"{}")
    writer.path_of("chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")


def make_manifest(files: dict[str, manifest.FileRecord], model: str = "tiny") -> manifest.Manifest:
    """A manifest that fits the files of `fill`."""
    cache = manifest.KVCache(layers=1, kv_heads=1, head_dim=2)
    return manifest.Manifest(
        schema_version=manifest.SCHEMA_VERSION,
        nearfield_version="0.0.0",
        model=model,
        components={
            name: manifest.Component(
                graph=f"{name}.onnx", data=f"{name}.data", dtype="float16", dialect="ort", parameters=1,
                quantization=None,
            )
            for name in get_args(manifest.ComponentName)
        },
        thinker=manifest.Thinker(
            hidden_size=3, vocab_size=4, max_positions=8, kv_cache=cache, rope_theta=1e6, mrope_section=[1, 0, 0],
            eos_token_ids=[1], embedding="thinker_embedding.npy",
        ),
        talker=manifest.Talker(
            embedding_size=3, vocab_size=5, max_positions=8, kv_cache=cache, rope_theta=1e6, mrope_section=[1, 0, 0],
            embedding="talker_embedding.npy", codec_bos_token_id=3, codec_eos_token_id=4, codec_pad_token_id=2,
            codec_mask_token_id=2, text_eos_token_id=1, text_pad_token_id=0,
        ),
        audio=manifest.Audio(
            sample_rate_hz=16_000, n_fft=400, hop_samples=160, mel_bins=128, block_frames=200, max_frames=3000
        ),
        vision=manifest.Vision(
            patch_pixels=14, temporal_patch_frames=2, merge_patches=2, window_pixels=112, hidden_size=3,
            image_min_pixels=3136, image_max_pixels=1_000_000, video_min_pixels=3136, video_max_pixels=1_000_000,
            mean=[0.5] * 3, std=[0.5] * 3,
        ),
        token2wav=manifest.Token2Wav(
            code_count=2, frames_per_code=2, block_frames=24, mel_bins=80, sample_rate_hz=24_000,
            samples_per_frame=240, vocoder_context_frames=20, max_frames=100,
            ode=manifest.OdeSchedule(solver="rk4", times=[0.0, 0.25, 0.5, 1.0], guidance=0.5),
            modulation="dit_modulation.npy",
        ),
        tokens=manifest.Tokens(
            audio=0, audio_bos=0, audio_eos=0, image=0, video=0, vision_bos=0, vision_eos=0,
            position_ids_per_second=25, seconds_per_chunk=2,
        ),
        voices={"Ethan": manifest.Voice(bos_token_id=2)},
        files=files,
    )  # fmt: skip
