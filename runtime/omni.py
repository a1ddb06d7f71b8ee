"""One turn of a conversation: messages in, events out. The parts are wired here; what they do is theirs.

Inputs: a bundle and messages of text, sound, images and video → outputs: `TextDelta`s as the reply is written,
`AudioChunk`s as it is spoken, and one `TurnEnd`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from .bundle import Bundle, LoadedVoice
from .decoder import Float32
from .encoders import encode_part
from .events import AudioChunk, Event, TextDelta, TextStop, Timing, TurnEnd
from .messages import Message
from .parts import CONTEXT, MAX_CODES, Parts, load_parts
from .prompt import Prompt, build_prompt, media_parts, media_size
from .sampling import GREEDY, TALKER_DEFAULT, Sampler, Sampling
from .session import Device, SessionSettings
from .talker import SpeechStop
from .thinker import talker_prompt_rows

MAX_TOKENS = 1024
"""Tokens of text a reply may have unless told otherwise: the reference's limit."""

Clock = Callable[[], float]
"""Seconds from any fixed moment on."""


@dataclass(frozen=True)
class Limits:
    """Where a reply ends if the model does not end it: tokens of text, codes of speech."""

    max_tokens: int
    max_codes: int

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("max_codes", self.max_codes)):
            _check_whole_number(name, value, 1)


@dataclass(frozen=True)
class _Turn:
    """What a turn was asked to do."""

    messages: Sequence[Message]
    prompt: Prompt
    voice: LoadedVoice | None
    """None for a silent turn."""
    thinker_sampling: Sampling
    talker_sampling: Sampling
    limits: Limits
    thinker_stream: np.random.Generator
    talker_stream: np.random.Generator
    noise_seed: int


@dataclass(frozen=True)
class _Written:
    """What came of writing the reply."""

    text: str
    tokens: int
    rows: list[Float32]
    """Of every token that was fed back, for the Talker: all, but the last of a reply that was cut."""
    stop_reason: TextStop
    first_token_ms: float | None
    text_ms: float


@dataclass(frozen=True)
class _Spoken:
    """What came of speaking it; the defaults are those of a turn that is not spoken."""

    stop_reason: SpeechStop | None = None
    codes: int = 0
    samples: int = 0
    first_audio_ms: float | None = None
    codes_ms: float = 0.0
    waveform_ms: float = 0.0


class Omni:
    """A loaded bundle. One turn at a time, on one thread: starting one ends the one before."""

    def __init__(self, bundle: Bundle, parts: Parts, clock: Clock = time.perf_counter) -> None:
        self.bundle, self.parts, self._clock = bundle, parts, clock
        self._running: Generator[Event, None, None] | None = None

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: Device = "cpu",
        context: int = CONTEXT,
        threads: int | None = None,
        gpu_memory_limit_bytes: int | None = None,
    ) -> Omni:
        """Load the bundle in the directory `path` on a device.

        `context` is the most positions a prompt and its reply may take; `threads` those one operator may use on a CPU.
        Raises `BundleError`, `DeviceError`, and `InputError` for a context the model does not have.
        """
        settings = SessionSettings(device, threads, gpu_memory_limit_bytes)
        bundle = Bundle.open(Path(path))
        return cls(bundle, load_parts(bundle, settings, context))

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
        """Reply to a conversation. The call checks what it is given; the work is done as the events are taken.

        `seed` fixes everything random: the same seed, settings and machine give the same reply. A reply that is empty,
        or a single token cut by `max_tokens`, has no sound, for speech needs a token that was read back; one cut by
        `max_tokens` is spoken without its last token, as in the reference.

        Raises `UnknownVoiceError`, `ContextLimitError` for a prompt that is too long, and `InputError` for messages,
        a seed or limits of the wrong kind.
        """
        if not isinstance(messages, Sequence) or not all(isinstance(message, Message) for message in messages):
            raise InputError(f"a conversation must be a sequence of Message, found {_kind(messages)}")
        if seed is not None:
            _check_whole_number("seed", seed, 0)
        spoken_by = self.bundle.voice(self.voices[0] if voice is None else voice) if speak else None
        manifest = self.bundle.manifest
        sizes = [media_size(part, manifest.audio, manifest.vision) for part in media_parts(messages)]
        prompt = build_prompt(messages, sizes, self.parts.tokenizer, manifest.tokens, manifest.vision)
        streams = np.random.SeedSequence(seed).spawn(3)  # one each, so that none depends on how much another draws
        turn = _Turn(
            messages=messages,
            prompt=prompt,
            voice=spoken_by,
            thinker_sampling=thinker_sampling,
            talker_sampling=talker_sampling,
            limits=Limits(max_tokens, max_codes),
            thinker_stream=np.random.default_rng(streams[0]),
            talker_stream=np.random.default_rng(streams[1]),
            noise_seed=int(streams[2].generate_state(1)[0]),
        )
        if self._running is not None:
            self._running.close()
        self.parts.thinker.reset()
        self.parts.talker.reset()
        self.parts.thinker.decoder.check_fits(len(prompt.token_ids))
        if spoken_by is not None:
            self.parts.talker.check_fits(len(prompt.token_ids))
        self._running = self._run(turn, self._clock())
        return self._running

    def _run(self, turn: _Turn, started: float) -> Generator[Event, None, None]:
        """Read the prompt, write the reply, then speak it."""
        prompt_rows = self._read(turn)
        written = yield from self._write(turn, started)
        spoken = _Spoken()
        if turn.voice is not None:
            spoken = yield from self._speak(turn, turn.voice, prompt_rows, written.rows, started)
        timing = Timing(
            prompt_tokens=len(turn.prompt.token_ids),
            reply_tokens=written.tokens,
            codes=spoken.codes,
            audio_seconds=spoken.samples / self.bundle.manifest.token2wav.sample_rate_hz,
            time_to_first_token_ms=written.first_token_ms,
            time_to_first_audio_ms=spoken.first_audio_ms,
            text_ms=written.text_ms,
            speech_codes_ms=spoken.codes_ms,
            speech_waveform_ms=spoken.waveform_ms,
            total_ms=self._since(started),
        )
        yield TurnEnd(written.text, written.stop_reason, spoken.stop_reason, timing)

    def _write(self, turn: _Turn, started: float) -> Generator[Event, None, _Written]:
        """Choose the tokens of the reply one by one, each fed back to the Thinker for the next."""
        thinker, settings = self.parts.thinker, self.bundle.manifest.thinker
        sampler = Sampler(
            turn.thinker_sampling, settings.vocab_size, turn.thinker_stream, seen=turn.prompt.token_ids.tolist()
        )
        stream, deltas, rows = self.parts.tokenizer.stream(), list[str](), list[Float32]()
        first_token_ms: float | None = None
        stop_reason: TextStop = "end"
        tokens = 0
        while not thinker.is_end(token := sampler.choose(thinker.logits)):
            tokens += 1
            first_token_ms = self._since(started) if first_token_ms is None else first_token_ms
            deltas.append(stream.push(token))
            yield TextDelta(deltas[-1], token)
            if tokens == turn.limits.max_tokens or thinker.decoder.length == thinker.decoder.context:
                stop_reason = "max_tokens" if tokens == turn.limits.max_tokens else "context"
                break
            rows.append(thinker.step(token))
        if rest := stream.finish():
            deltas.append(rest)
            yield TextDelta(rest, None)
        return _Written("".join(deltas), tokens, rows, stop_reason, first_token_ms, self._since(started))

    def _read(self, turn: _Turn) -> Float32:
        """Encode the media and feed the prompt to the Thinker; returns the prompt's rows `(S, D)` for the Talker."""
        prompt, thinker = turn.prompt, self.parts.thinker
        embeddings = thinker.embed(prompt.token_ids)  # (S, D)
        encoders = self.parts.audio_encoder, self.parts.vision_encoder
        encoded = [encode_part(part, *encoders) for part in media_parts(turn.messages)]
        for slot in prompt.slots:
            embeddings[slot.indices] = encoded[slot.part][slot.kind]
        hidden = thinker.prefill(embeddings, prompt.position_ids)
        return talker_prompt_rows(hidden, embeddings, prompt.is_media)

    def _speak(
        self, turn: _Turn, voice: LoadedVoice, prompt_rows: Float32, reply_rows: Sequence[Float32], started: float
    ) -> Generator[Event, None, _Spoken]:
        """Make the codes of the whole reply, then its sound; nothing where no token was read back."""
        if not reply_rows:
            return _Spoken("end")
        talker, token2wav, settings = self.parts.talker, self.parts.token2wav, self.bundle.manifest.token2wav
        begun = self._clock()
        talker.begin(
            prompt_rows,
            turn.prompt.position_ids,
            voice_bos_token_id=voice.bos_token_id,
            sampling=turn.talker_sampling,
            generator=turn.talker_stream,
            max_codes=min(turn.limits.max_codes, settings.max_frames // settings.frames_per_code),
        )
        for row in reply_rows:
            talker.push(row)
        talker.finish_text()
        codes = np.fromiter(talker.codes(), np.int64)
        codes_ms, coded = self._since(begun), self._clock()
        token2wav.begin(voice, seed=turn.noise_seed)
        token2wav.push(codes)
        samples, first_audio_ms = 0, None
        for piece in token2wav.finish():
            first_audio_ms = self._since(started) if first_audio_ms is None else first_audio_ms
            samples += len(piece)
            yield AudioChunk(piece, settings.sample_rate_hz)
        return _Spoken(talker.stop_reason, len(codes), samples, first_audio_ms, codes_ms, self._since(coded))

    def _since(self, moment: float) -> float:
        """Milliseconds since a moment of the clock."""
        return 1000 * (self._clock() - moment)


def _check_whole_number(name: str, value: object, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least {least}")


def _kind(messages: object) -> str:
    """What was given for a conversation: the type, and those of what it holds."""
    held = sorted({type(item).__name__ for item in messages}) if isinstance(messages, Sequence) else []
    return type(messages).__name__ + (f" of {', '.join(held)}" if held else "")
