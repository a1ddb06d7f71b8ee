"""Nearfield: Qwen2.5-Omni on your own desktop, offline, from quantized ONNX graphs.

    from nearfield import AudioChunk, Image, Omni, Text, TextDelta, TurnEnd, read_audio

    conversation = Omni.load("bundle").conversation()

The public names are loaded when they are first asked for, so that `nearfield --help` does not wait for ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import NearfieldError
    from .runtime.async_conversation import AsyncConversation
    from .runtime.audio import read_audio, write_wav
    from .runtime.conversation import Conversation
    from .runtime.events import AudioChunk, TextDelta, TurnEnd
    from .runtime.images import read_image
    from .runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Text, Video
    from .runtime.ode import Solver
    from .runtime.omni import Omni
    from .runtime.sampling import Sampling

__all__ = [
    "SYSTEM_PROMPT",
    "AsyncConversation",
    "Audio",
    "AudioChunk",
    "Conversation",
    "Image",
    "Message",
    "NearfieldError",
    "Omni",
    "Sampling",
    "Solver",
    "Text",
    "TextDelta",
    "TurnEnd",
    "Video",
    "read_audio",
    "read_image",
    "write_wav",
]

_HOMES = {
    "AsyncConversation": ".runtime.async_conversation",
    "Conversation": ".runtime.conversation",
    "NearfieldError": ".errors",
    "Omni": ".runtime.omni",
    "Sampling": ".runtime.sampling",
    "Solver": ".runtime.ode",
    "read_audio": ".runtime.audio",
    "read_image": ".runtime.images",
    "write_wav": ".runtime.audio",
}
_HOMES |= dict.fromkeys(("AudioChunk", "TextDelta", "TurnEnd"), ".runtime.events")
_HOMES |= dict.fromkeys(("SYSTEM_PROMPT", "Audio", "Image", "Message", "Text", "Video"), ".runtime.messages")


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
