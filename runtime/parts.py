"""The stages of a turn, opened from a bundle: every graph on its device, with the tables and settings it needs.

Inputs: a bundle, session settings, a context → output: `Parts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import DeviceError, InputError
from .bundle import CHAT_TEMPLATE_NAME, Bundle
from .decoder import Decoder, check_cache_type
from .encoders import AudioEncoder, VisionEncoder
from .manifest import ComponentName, KVCache
from .ode import Solver
from .session import Session, SessionSettings, open_session
from .talker import Talker
from .thinker import Thinker
from .token2wav import Token2Wav
from .tokenizer import Tokenizer
from .workers import Workers

CONTEXT = 8192
"""Positions of prompt and reply the Thinker holds unless told otherwise: 7B keeps 470 MB for them in float16."""

MAX_CODES = 4096
"""Codes of speech a reply may have unless told otherwise, 50 a second: the reference's limit."""


@dataclass(frozen=True)
class Parts:
    """The stages of a turn, loaded, and the threads they work in."""

    tokenizer: Tokenizer
    audio_encoder: AudioEncoder
    vision_encoder: VisionEncoder
    thinker: Thinker
    talker: Talker
    token2wav: Token2Wav
    workers: Workers = field(default_factory=Workers)


def load_parts(bundle: Bundle, settings: SessionSettings, context: int, solver: Solver | None = None) -> Parts:
    """Open every graph of a bundle; `solver` makes its speech, None is the bundle's own. Raises as `Omni.load`."""
    manifest = bundle.manifest
    thinker, talker = manifest.thinker, manifest.talker
    if not 1 <= context <= thinker.max_positions:
        raise InputError(f"context is {context}; {manifest.model} has positions for 1 … {thinker.max_positions}")
    if settings.device == "tensorrt-rtx" and any(c.dialect != "standard" for c in manifest.components.values()):
        raise DeviceError(
            f"{bundle.path} is of dialect 'ort', whose operators TensorRT does not have; "
            "export it again with --dialect standard, or use device 'cuda' or 'cpu'"
        )
    # The Talker holds the same prompt, and codes where the Thinker holds the reply.
    talker_context = min(context + MAX_CODES, talker.max_positions)

    def session(name: ComponentName) -> Session:
        quantization = manifest.components[name].quantization
        level = None if quantization is None else quantization.accuracy_level
        return open_session(bundle.graph_path(name), settings, accuracy_level=level)

    def decoder(name: ComponentName, cache: KVCache, vocab_size: int, positions: int) -> Decoder:
        check_cache_type(name.capitalize(), manifest.components[name], cache)
        return Decoder(
            session(name), manifest.components[name], cache, name=name.capitalize(), vocab_size=vocab_size,
            context=positions,
        )  # fmt: skip

    types = {name: component.dtype for name, component in manifest.components.items()}
    text_embedding = bundle.thinker_embedding()
    return Parts(
        tokenizer=Tokenizer.load(bundle.tokenizer_path, bundle.path / CHAT_TEMPLATE_NAME),
        audio_encoder=AudioEncoder(session("audio_encoder"), manifest.audio, types["audio_encoder"]),
        vision_encoder=VisionEncoder(session("vision_encoder"), manifest.vision, types["vision_encoder"]),
        thinker=Thinker(
            decoder("thinker", thinker.kv_cache, thinker.vocab_size, context), thinker, text_embedding
        ),
        talker=Talker(
            decoder("talker", talker.kv_cache, talker.vocab_size, talker_context), talker,
            bundle.talker_embedding(), text_embedding, code_count=manifest.token2wav.code_count,
        ),
        token2wav=Token2Wav(
            session("dit"), session("vocoder"), manifest.token2wav, bundle.dit_modulation(),
            dit_type=types["dit"], vocoder_type=types["vocoder"], solver=solver,
        ),
    )  # fmt: skip
