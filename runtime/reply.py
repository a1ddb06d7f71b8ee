"""A reply being made: the Thinker writes it, the Talker speaks it, Token2Wav makes it sound, all at the same time.

Inputs: loaded parts, what the reply is to be like, a function that has the prompt read → outputs: events in the order
they come about. Each stage works in its own thread and hands on what it has as soon as it has it: the Talker needs only
the rows of the tokens so far, and Token2Wav only the codes of its next window. Nothing about the result depends on how
fast a stage happens to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from . import manifest
from .bundle import LoadedVoice
from .decoder import Float32
from .events import AudioChunk, Event, TextDelta, TextStop, Timing, TurnEnd
from .history import History
from .parts import Parts
from .pipeline import Channel, Pipeline, Stopped
from .sampling import Sampler, Sampling
from .windows import WindowPlan

Clock = Callable[[], float]
"""Seconds from any fixed moment on."""

_ROWS, _EVENTS = 4, 1024
"""How far the Thinker may run ahead of the Talker, in tokens, and a reply ahead of who takes its events.

Each code takes one token, so the Talker waits for no more of them, and what the Thinker writes beyond would take the
machine away from the first sound: the longer the answer, the later.
"""


@dataclass(frozen=True)
class Limits:
    """Where a reply ends if the model does not end it: tokens of text, codes of speech."""

    max_tokens: int
    max_codes: int

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("max_codes", self.max_codes)):
            check_whole_number(name, value, 1)


@dataclass(frozen=True)
class Manner:
    """What a reply is to be like."""

    voice: LoadedVoice | None
    """None for a silent one."""
    thinker_sampling: Sampling
    talker_sampling: Sampling
    limits: Limits


@dataclass
class _Progress:
    """What came of a reply so far."""

    prompt_tokens: int = 0
    text: list[str] = field(default_factory=list)
    """What each token added."""
    tokens: list[int] = field(default_factory=list)
    rows: list[Float32] = field(default_factory=list)
    """Of every token that was fed back: all, but the last of a reply that was cut."""
    text_stop: TextStop = "interrupted"
    codes: int = 0
    samples: int = 0
    first_token_ms: float | None = None
    first_audio_ms: float | None = None
    text_ms: float = 0.0
    codes_ms: float = 0.0
    waveform_ms: float = 0.0


class Reply(Iterator[Event]):
    """One reply; iterate over its events, or `stop` it."""

    def __init__(
        self,
        parts: Parts,
        settings: manifest.Manifest,
        manner: Manner,
        seed: np.random.SeedSequence,
        read: Callable[[Callable[[], None]], History],
        clock: Clock = time.perf_counter,
    ) -> None:
        """Starts at once. `read` has the prompt read and returns it, calling its argument between steps, which may
        raise."""
        self._parts, self._settings, self._manner, self._read, self._clock = parts, settings, manner, read, clock
        # One stream each, so that what a stage draws depends on no other.
        thinker_seed, talker_seed, noise_seed = seed.spawn(3)
        self._thinker_stream, self._talker_stream = map(np.random.default_rng, (thinker_seed, talker_seed))
        self._noise_seed = int(noise_seed.generate_state(1)[0])
        self._started = clock()
        self._progress = _Progress()
        self._complete = self._over = False
        self._prompt: History | None = None
        self._pipeline = Pipeline(parts.workers)
        self._events: Channel[Event] = Channel(self._pipeline, _EVENTS)
        self._taken: list[Event] = []
        self._rows: Channel[Float32] = Channel(self._pipeline, _ROWS)
        self._codes: Channel[int] = Channel(self._pipeline, 1)  # a window's, once there is one
        self._pipeline.start(self._write)
        if manner.voice is not None:
            self._pipeline.start(self._speak)
            self._pipeline.start(self._sound)

    @property
    def tokens(self) -> list[int]:
        """Ids of the tokens written so far."""
        return self._progress.tokens

    @property
    def texts(self) -> list[str]:
        """What each of them added to the text."""
        return self._progress.text[: len(self._progress.tokens)]

    @property
    def rows(self) -> list[Float32]:
        """Rows `(D,)` for the Talker of those the Thinker has read back."""
        return self._progress.rows

    @property
    def samples(self) -> int:
        """Samples of sound that were made so far."""
        return self._progress.samples

    @property
    def complete(self) -> bool:
        """Whether all of it was made, whether or not its events were taken."""
        return self._complete

    def __next__(self) -> Event:
        """The next event; raises what a stage failed with. A reply that was stopped ends with a `TurnEnd` too."""
        if self._over:
            raise StopIteration
        try:
            self._taken = self._taken or self._events.take()[::-1]
            self._pipeline.check()
            event = self._taken.pop()
        except Stopped:
            self._pipeline.join()
            self._pipeline.raise_error()
            event = self._end("interrupted")
        if isinstance(event, TurnEnd):
            self._over = True
            self._pipeline.join()  # the last stage is putting its things away
        return event

    def stop(self) -> None:
        """End it here: every stage stops after the step it is at, and has when this returns."""
        self._pipeline.stop()

    def _write(self) -> None:
        """Have the prompt read, then choose the tokens one by one, each fed back to the Thinker for the next."""
        check, progress = self._pipeline.check, self._progress
        prompt = self._read(check)
        self._prompt = prompt
        progress.prompt_tokens = len(prompt)
        thinker, limits = self._parts.thinker, self._manner.limits
        sampler = Sampler(
            self._manner.thinker_sampling, self._settings.thinker.vocab_size, self._thinker_stream,
            seen=prompt.token_ids.tolist(),
        )  # fmt: skip
        stream = self._parts.tokenizer.stream()
        stop: TextStop = "end"
        while not thinker.is_end(token := sampler.choose(thinker.logits)):
            check()
            if progress.first_token_ms is None:
                progress.first_token_ms = self._since(self._started)
            text = stream.push(token)
            progress.text.append(text)
            progress.tokens.append(token)
            self._events.put(TextDelta(text, token))
            if len(progress.tokens) == limits.max_tokens or thinker.decoder.length == thinker.decoder.context:
                stop = "max_tokens" if len(progress.tokens) == limits.max_tokens else "context"
                break
            row = thinker.step(token)
            progress.rows.append(row)
            if self._manner.voice is not None:
                self._rows.put(row)
        if rest := stream.finish():
            progress.text.append(rest)
            self._events.put(TextDelta(rest, None))
        progress.text_stop = stop
        progress.text_ms = self._since(self._started)
        self._rows.close()
        if self._manner.voice is None:
            self._finish()

    def _speak(self) -> None:
        """Make the codes, one for each row, and the rest when there are no more."""
        talker, check = self._parts.talker, self._pipeline.check
        rows = self._rows.take(at_most=1)
        if rows:  # the prompt has been read; nothing is said where no token was read back
            begun = self._clock()
            self._begin_speech()
            while rows:
                talker.push(rows[0])
                self._put_codes(check)
                rows = self._rows.take(at_most=1)  # the others stay where the Thinker counts them
            talker.finish_text()
            self._put_codes(check)
            self._progress.codes_ms = self._since(begun)
        self._codes.close()

    def _begin_speech(self) -> None:
        voice, prompt, settings = self._manner.voice, self._prompt, self._settings.token2wav
        assert voice is not None and prompt is not None
        self._parts.talker.begin(
            next_position=prompt.next_position,
            largest_position=prompt.largest_position,
            voice_bos_token_id=voice.bos_token_id,
            sampling=self._manner.talker_sampling,
            generator=self._talker_stream,
            max_codes=min(self._manner.limits.max_codes, settings.max_frames // settings.frames_per_code),
        )

    def _put_codes(self, check: Callable[[], None]) -> None:
        for code in self._parts.talker.codes():
            check()
            self._progress.codes += 1
            self._codes.put(code)

    def _sound(self) -> None:
        """Turn the codes into sound, a window at a time."""
        voice, token2wav = self._manner.voice, self._parts.token2wav
        assert voice is not None
        plan = WindowPlan.streaming(self._settings.token2wav)
        token2wav.begin(voice, seed=self._noise_seed, plan=plan, check=self._pipeline.check)
        self._codes.resize(token2wav.missing_codes())
        while codes := self._codes.take(at_least=token2wav.missing_codes()):
            pieces = token2wav.push(np.array(codes, np.int64))
            # While a window is made the Talker speaks the next, and no more: it would only take the machine away.
            self._codes.resize(token2wav.missing_codes(windows=2))
            self._put_sound(pieces)
        self._put_sound(token2wav.finish())
        self._finish()

    def _put_sound(self, pieces: Iterator[Float32]) -> None:
        progress, rate = self._progress, self._settings.token2wav.sample_rate_hz
        while True:
            begun = self._clock()
            piece = next(pieces, None)
            progress.waveform_ms += self._since(begun)
            if piece is None:
                return
            if progress.first_audio_ms is None:
                progress.first_audio_ms = self._since(self._started)
            progress.samples += len(piece)
            self._events.put(AudioChunk(piece, rate))

    def _finish(self) -> None:
        self._complete = True
        self._events.put(self._end(self._progress.text_stop))

    def _end(self, text_stop: TextStop) -> TurnEnd:
        progress = self._progress
        speech_stop = None if self._manner.voice is None else self._parts.talker.stop_reason
        if self._manner.voice is not None and not progress.rows and text_stop != "interrupted":
            speech_stop = "end"  # there was nothing to say
        timing = Timing(
            prompt_tokens=progress.prompt_tokens,
            reply_tokens=len(progress.tokens),
            codes=progress.codes,
            audio_seconds=progress.samples / self._settings.token2wav.sample_rate_hz,
            time_to_first_token_ms=progress.first_token_ms,
            time_to_first_audio_ms=progress.first_audio_ms,
            text_ms=progress.text_ms,
            speech_codes_ms=progress.codes_ms,
            speech_waveform_ms=progress.waveform_ms,
            total_ms=self._since(self._started),
        )
        return TurnEnd("".join(progress.text), text_stop, speech_stop, timing)

    def _since(self, moment: float) -> float:
        """Milliseconds since a moment of the clock."""
        return 1000 * (self._clock() - moment)


def check_whole_number(name: str, value: object, least: int) -> None:
    """Raise `InputError` unless a value is a whole number of at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least {least}")
