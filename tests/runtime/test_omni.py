"""A turn as its caller sees it: events in order, their timing, limits, seeds, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import nearfield.runtime.parts
import numpy as np
import numpy.typing as npt
import pytest
from nearfield.errors import ContextLimitError, DeviceError, InputError, UnknownVoiceError
from nearfield.export.export import ExportOptions, export_bundle
from nearfield.runtime.bundle import Bundle
from nearfield.runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from nearfield.runtime.manifest import ComponentName, Dialect, Quantization
from nearfield.runtime.messages import Audio, Image, Message, Text, Video
from nearfield.runtime.omni import Omni
from nearfield.runtime.parts import MAX_CODES, load_parts
from nearfield.runtime.prompt import Prompt, build_prompt, media_parts, media_size
from nearfield.runtime.sampling import GREEDY, TALKER_DEFAULT, Sampling
from nearfield.runtime.session import Session, SessionSettings, open_session
from nearfield.runtime.thinker import Thinker
from nearfield.runtime.token2wav import Token2Wav

QUESTION = [Message("user", [Text("Hello, how are you today?")])]
WARM = Sampling(temperature=1.5)
SHORT: dict[str, Any] = {"max_tokens": 6, "max_codes": 20}


@pytest.fixture(scope="module")
def omni(bundle_3b: Path) -> Omni:
    return Omni.load(bundle_3b, context=256, threads=1)


def text_of(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def tokens_of(events: Iterable[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TextDelta) and event.token_id is not None]


def samples_of(events: Iterable[Event]) -> Any:
    return np.concatenate([np.empty(0, np.float32), *(e.samples for e in events if isinstance(e, AudioChunk))])


def end_of(events: list[Event]) -> TurnEnd:
    end = events[-1]
    assert isinstance(end, TurnEnd)
    return end


def that_ends_with(omni: Omni, token_id: int) -> Omni:
    """The same, but for a Thinker whose replies end with `token_id`."""
    thinker = omni.parts.thinker
    settings = msgspec.structs.replace(thinker.settings, eos_token_ids=[token_id])
    ended = Thinker(thinker.decoder, settings, omni.bundle.thinker_embedding())
    return Omni(omni.bundle, replace(omni.parts, thinker=ended))


class RecordedCodes(Token2Wav):
    """Token2Wav, remembering the codes of the last reply."""

    def __init__(self, inner: Token2Wav) -> None:
        self.__dict__.update(inner.__dict__)
        self.codes: list[int] = []

    def push(self, codes: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.float32]]:
        self.codes += codes.tolist()
        return super().push(codes)


def prompt_of(omni: Omni, messages: list[Message]) -> Prompt:
    """The prompt a conversation makes."""
    manifest = omni.bundle.manifest
    sizes = [media_size(part, manifest.audio, manifest.vision) for part in media_parts(messages)]
    return build_prompt(messages, sizes, omni.parts.tokenizer, manifest.tokens, manifest.vision)


def test_a_turn_is_text_and_sound_as_they_come_then_its_end(omni: Omni) -> None:
    events = list(omni.respond(QUESTION, seed=1, **SHORT))
    kinds = [type(event) for event in events]
    assert (kinds[0], kinds[-1], kinds.count(TurnEnd)) == (TextDelta, TurnEnd, 1)
    end = end_of(events)
    assert text_of(events) == end.text
    assert (len(tokens_of(events)), end.timing.reply_tokens) == (6, 6)
    assert (end.stop_reason, end.speech_stop_reason) == ("max_tokens", "max_codes")
    chunk = next(event for event in events if isinstance(event, AudioChunk))
    assert chunk.sample_rate_hz == 24_000
    assert chunk.samples.dtype == np.float32
    samples = samples_of(events)
    assert len(samples) == 20 * 480  # a code is 20 ms
    assert end.timing.audio_seconds == 0.4
    assert end.timing.codes == 20
    assert np.abs(samples).max() <= 1
    assert samples.std() > 0


def test_a_silent_turn_writes_the_same_text(omni: Omni) -> None:
    spoken = list(omni.respond(QUESTION, seed=1, **SHORT))
    silent = list(omni.respond(QUESTION, speak=False, **SHORT))
    assert tokens_of(silent) == tokens_of(spoken)
    end = end_of(silent)
    assert not any(isinstance(event, AudioChunk) for event in silent)
    assert (end.speech_stop_reason, end.timing.codes, end.timing.time_to_first_audio_ms) == (None, 0, None)


def test_the_seed_fixes_text_codes_and_noise_each_by_its_own_stream(omni: Omni) -> None:
    def turn(seed: int, **options: Any) -> list[Event]:
        return list(omni.respond(QUESTION, thinker_sampling=WARM, seed=seed, **(SHORT | options)))

    first, again, other = turn(5), turn(5), turn(6)
    assert tokens_of(first) == tokens_of(again) != tokens_of(other)
    np.testing.assert_array_equal(samples_of(first), samples_of(again))
    assert tokens_of(turn(5, speak=False)) == tokens_of(first)


def test_what_one_stage_draws_changes_nothing_for_the_next(omni: Omni) -> None:
    """A cold sampler chooses as a greedy one does, but draws for each token."""
    cold = Sampling(temperature=0.001)

    def turn(seed: int, thinker: Sampling, talker: Sampling) -> Any:
        options: dict[str, Any] = {"thinker_sampling": thinker, "talker_sampling": talker, "seed": seed}
        return samples_of(omni.respond(QUESTION, **SHORT, **options))

    np.testing.assert_array_equal(turn(5, cold, TALKER_DEFAULT), turn(5, GREEDY, TALKER_DEFAULT))
    silent_streams = turn(5, GREEDY, GREEDY)
    np.testing.assert_array_equal(turn(5, GREEDY, cold), silent_streams)
    noise_alone = turn(6, GREEDY, GREEDY)
    assert noise_alone.shape == silent_streams.shape
    assert not np.array_equal(noise_alone, silent_streams)


def test_the_seed_changes_the_codes_of_the_same_text(omni: Omni) -> None:
    recording = RecordedCodes(omni.parts.token2wav)
    recorded = Omni(omni.bundle, replace(omni.parts, token2wav=recording))
    spoken = {}
    for seed in (5, 6):
        recording.codes = []
        spoken[seed] = (tokens_of(recorded.respond(QUESTION, seed=seed, **SHORT)), recording.codes)
    assert spoken[5][0] == spoken[6][0]
    assert spoken[5][1] != spoken[6][1]


def test_the_first_voice_is_used_unless_told_otherwise(omni: Omni) -> None:
    turns = {voice: list(omni.respond(QUESTION, voice=voice, seed=1, **SHORT)) for voice in (None, "Chelsie", "Ethan")}
    np.testing.assert_array_equal(samples_of(turns[None]), samples_of(turns["Chelsie"]))
    assert not np.array_equal(samples_of(turns["Ethan"]), samples_of(turns["Chelsie"]))


def test_the_thinkers_repetition_penalty_counts_the_prompt(omni: Omni) -> None:
    prompt = set(prompt_of(omni, QUESTION).token_ids.tolist())
    fond = replace(GREEDY, repetition_penalty=1e-9)  # makes what was seen the likelier, so the other way round
    [first, *_] = tokens_of(omni.respond(QUESTION, speak=False, **SHORT))
    [repeated, *_] = tokens_of(omni.respond(QUESTION, speak=False, thinker_sampling=fond, **SHORT))
    assert first not in prompt, "else this says nothing"
    assert repeated in prompt


def test_a_picture_counts_with_the_positions_it_takes(omni: Omni) -> None:
    question = [Message("user", [Image(np.zeros((84, 140, 3), np.uint8)), Text("What is this?")])]
    prompt = prompt_of(omni, question)
    assert prompt.is_media.sum() > 4
    timing = end_of(list(omni.respond(question, speak=False, **SHORT))).timing
    assert timing.prompt_tokens == len(prompt.token_ids)


def test_speech_is_never_longer_than_the_dit_can_take(omni: Omni) -> None:
    manifest = omni.bundle.manifest
    short = msgspec.structs.replace(manifest, token2wav=msgspec.structs.replace(manifest.token2wav, max_frames=20))
    end = end_of(list(Omni(Bundle(omni.bundle.path, short), omni.parts).respond(QUESTION, seed=1, **SHORT)))
    assert (end.timing.codes, end.speech_stop_reason) == (10, "max_codes")


def test_a_hot_talker_says_only_codes_the_dit_has(omni: Omni) -> None:
    recording = RecordedCodes(omni.parts.token2wav)
    recorded = Omni(omni.bundle, replace(omni.parts, token2wav=recording))
    list(recorded.respond(QUESTION, talker_sampling=Sampling(temperature=50.0), seed=1, max_tokens=3, max_codes=100))
    manifest = omni.bundle.manifest
    assert len(recording.codes) > 10
    assert max(recording.codes) < manifest.token2wav.code_count < manifest.talker.vocab_size


def test_without_a_seed_turns_differ(omni: Omni) -> None:
    turns = [tokens_of(omni.respond(QUESTION, thinker_sampling=WARM, speak=False, max_tokens=20)) for _ in range(2)]
    assert turns[0] != turns[1]


def test_a_turn_does_not_depend_on_the_one_before(omni: Omni) -> None:
    first = list(omni.respond(QUESTION, seed=1, **SHORT))
    list(omni.respond([Message("user", [Audio(np.zeros(16_000, np.float32))])], seed=2, **SHORT))
    again = list(omni.respond(QUESTION, seed=1, **SHORT))
    assert tokens_of(again) == tokens_of(first)
    np.testing.assert_array_equal(samples_of(again), samples_of(first))


def test_starting_a_turn_ends_the_one_before(omni: Omni) -> None:
    expected = tokens_of(omni.respond(QUESTION, speak=False, **SHORT))
    abandoned = omni.respond([Message("user", [Text("Something else.")])], **SHORT)
    next(abandoned)
    running = omni.respond(QUESTION, speak=False, **SHORT)
    end = end_of(list(abandoned))
    assert end.stop_reason == "interrupted"
    assert tokens_of(running) == expected


def test_an_empty_reply_has_no_sound(omni: Omni) -> None:
    [first, *_] = tokens_of(omni.respond(QUESTION, speak=False, **SHORT))
    events = list(that_ends_with(omni, first).respond(QUESTION, **SHORT))
    assert len(events) == 1
    end = end_of(events)
    assert (end.text, end.stop_reason, end.speech_stop_reason) == ("", "end", "end")
    assert (end.timing.reply_tokens, end.timing.codes, end.timing.time_to_first_token_ms) == (0, 0, None)


def test_a_single_token_cut_by_the_limit_has_no_sound_and_one_that_ends_has(omni: Omni) -> None:
    cut = list(omni.respond(QUESTION, max_tokens=1, max_codes=8))
    assert (len(tokens_of(cut)), end_of(cut).timing.codes, end_of(cut).stop_reason) == (1, 0, "max_tokens")
    tokens = tokens_of(omni.respond(QUESTION, speak=False, **SHORT))
    assert tokens[0] != tokens[1]
    ended = list(that_ends_with(omni, tokens[1]).respond(QUESTION, seed=1, max_codes=8))
    assert tokens_of(ended) == tokens[:1]
    assert end_of(ended).stop_reason == "end"
    assert end_of(ended).timing.codes > 0


def test_a_reply_that_fills_the_context_ends_there(bundle_3b: Path, omni: Omni) -> None:
    prompt_tokens = end_of(list(omni.respond(QUESTION, speak=False, **SHORT))).timing.prompt_tokens
    small = Omni.load(bundle_3b, context=prompt_tokens + 3, threads=1)
    end = end_of(list(small.respond(QUESTION, speak=False)))
    assert (end.timing.reply_tokens, end.stop_reason) == (4, "context")  # the fourth is read from the third


def test_times_come_from_the_clock_and_follow_each_other(omni: Omni) -> None:
    ticks = iter(range(10_000))
    clocked = Omni(omni.bundle, omni.parts, clock=lambda: float(next(ticks)))
    timing = end_of(list(clocked.respond(QUESTION, seed=1, **SHORT))).timing
    assert timing.time_to_first_token_ms == 1000
    assert timing.time_to_first_audio_ms is not None
    assert 1000 < timing.text_ms < timing.total_ms
    assert 1000 < timing.time_to_first_audio_ms < timing.total_ms
    assert 1000 <= timing.speech_codes_ms < timing.total_ms
    assert timing.speech_waveform_ms >= 1000


def test_what_cannot_be_done_is_refused_at_the_call(omni: Omni, bundle_3b: Path) -> None:
    with pytest.raises(UnknownVoiceError, match=r"voice 'Nobody' .* it has Chelsie, Ethan"):
        omni.respond(QUESTION, voice="Nobody")
    assert omni.voices == ["Chelsie", "Ethan"]
    with pytest.raises(UnknownVoiceError, match="voice ''"):
        omni.respond(QUESTION, voice="")
    for name in ("max_tokens", "max_codes"):
        for value in (0, 2.5, "2", True):
            with pytest.raises(InputError, match=f"{name} is {value!r}; expected a whole number, at least 1"):
                omni.respond(QUESTION, **(SHORT | {name: value}))
    for seed in (-1, 1.0, "7"):
        with pytest.raises(InputError, match=f"seed is {seed!r}; expected a whole number, at least 0"):
            omni.respond(QUESTION, seed=seed, **SHORT)  # type: ignore[arg-type]
    for messages, found in (("hello", "str of str"), ([Text("hello")], "list of Text"), (QUESTION[0], "Message")):
        with pytest.raises(InputError, match=f"must be a sequence of Message, found {found}"):
            omni.respond(messages, **SHORT)  # type: ignore[arg-type]
    long = [Message("user", [Text("very long " * 200)])]
    with pytest.raises(ContextLimitError, match=r"Thinker: .* its context holds 256; shorten the conversation"):
        omni.respond(long)
    with pytest.raises(DeviceError, match=r"is of dialect 'ort', .* export it again with --dialect standard"):
        Omni.load(bundle_3b, device="tensorrt-rtx")
    with pytest.raises(InputError, match=r"context is 0; .* has positions for 1 … "):
        Omni.load(bundle_3b, context=0)
    most = omni.bundle.manifest.thinker.max_positions
    with pytest.raises(InputError, match=rf"context is {most + 1}; .* has positions for 1 … {most}"):
        Omni.load(bundle_3b, context=most + 1)


def test_the_talkers_context_holds_the_prompt_and_all_codes_or_what_its_model_has(omni: Omni) -> None:
    manifest = omni.bundle.manifest
    assert omni.parts.talker._decoder.context == 256 + MAX_CODES < manifest.talker.max_positions
    low = msgspec.structs.replace(manifest, talker=msgspec.structs.replace(manifest.talker, max_positions=1000))
    parts = load_parts(Bundle(omni.bundle.path, low), SessionSettings(threads=1), 256)
    assert (parts.thinker.decoder.context, parts.talker._decoder.context) == (256, 1000)


def test_a_prompt_the_talker_cannot_hold_is_refused_before_anything_is_said(omni: Omni) -> None:
    taken = end_of(list(omni.respond(QUESTION, speak=False, **SHORT))).timing.prompt_tokens
    talker = omni.parts.talker
    context = talker._decoder.context
    try:
        talker._decoder.context = taken + 1  # the voice's token fits, a first code does not
        with pytest.raises(ContextLimitError, match="Talker: "):
            omni.respond(QUESTION, **SHORT)
        assert list(omni.respond(QUESTION, speak=False, **SHORT))
    finally:
        talker._decoder.context = context


def test_a_videos_frames_are_scaled_down_to_its_own_limit(omni: Omni) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    taken = {}
    for limit in (None, 112 * 112):
        question = [Message("user", [Video(frames, 2.0, max_pixels=limit)])]
        taken[limit] = end_of(list(omni.respond(question, speak=False, **SHORT))).timing.prompt_tokens
    assert taken[None] - taken[112 * 112] == 12 * 12 - 4 * 4  # 224 pixels are raised to the checkpoint's least


def test_an_int4_bundle_speaks(checkpoint_3b: Path, tmp_path: Path) -> None:
    dialects: list[Dialect] = ["ort", "standard"]
    for dialect in dialects:
        options = ExportOptions(bits=4, float_type="float32", dialect=dialect)
        export_bundle(checkpoint_3b, tmp_path / dialect, options)
        events = list(Omni.load(tmp_path / dialect, threads=1).respond(QUESTION, seed=1, **SHORT))
        assert len(tokens_of(events)) == 6
        assert len(samples_of(events)) == end_of(events).timing.codes * 480 > 0


def test_every_session_opens_with_the_settings_and_its_components_accuracy_level(
    omni: Omni, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: dict[str, tuple[SessionSettings, int | None]] = {}

    def recorded(graph: Path, settings: SessionSettings, *, accuracy_level: int | None = None) -> Session:
        opened[graph.stem] = (settings, accuracy_level)
        return open_session(graph, SessionSettings(threads=1))

    monkeypatch.setattr(nearfield.runtime.parts, "open_session", recorded)
    manifest = omni.bundle.manifest
    levels: dict[ComponentName, int] = {"thinker": 1, "talker": 4}
    quantized = {
        name: msgspec.structs.replace(
            manifest.components[name], quantization=Quantization("rtn", 4, 128, symmetric=True, accuracy_level=level)
        )
        for name, level in levels.items()
    }
    bundle = Bundle(omni.bundle.path, msgspec.structs.replace(manifest, components=manifest.components | quantized))
    monkeypatch.setattr(Bundle, "open", lambda _: bundle)
    Omni.load(bundle.path, device="cuda", context=64, threads=3, gpu_memory_limit_bytes=5 << 30)
    settings = SessionSettings("cuda", 3, 5 << 30)
    assert opened == {name: (settings, levels.get(name)) for name in manifest.components}
