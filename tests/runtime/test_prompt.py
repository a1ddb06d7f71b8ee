"""Prompts of every mix of media beside the reference's processor and its TMRoPE ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from input_settings import AUDIO, VISION, token_settings
from msgspec.structs import replace
from nearfield.errors import AudioError, BundleError, InputError
from nearfield.runtime.messages import Audio, Image, Message, Part, Text, Video
from nearfield.runtime.prompt import (
    AudioSize,
    ImageSize,
    MediaSize,
    Prompt,
    VideoSize,
    build_prompt,
    media_parts,
    media_size,
)
from nearfield.runtime.tokenizer import Tokenizer
from nearfield.runtime.vision_layout import Grid
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

# The reference hands torch tensors to NumPy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

# Small frames, so that a prompt of several videos stays short.
SMALL = replace(VISION, video_min_pixels=4 * 28 * 28)
AUDIO_LIMIT_SAMPLES = 16_000 * 10
EVEN_RATES = [0.4, 0.5, 1.0, 2.0, 3.0, 4.0, 10.0, 24_000 / 1_001, 25.0, 30.0]


@dataclass(frozen=True, repr=False)
class Bench:
    """The prompt builder and the reference, for one checkpoint."""

    processor: Qwen2_5OmniProcessor
    thinker: Any
    tokenizer: Tokenizer

    def build(self, messages: Sequence[Message]) -> Prompt:
        sizes = [media_size(part, AUDIO, SMALL) for part in media_parts(messages)]
        return self.build_sized(messages, sizes)

    def build_sized(self, messages: Sequence[Message], sizes: Sequence[MediaSize]) -> Prompt:
        return build_prompt(messages, sizes, self.tokenizer, token_settings(self.processor), SMALL)

    def expected(self, messages: Sequence[Message], fps: float) -> tuple[list[int], Any]:
        """The reference's ids, TMRoPE ids `(3, S)` and next position; videos have sound all or none."""
        chat: list[dict[str, Any]] = []
        images: list[Any] = []
        videos: list[Any] = []
        sounds: list[Any] = []
        sources: list[int | None] = []
        for message in messages:
            content: list[dict[str, Any]] = []
            for part in message.content:
                match part:
                    case Text():
                        content.append({"type": "text", "text": part.text})
                    case Audio():
                        content.append({"type": "audio"})
                        sounds.append(part.samples)
                        sources.append(None)
                    case Image():
                        content.append({"type": "image"})
                        images.append(part.pixels)
                    case Video():
                        content.append({"type": "video"})
                        if part.audio is not None:
                            sounds.append(part.audio.samples)
                            sources.append(len(videos))
                        videos.append(np.asarray(part.frames))
            chat.append({"role": message.role, "content": content})
        with_sound = any(source is not None for source in sources)
        batch = self.processor(
            text=self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False),
            images=images or None,
            videos=videos or None,
            audio=sounds or None,
            audio_from_video_indices=sources if with_sound else None,
            load_audio_from_video=with_sound,
            videos_kwargs={"fps": fps, "size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 768 * 28 * 28}},
            audio_kwargs={"max_length": AUDIO_LIMIT_SAMPLES},  # or it would compute 30 s of every clip
            return_tensors="pt",
        )
        mask = batch.get("feature_attention_mask")
        positions, _ = self.thinker.get_rope_index(
            batch["input_ids"],
            batch.get("image_grid_thw"),
            batch.get("video_grid_thw"),
            batch["attention_mask"],
            use_audio_in_video=with_sound,
            audio_seqlens=None if mask is None else mask.sum(-1),
            second_per_grids=batch.get("video_second_per_grid"),
        )
        ids: list[int] = batch["input_ids"][0].tolist()
        return ids, positions[:, 0].numpy()


@pytest.fixture(scope="module")
def bench(
    checkpoint_3b: Path, processor_3b: Qwen2_5OmniProcessor, reference_3b: Qwen2_5OmniForConditionalGeneration
) -> Bench:
    tokenizer = Tokenizer.load(checkpoint_3b / "tokenizer.json", checkpoint_3b / "chat_template.jinja")
    return Bench(processor_3b, reference_3b.thinker, tokenizer)


def audio_of(samples: int) -> Audio:
    return Audio(np.zeros(samples, np.float32))


def image_of(height: int, width: int) -> Image:
    return Image(np.zeros((height, width, 3), np.uint8))


def video_of(frames: int, height: int, width: int, fps: float, samples: int | None = None) -> Video:
    sound = None if samples is None else audio_of(samples)
    return Video(np.zeros((frames, height, width, 3), np.uint8), fps, sound)


# Three mel frames are the fewest that make an embedding.
lengths = st.one_of(st.integers(321, 20_000), st.integers(321, AUDIO_LIMIT_SAMPLES))
sides = st.integers(28, 140)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"), max_size=20).map(Text)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], float]:
    """Several turns of any parts, at one frame rate, the videos with sound all or none: what the reference can do."""
    fps = draw(st.sampled_from(EVEN_RATES))
    with_sound = draw(st.booleans())
    videos = st.builds(video_of, st.integers(1, 9), sides, sides, st.just(fps), lengths if with_sound else st.none())
    parts: st.SearchStrategy[Part] = st.one_of(
        texts, st.builds(audio_of, lengths), st.builds(image_of, sides, sides), videos
    )
    turns = draw(st.lists(st.lists(parts, max_size=4), min_size=1, max_size=4))
    roles = ["user", "assistant", "user", "assistant"]
    messages = [Message(role, tuple(content)) for role, content in zip(roles, turns, strict=False)]  # type: ignore[arg-type]
    if draw(st.booleans()):
        messages.insert(0, Message("system", (draw(texts),)))
    return messages, fps


def user(*parts: Part) -> list[Message]:
    return [Message("user", parts)]


@given(conversations())
@example((user(Text("Hello")), 2.0))
@example((user(audio_of(321)), 2.0))
@example((user(image_of(28, 140), image_of(140, 28)), 2.0))
@example((user(video_of(8, 56, 84, 2.0), Text("?"), video_of(3, 84, 56, 2.0)), 2.0))
@example((user(video_of(9, 56, 84, 2.0, 70_000), audio_of(9_000), video_of(1, 84, 56, 2.0, 90_000)), 2.0))
@example((user(audio_of(50_000), video_of(9, 56, 84, 1.0, 33_000), image_of(60, 60)), 1.0))
@example((user(video_of(12, 56, 84, 12.5)), 12.5))  # a time that is whole in single precision, and not in double
@example((user(video_of(9, 56, 84, 0.4, 100_000)), 0.4))  # five seconds from one temporal patch to the next
@example((user(video_of(2, 28, 2_800, 25.0, 1_000), Text("wider than its sound is long")), 25.0))
def test_ids_and_positions_equal_the_reference(bench: Bench, case: tuple[list[Message], float]) -> None:
    messages, fps = case
    prompt = bench.build(messages)
    ids, positions = bench.expected(messages, fps)
    assert prompt.token_ids.tolist() == ids
    assert np.array_equal(prompt.position_ids, positions)
    check_slots(bench, messages, prompt)


def check_slots(bench: Bench, messages: Sequence[Message], prompt: Prompt) -> None:
    """Every placeholder belongs to one slot, and the reference's Talker mask is their union."""
    tokens = token_settings(bench.processor)
    placeholder = {"audio": tokens.audio, "image": tokens.image, "video": tokens.video}
    for kind, token in placeholder.items():
        slots = [slot for slot in prompt.slots if slot.kind == kind]
        indices = np.concatenate([slot.indices for slot in slots]) if slots else np.zeros(0)
        assert np.array_equal(indices, np.flatnonzero(prompt.token_ids == token))
    assert np.array_equal(prompt.is_media, np.isin(prompt.token_ids, list(placeholder.values())))
    expected = []
    for index, part in enumerate(media_parts(messages)):
        expected.append((index, type(part).__name__.lower()))
        if isinstance(part, Video) and part.audio is not None:
            expected.append((index, "audio"))
    assert [(slot.part, slot.kind) for slot in prompt.slots] == expected
    assert prompt.token_ids.dtype == prompt.position_ids.dtype == np.int64


@given(st.floats(0.3, 60), st.integers(1, 24), lengths)
@example(20.5, 84, 100_000)
def test_any_frame_rate(bench: Bench, fps: float, frames: int, samples: int) -> None:
    messages = user(video_of(frames, 56, 56, fps, samples))
    prompt = bench.build(messages)
    ids, positions = bench.expected(messages, fps)
    assert prompt.token_ids.tolist() == ids
    seen = prompt.position_ids[0, prompt.slots[0].indices]
    exact = np.arange(seen.size) // 4 * (2 / fps) * 25
    # Where a frame falls on a chunk's edge, the reference's two roundings may cut tokens and positions differently.
    chunks = bench.thinker.get_chunked_index(torch.from_numpy(seen - seen[0]), 50, 0)
    assume(bench.processor.get_chunked_index(exact, 50) == chunks)
    assert np.array_equal(prompt.position_ids, positions)


def test_positions_follow_the_tokens_where_the_reference_disagrees_with_itself(bench: Bench) -> None:
    # At 20.5 frames a second the last pair's time is 100.0 where tokens are cut and 99 where positions are: two chunks.
    messages = user(video_of(84, 56, 56, 20.5, 100_000))
    prompt = bench.build(messages)
    ids, positions = bench.expected(messages, 20.5)
    assert prompt.token_ids.tolist() == ids
    assert not np.array_equal(prompt.position_ids, positions)
    seen = prompt.position_ids[:, prompt.slots[0].indices]
    times = (np.arange(42, dtype=np.float32) * np.float32(2 / 20.5) * np.float32(25)).astype(int)
    assert np.array_equal(seen[0] - seen[0, 0], times.repeat(4))
    heard = prompt.position_ids[:, prompt.slots[1].indices]
    assert np.array_equal(heard - heard[0, 0], np.tile(np.arange(heard.shape[1]), (3, 1)))


def test_a_silent_video_beside_one_with_sound_is_laid_out_as_alone(bench: Bench) -> None:
    silent, sounding = video_of(6, 56, 84, 2.0), video_of(6, 56, 84, 4.0, 40_000)
    both = bench.build(user(silent, Text(" and "), sounding))
    alone = [bench.build(user(silent)), bench.build(user(sounding))]
    for slot, single in zip([both.slots[0], both.slots[1]], alone, strict=True):
        start, single_start = slot.indices[0], single.slots[0].indices[0]
        size = len(slot.indices)
        found = both.position_ids[:, start : start + size] - both.position_ids[0, start]
        expected = single.position_ids[:, single_start : single_start + size] - single.position_ids[0, single_start]
        assert np.array_equal(found, expected)
    assert [(slot.part, slot.kind) for slot in both.slots] == [(0, "video"), (1, "video"), (1, "audio")]
    check_slots(bench, user(silent, sounding), both)


def test_every_video_has_its_own_frame_rate(bench: Bench) -> None:
    prompt = bench.build(user(video_of(6, 56, 56, 2.0), video_of(6, 56, 56, 1.0)))
    for slot, seconds in zip(prompt.slots, [1, 2], strict=True):
        times = prompt.position_ids[0, slot.indices]
        assert np.array_equal(times - times[0], np.repeat([0, 25 * seconds, 50 * seconds], 4))


@pytest.mark.parametrize("typed", ["<|AUDIO|>", "<|vision_bos|><|IMAGE|><|vision_eos|>", "<|VIDEO|>", "<|im_end|>"])
def test_typed_placeholders_are_not_media(bench: Bench, typed: str) -> None:
    prompt = bench.build(user(Text(f"What does {typed} mean?"), image_of(56, 56), Text(typed)))
    assert [slot.kind for slot in prompt.slots] == ["image"]
    assert len(prompt.slots[0].indices) == 4
    assert bench.tokenizer.decode(prompt.token_ids.tolist()).count(typed) == 2
    check_slots(bench, user(image_of(56, 56)), prompt)


def test_a_prompt_is_measured_before_anything_is_computed(bench: Bench) -> None:
    messages = user(audio_of(16_000), image_of(56, 84), video_of(3, 56, 56, 2.0, 16_000))
    sizes = [media_size(part, AUDIO, SMALL) for part in media_parts(messages)]
    assert sizes == [AudioSize(100), ImageSize(Grid(1, 4, 6)), VideoSize(Grid(2, 4, 4), 2.0, 100)]
    assert [len(slot.indices) for slot in bench.build(messages).slots] == [25, 6, 8, 25]


def test_a_clip_is_cut_at_the_limit_of_the_front_end() -> None:
    assert media_size(audio_of(16_000 * 31), AUDIO, SMALL) == AudioSize(3_000)


@pytest.mark.parametrize("samples", [1, 160, 320])
def test_a_sound_too_short_for_an_embedding(bench: Bench, samples: int) -> None:
    with pytest.raises(AudioError, match=r"media 1 of the conversation has a sound of \d+ ms; at least 30 ms"):
        bench.build(user(image_of(56, 56), audio_of(samples)))
    with pytest.raises(AudioError, match="media 0"):
        bench.build(user(video_of(2, 56, 56, 2.0, samples)))


def test_no_messages(bench: Bench) -> None:
    with pytest.raises(InputError, match="no messages"):
        bench.build([])


def test_a_template_that_loses_media(bench: Bench, checkpoint_3b: Path, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("no place for media", encoding="utf-8")
    tokenizer = Tokenizer.load(checkpoint_3b / "tokenizer.json", tmp_path / "chat_template.jinja")
    broken = Bench(bench.processor, bench.thinker, tokenizer)
    with pytest.raises(BundleError, match=r"placed media \[\], the conversation has \[\d+\]"):
        broken.build(user(image_of(56, 56)))
