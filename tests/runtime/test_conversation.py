"""A conversation as it happens beside the same conversation read at once: what was cut, kept, moved, taken back."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from nearfield.errors import AudioError, ContextLimitError, ImageError, InputError
from nearfield.runtime.conversation import Conversation
from nearfield.runtime.encoders import AudioEncoder
from nearfield.runtime.events import AudioChunk, Event, TextDelta, TurnEnd
from nearfield.runtime.history import History
from nearfield.runtime.mel_stream import MelStream
from nearfield.runtime.messages import SYSTEM_PROMPT, Audio, Image, Message, Text, Video
from nearfield.runtime.omni import Omni
from nearfield.runtime.prompt import AudioSize, build_prompt
from nearfield.runtime.reading import Reader
from nearfield.runtime.reply import Limits, Manner, Reply
from nearfield.runtime.sampling import GREEDY, Sampling
from sounds import sound
from tolerances import CONVERSATION, relative_error

Samples = npt.NDArray[np.float32]

GREEDY_TALKER = Sampling(greedy=True, repetition_penalty=1.05)
SHORT: dict[str, Any] = {"max_tokens": 8, "max_codes": 40, "talker_sampling": GREEDY_TALKER}
SPOKEN: Samples = np.concatenate([sound("fading sweep", 40_000, 0), sound("noise", 50_000, 1)])  # 5.6 s
CONTEXT = 512
STAGES = 3
"""Of a reply, and so the threads that a bundle keeps."""


@pytest.fixture(scope="module")
def omni(bundle_3b: Path) -> Omni:
    return Omni.load(bundle_3b, context=CONTEXT, threads=1)


@pytest.fixture(scope="module")
def other(bundle_3b: Path) -> Omni:
    """The same bundle once more, to read at once what the first heard as it came."""
    return Omni.load(bundle_3b, context=CONTEXT, threads=1)


@pytest.fixture(scope="module", autouse=True)
def threads_that_last_are_all_there_are() -> Iterator[None]:
    before = threading.active_count()
    yield
    gc.collect()  # a third bundle of these tests, whose conversation holds on to it in a circle
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 2 * STAGES and time.monotonic() < deadline:
        time.sleep(0.01)  # its thread has been told to end
    assert threading.active_count() <= before + 2 * STAGES


def listen(conversation: Conversation, samples: Samples, piece: int = 1_600) -> None:
    for start in range(0, len(samples), piece):
        conversation.listen(samples[start : start + piece])


def picture(seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 256, (56, 84, 3), np.uint8))


def end_of(events: list[Event]) -> TurnEnd:
    end = events[-1]
    assert isinstance(end, TurnEnd)
    return end


def samples_of(events: list[Event]) -> Samples:
    return np.concatenate([np.empty(0, np.float32), *(e.samples for e in events if isinstance(e, AudioChunk))])


def tokens_of(events: list[Event]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TextDelta) and event.token_id is not None]


def prompt_of(conversation: Conversation, reply_tokens: int) -> History:
    """What a reply of so many tokens, the last thing that was said, answered."""
    return conversation.history.until(len(conversation.history) - reply_tokens)


def answered_afresh(other: Omni, prompt: History, seeds: np.random.SeedSequence, **options: Any) -> list[Event]:
    """The reply to a prompt that is read in one piece into empty caches."""
    settings: dict[str, Any] = {"speak": True, "thinker_sampling": GREEDY} | SHORT | options
    voice = other.bundle.voice(other.voices[0]) if settings["speak"] else None
    limits = Limits(settings["max_tokens"], settings["max_codes"])
    manner = Manner(voice, settings["thinker_sampling"], settings["talker_sampling"], limits)
    Reader(other.parts.thinker, other.parts.talker).catch_up(prompt)
    return list(Reply(other.parts, other.bundle.manifest, manner, seeds, lambda _: prompt))


def check_answer(conversation: Conversation, omni: Omni, other: Omni, **options: Any) -> None:
    """The next reply is the one a fresh reading of the same history gives: its logits, its text, its sound."""
    seeds = np.random.SeedSequence(5)
    conversation._seeds = seeds  # spawns one for each reply
    events = list(conversation.respond())
    logits = omni.parts.thinker.logits
    tokens = tokens_of(events)
    again = answered_afresh(
        other, prompt_of(conversation, len(tokens)), np.random.SeedSequence(5).spawn(1)[0], **options
    )
    assert tokens_of(again) == tokens
    assert relative_error(logits, other.parts.thinker.logits) <= CONVERSATION
    assert relative_error(samples_of(events), samples_of(again)) <= CONVERSATION
    assert len(samples_of(events))


@pytest.mark.parametrize("piece", [97, 1_600, 100_000])
def test_what_is_heard_as_it_comes_is_what_is_heard_at_once(omni: Omni, other: Omni, piece: int) -> None:
    conversation = omni.conversation(speak=False, max_tokens=1)
    listen(conversation, SPOKEN, piece)
    events = list(conversation.respond())

    parts, manifest = other.parts, other.bundle.manifest
    stream = MelStream(manifest.audio)
    mel = np.concatenate([*stream.push(SPOKEN), *stream.rest()], axis=1)
    heard = parts.audio_encoder.encode(mel)
    messages = [Message("system", [Text(SYSTEM_PROMPT)]), Message("user", [Audio(SPOKEN)])]
    prompt = build_prompt(messages, [AudioSize(mel.shape[1])], parts.tokenizer, manifest.tokens, manifest.vision)
    embeddings = parts.thinker.embed(prompt.token_ids)
    embeddings[prompt.is_media] = heard
    parts.thinker.reset()
    parts.thinker.prefill(embeddings, prompt.position_ids)

    assert end_of(events).timing.prompt_tokens == len(prompt.token_ids)
    streamed = np.concatenate(
        [p.embeddings for p in conversation.history.since(0, CONTEXT) if p.embeddings is not None]
    )
    assert relative_error(streamed, heard) <= CONVERSATION
    assert relative_error(omni.parts.thinker.logits, parts.thinker.logits) <= CONVERSATION


def test_every_turn_goes_on_where_the_last_one_ended(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    for kind in ("sound", "text", "picture and sound", "film"):
        if "picture" in kind:
            conversation.attach(picture())
        if "sound" in kind:
            listen(conversation, SPOKEN[:50_000])
        if kind == "text":
            conversation.attach(Text("And now?"))
        if kind == "film":
            frames = np.random.default_rng(2).integers(0, 256, (4, 56, 56, 3), np.uint8)
            conversation.attach(Video(frames, 2.0, Audio(SPOKEN[:20_000])))
        check_answer(conversation, omni, other)


def test_a_picture_shown_while_somebody_speaks_comes_after_the_sound(omni: Omni) -> None:
    conversation = omni.conversation(speak=False, max_tokens=1)
    listen(conversation, SPOKEN[:40_000])
    conversation.attach(picture())
    listen(conversation, SPOKEN[40_000:])
    list(conversation.respond())
    tokens = omni.bundle.manifest.tokens
    ids = conversation.history.token_ids.tolist()
    sounds, pictures = ([i for i, token in enumerate(ids) if token == kind] for kind in (tokens.audio, tokens.image))
    assert len(sounds) == 141
    assert sounds == list(range(sounds[0], sounds[0] + 141))
    assert min(pictures) > max(sounds)


def test_sound_is_read_while_it_comes(omni: Omni) -> None:
    conversation = omni.conversation(speak=False)
    before = omni.parts.thinker.decoder.length
    listen(conversation, SPOKEN[:31_999])
    assert omni.parts.thinker.decoder.length == before
    listen(conversation, SPOKEN[31_999:64_040])
    assert omni.parts.thinker.decoder.length == len(conversation.history)
    assert len(conversation.history) - before > 100
    conversation.close()


def test_a_reply_of_which_nothing_was_heard_is_taken_back(omni: Omni, other: Omni) -> None:
    """Answering too early costs nothing: the question goes on as if nobody had."""
    plain, hasty = omni.conversation(**SHORT), other.conversation(**SHORT)
    listen(plain, SPOKEN)
    listen(hasty, SPOKEN[:45_000])
    events = hasty.respond()
    next(events)
    assert hasty.interrupt(0) == ""
    listen(hasty, SPOKEN[45_000:])
    one, two = list(plain.respond()), list(hasty.respond())
    np.testing.assert_array_equal(plain.history.token_ids, hasty.history.token_ids)
    assert tokens_of(one) == tokens_of(two)
    assert relative_error(omni.parts.thinker.logits, other.parts.thinker.logits) <= CONVERSATION
    plain.close()


@pytest.mark.parametrize("when", ["while it is made", "when it is complete", "when all of it was taken"])
def test_an_interrupted_reply_is_remembered_as_far_as_it_was_heard(omni: Omni, other: Omni, when: str) -> None:
    conversation = omni.conversation(**(SHORT | {"max_codes": 200}))
    listen(conversation, SPOKEN[:50_000])
    asked = len(conversation.history)
    events, taken = conversation.respond(), list[Event]()
    for event in events:
        taken.append(event)
        if when == "while it is made" and isinstance(event, AudioChunk):
            break
        if when == "when it is complete" and conversation._reply is not None and conversation._reply.complete:
            break
    texts = [event.text for event in taken if isinstance(event, TextDelta)]
    heard = conversation.interrupt(70_000)
    assert heard
    assert "".join(texts).startswith(heard) or when == "while it is made"
    if when != "when all of it was taken":
        assert end_of(list(events)).stop_reason == "interrupted"
    reply = conversation.history.token_ids[-1:]
    assert omni.parts.tokenizer.decode(reply.tolist()) in heard
    assert len(conversation.history) > asked
    assert omni.parts.thinker.decoder.length <= len(conversation.history)
    listen(conversation, SPOKEN[50_000:])
    check_answer(conversation, omni, other, max_codes=200)


def test_a_reply_can_be_cut_twice_and_taken_back_after_it_was_complete(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    conversation.attach(Text("Well?"))
    open_length = len(conversation.history)
    end = end_of(list(conversation.respond()))
    whole = len(conversation.history)
    first = conversation.interrupt(int(end.timing.audio_seconds * 24_000) - 2_000)
    second = conversation.interrupt(9_000)
    assert end.text.startswith(first)
    assert first.startswith(second)
    assert whole > len(conversation.history) >= open_length
    conversation.interrupt(0)
    assert len(conversation.history) == open_length
    conversation.attach(Text("Well, well?"))
    check_answer(conversation, omni, other)


def test_a_reply_nobody_takes_any_more_counts_as_far_as_it_was_taken(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    conversation.attach(Text("Well?"))
    open_length = len(conversation.history)
    events = conversation.respond()
    next(events)
    del events
    conversation.attach(Text(" Go on."))
    assert len(conversation.history) == open_length
    check_answer(conversation, omni, other)


def test_a_silent_reply_is_remembered_as_far_as_it_was_written(omni: Omni) -> None:
    conversation = omni.conversation(speak=False, max_tokens=8)
    conversation.attach(Text("Well?"))
    end = end_of(list(conversation.respond()))
    assert conversation.interrupt(0) == end.text


def test_the_next_reply_is_in_the_voice_that_was_chosen(omni: Omni, other: Omni) -> None:
    spoken = []
    for model, first, then in ((omni, 0, 1), (other, 1, 1)):
        conversation = model.conversation(seed=0, voice=model.voices[first], **SHORT)
        conversation.use_voice(model.bundle.voice(model.voices[then]))
        listen(conversation, SPOKEN[:20_000])
        spoken.append(samples_of(list(conversation.respond())))
    assert relative_error(*spoken) <= CONVERSATION
    with pytest.raises(InputError, match="is silent"):
        omni.conversation(speak=False).use_voice(omni.bundle.voice(omni.voices[0]))


def test_the_oldest_turns_leave_and_the_instructions_stay(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    system = conversation.history.token_ids.tolist()
    seen = set[int]()
    for _ in range(12):
        listen(conversation, SPOKEN)
        check_answer(conversation, omni, other)
        seen.update(conversation.history.turns)
        assert conversation.history.token_ids[: len(system)].tolist() == system
        assert len(conversation.history) <= CONTEXT
    assert seen == set(range(1, 13))
    assert 1 not in conversation.history.turns
    assert 12 in conversation.history.turns


def test_room_is_made_between_two_turns(bundle_3b: Path) -> None:
    conversation = Omni.load(bundle_3b, context=1024, threads=1).conversation(speak=False, max_tokens=8)
    lengths = [0, len(conversation.history)]
    while lengths[-1] > lengths[-2]:
        conversation.attach(Text("word " * 20))
        list(conversation.respond())
        lengths.append(len(conversation.history))
    assert 600 < lengths[-2] <= 768
    assert 400 < lengths[-1] <= 512
    conversation.interrupt(0)  # the reading that goes on is no obstacle
    conversation.close()


def test_a_reply_that_fills_the_context_leaves_when_the_next_question_comes(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**(SHORT | {"max_tokens": 1000}))
    conversation.attach(Text("Well?"))
    end = end_of(list(conversation.respond()))
    assert end.stop_reason == "context"
    assert len(conversation.history) == CONTEXT + 1
    conversation.attach(Text("Well, well?"))
    assert conversation.history.turns == []
    check_answer(conversation, omni, other, max_tokens=1000)


def test_a_question_longer_than_the_context_is_refused_and_dropped(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    conversation.attach(Text("Before."))
    list(conversation.respond())
    remembered = len(conversation.history)
    with pytest.raises(ContextLimitError, match=r"the context holds 512; the question was dropped"):
        listen(conversation, np.tile(SPOKEN, 5))
    assert len(conversation.history) <= remembered + 5
    conversation.attach(Text("Shorter."))
    check_answer(conversation, omni, other)


def test_what_is_too_long_only_with_its_end_is_refused_at_the_call(omni: Omni) -> None:
    conversation = omni.conversation(speak=False)
    conversation.attach(Text("word " * 600))
    with pytest.raises(ContextLimitError):
        conversation.respond()
    conversation.attach(Text("Short."))
    assert end_of(list(conversation.respond())).text


def test_instructions_longer_than_the_context_are_refused(omni: Omni) -> None:
    with pytest.raises(ContextLimitError, match="the context holds 512"):
        omni.conversation(system="word " * 600)


def test_nothing_asked_is_not_answered(omni: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    with pytest.raises(InputError, match="nothing was asked"):
        conversation.respond()
    conversation.listen(SPOKEN[:300])
    with pytest.raises(InputError, match="nothing was asked"):
        conversation.respond()
    assert conversation.interrupt(10) == ""


def test_what_cannot_be_used_is_refused_and_changes_nothing(omni: Omni) -> None:
    conversation = omni.conversation(speak=False, max_tokens=2)
    before = conversation.history.token_ids.tolist()
    with pytest.raises(AudioError, match="float32"):
        conversation.listen(SPOKEN.astype(np.float64))
    with pytest.raises(AudioError, match="not finite"):
        conversation.listen(np.array([np.nan], np.float32))
    with pytest.raises(InputError, match="a question holds"):
        conversation.attach("Hello")  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        conversation.attach(Image(np.zeros((1, 999, 3), np.uint8)))
    with pytest.raises(InputError, match="played_samples is -1"):
        conversation.interrupt(-1)
    assert conversation.history.token_ids.tolist() == before
    conversation.attach(Text("Hello."))
    assert len(tokens_of(list(conversation.respond()))) == 2


def test_a_second_conversation_ends_the_first(omni: Omni) -> None:
    first = omni.conversation(**SHORT)
    first.attach(Text("Well?"))
    events = first.respond()
    next(events)
    second = omni.conversation(speak=False, max_tokens=2)
    assert end_of(list(events)).stop_reason == "interrupted"
    for call in (lambda: first.listen(SPOKEN), lambda: first.respond(), lambda: first.interrupt(0)):
        with pytest.raises(InputError, match="this conversation is over"):
            call()
    second.attach(Text("Well?"))
    assert len(tokens_of(list(second.respond()))) == 2


class Broken(AudioEncoder):
    """An encoder that fails at the last block."""

    def __init__(self, inner: AudioEncoder) -> None:
        self.__dict__.update(inner.__dict__)

    def encode_block(self, mel: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if mel.shape[1] < 200:
            raise RuntimeError("the device is gone")
        return super().encode_block(mel)


def test_a_stage_that_fails_ends_the_reply_with_its_error_and_the_question_stays(omni: Omni, other: Omni) -> None:
    conversation = omni.conversation(**SHORT)
    listen(conversation, SPOKEN[:50_000])
    working = conversation._senses.audio_encoder
    object.__setattr__(conversation._senses, "audio_encoder", Broken(working))
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(conversation.respond())
    object.__setattr__(conversation._senses, "audio_encoder", working)
    check_answer(conversation, omni, other)
