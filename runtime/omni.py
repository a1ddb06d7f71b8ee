"""A loaded bundle: `respond` answers a conversation that is there as a whole, `conversation` begins one that goes on.

Inputs: a bundle, messages of text, sound, images and video → outputs: `TextDelta`s as the reply is written,
`AudioChunk`s as it is spoken, and one `TurnEnd`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .bundle import Bundle
from .conversation import Conversation
from .encoders import encode_part
from .events import Event
from .history import History, Piece
from .messages import SYSTEM_PROMPT, Message
from .ode import Solver
from .parts import CONTEXT, MAX_CODES, Parts, load_parts
from .prompt import build_prompt, media_parts, media_size
from .reading import Reader
from .reply import Clock, Limits, Manner, Reply, check_whole_number
from .sampling import GREEDY, TALKER_DEFAULT, Sampling
from .session import Device, SessionSettings

MAX_TOKENS = 1024
"""Tokens of text a reply may have unless told otherwise: the reference's limit."""


class Omni:
    """A loaded bundle. It has one conversation at a time: beginning one ends the one before."""

    def __init__(self, bundle: Bundle, parts: Parts, clock: Clock = time.perf_counter) -> None:
        self.bundle, self.parts, self._clock = bundle, parts, clock
        self._end: Callable[[], None] = _nothing

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: Device = "cpu",
        context: int = CONTEXT,
        threads: int | None = None,
        gpu_memory_limit_bytes: int | None = None,
        solver: Solver | None = None,
    ) -> Omni:
        """Load the bundle in the directory `path` on a device.

        `context` is the most positions a prompt and its reply may take; `threads` those one operator may use on a CPU;
        `solver` makes mels faster than the bundle's own, or as the reference does (docs/streaming-speech.md).
        Raises `BundleError`, `DeviceError`, and `InputError` for a context the model does not have.
        """
        settings = SessionSettings(device, threads, gpu_memory_limit_bytes)
        bundle = Bundle.open(Path(path))
        return cls(bundle, load_parts(bundle, settings, context, solver))

    @property
    def voices(self) -> list[str]:
        """Names of the voices; the first is the one used unless told otherwise."""
        return sorted(self.bundle.manifest.voices)

    def respond(
        self,
        messages: Sequence[Message],
        *,
        voice: str | None = None,
        speak: bool = True,
        thinker_sampling: Sampling = GREEDY,
        talker_sampling: Sampling = TALKER_DEFAULT,
        seed: int | None = None,
        max_tokens: int = MAX_TOKENS,
        max_codes: int = MAX_CODES,
    ) -> Iterator[Event]:
        """Reply to a conversation. The call checks what it is given; the work is done beside who takes the events.

        `seed` fixes everything random: the same seed, settings and machine give the same reply. A reply that is empty,
        or a single token cut by `max_tokens`, has no sound, for speech needs a token that was read back; one cut by
        `max_tokens` is spoken without its last token, as in the reference.

        Raises `UnknownVoiceError`, `ContextLimitError` for a prompt that is too long, and `InputError` for messages,
        a seed or limits of the wrong kind.
        """
        if not isinstance(messages, Sequence) or not all(isinstance(message, Message) for message in messages):
            raise InputError(f"a conversation must be a sequence of Message, found {_kind(messages)}")
        seeds = _seeds(seed)
        manner = self._manner(voice, speak, thinker_sampling, talker_sampling, Limits(max_tokens, max_codes))
        manifest, parts = self.bundle.manifest, self.parts
        media = media_parts(messages)
        sizes = [media_size(part, manifest.audio, manifest.vision) for part in media]
        prompt = build_prompt(messages, sizes, parts.tokenizer, manifest.tokens, manifest.vision)
        self._end_others()
        parts.thinker.reset()
        parts.talker.reset()
        parts.thinker.decoder.check_fits(len(prompt.token_ids))
        if manner.voice is not None:
            parts.talker.check_fits(len(prompt.token_ids))

        def read(check: Callable[[], None]) -> History:
            encoded = []
            for part in media:
                check()
                encoded.append(encode_part(part, parts.audio_encoder, parts.vision_encoder))
            history = History()
            history.append(Piece.of(prompt, encoded, turn=0))
            Reader(parts.thinker, None if manner.voice is None else parts.talker).catch_up(history, check)
            return history

        reply = Reply(parts, manifest, manner, seeds, read, self._clock)
        self._end = reply.stop
        return _until_dropped(reply)

    def conversation(
        self,
        *,
        system: str = SYSTEM_PROMPT,
        voice: str | None = None,
        speak: bool = True,
        thinker_sampling: Sampling = GREEDY,
        talker_sampling: Sampling = TALKER_DEFAULT,
        seed: int | None = None,
        max_tokens: int = MAX_TOKENS,
        max_codes: int = MAX_CODES,
    ) -> Conversation:
        """Begin a conversation under the instructions `system`; one there may be is closed. Otherwise as `respond`."""
        seeds = _seeds(seed)
        manner = self._manner(voice, speak, thinker_sampling, talker_sampling, Limits(max_tokens, max_codes))
        self._end_others()
        conversation = Conversation(
            self.parts, self.bundle.manifest, manner, system=system, seeds=seeds, clock=self._clock
        )
        self._end = conversation.close
        return conversation

    def _manner(
        self, voice: str | None, speak: bool, thinker_sampling: Sampling, talker_sampling: Sampling, limits: Limits
    ) -> Manner:
        spoken_by = self.bundle.voice(self.voices[0] if voice is None else voice) if speak else None
        return Manner(spoken_by, thinker_sampling, talker_sampling, limits)

    def _end_others(self) -> None:
        """The caches hold one conversation: end the one that is using them."""
        self._end()
        self._end = _nothing


def _until_dropped(reply: Reply) -> Iterator[Event]:
    """A reply's events; whoever stops taking them stops the reply."""
    try:
        yield from reply
    finally:
        reply.stop()


def _nothing() -> None:
    """Nobody is using the caches."""


def _seeds(seed: int | None) -> np.random.SeedSequence:
    if seed is not None:
        check_whole_number("seed", seed, 0)
    return np.random.SeedSequence(seed)


def _kind(messages: object) -> str:
    """What was given for a conversation: the type, and those of what it holds."""
    held = sorted({type(item).__name__ for item in messages}) if isinstance(messages, Sequence) else []
    return type(messages).__name__ + (f" of {', '.join(held)}" if held else "")
