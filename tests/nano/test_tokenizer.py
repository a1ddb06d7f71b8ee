"""Nano's tokenizer: words of its world are one token each, and our reader and the reference read the same files."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.export.config import Section
from nearfield.export.preprocessor import read_audio, read_vision
from nearfield.export.tokenizer_files import collect_tokenizer
from nearfield.nano.published import CHUNK_LENGTH_S, DEFAULT_SYSTEM, SPECIAL_TOKENS
from nearfield.nano.tokenizer import MAX_PIXELS, MIN_PIXELS, ROWS_LIMIT, token_ids, tokenizer, write_processor_files
from nearfield.nano.world import Skill, Split, draw, examples, typed
from nearfield.runtime.messages import SYSTEM_PROMPT
from nearfield.runtime.tokenizer import Tokenizer
from reference import load_processor
from transformers import Qwen2_5OmniProcessor


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nano")
    write_processor_files(path)
    (path / "config.json").write_text('{"model_type": "qwen2_5_omni"}', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def processor(directory: Path) -> Qwen2_5OmniProcessor:
    return load_processor(directory)


def _texts() -> Iterator[str]:
    """Prompts, said and typed, and replies inside the world."""
    rng = random.Random(0)
    splits: tuple[Split, ...] = ("train", "heldout")
    for skill in get_args(Skill):
        if skill == "refusal":
            continue
        for split in splits:
            for _ in range(500):
                exchange = draw(skill, rng, split)
                yield from (exchange.prompt, exchange.reply, typed(exchange, rng))


def test_every_word_of_the_world_is_one_token() -> None:
    pieces = tokenizer().pre_tokenizer
    for text in (*examples(), *_texts(), SYSTEM_PROMPT, DEFAULT_SYSTEM):
        assert len(tokenizer().encode(text).ids) == len(pieces.pre_tokenize_str(text)), text


def test_a_sentence_has_a_token_for_each_word_and_mark() -> None:
    assert tokenizer().encode("Thirty seven plus four is forty one.").tokens == [
        "Thirty", "Ġseven", "Ġplus", "Ġfour", "Ġis", "Ġforty", "Ġone", "."
    ]  # fmt: skip
    for role in ("system\n", "user\n", "assistant\n"):
        assert tokenizer().encode(role).tokens == [role[:-1], "Ċ"]


@given(st.text(max_size=40))
def test_any_text_round_trips(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False).ids
    assert tokenizer().decode(ids, skip_special_tokens=False) == tokenizer().normalizer.normalize_str(text)


def test_ids_are_distinct_and_few() -> None:
    ids = list(vars(token_ids()).values())
    assert len(set(ids)) == len(ids)
    assert max(ids) < ROWS_LIMIT
    assert tokenizer().get_vocab_size() + 4 == token_ids().tts_pad
    first = token_ids().endoftext
    assert [tokenizer().id_to_token(first + place) for place in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)


def test_training_gives_the_same_vocabulary_again() -> None:
    assert tokenizer.__wrapped__().to_str() == tokenizer().to_str()


def test_the_reference_reads_the_files_as_the_runtime_does(
    directory: Path, processor: Qwen2_5OmniProcessor, tmp_path: Path
) -> None:
    content, template = collect_tokenizer(directory)
    (tmp_path / "tokenizer.json").write_bytes(content)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    ours = Tokenizer.load(tmp_path / "tokenizer.json", tmp_path / "chat_template.jinja")
    for text in (*list(_texts())[::50], SYSTEM_PROMPT, "My grandmother: naïve 你好,  12 €\n\nx"):
        assert processor.tokenizer(text)["input_ids"] == ours.encode(text)
        assert ours.decode(ours.encode(text)) == text
    media = [{"type": "audio"}, {"type": "image"}, {"type": "video"}, {"type": "text", "text": "What's 7 - 5?"}]
    for system in ([], [{"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]}]):
        conversation = [*system, {"role": "user", "content": media}]
        rendered = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        assert processor.tokenizer(rendered)["input_ids"] == ours.encode_chat(conversation)


def test_the_settings_are_read_by_export_and_by_the_reference(directory: Path, processor: Qwen2_5OmniProcessor) -> None:
    vision = read_vision(directory, Section({"out_hidden_size": 256}, "vision_config"))
    audio = read_audio(directory, Section({"num_mel_bins": 128}, "audio_config"))
    assert (vision.image_min_pixels, vision.image_max_pixels) == (MIN_PIXELS, MAX_PIXELS)
    assert (audio.mel_bins, audio.max_frames) == (128, CHUNK_LENGTH_S * 100)
    batch = processor(
        text="<|audio_bos|><|AUDIO|><|audio_eos|><|vision_bos|><|IMAGE|><|vision_eos|>",
        audio=[np.zeros(32_000, np.float32)],
        images=[np.zeros((448, 448, 3), np.uint8)],
        return_tensors="np",
    )
    assert batch["image_grid_thw"].tolist() == [[1, 16, 16]]
    ids = batch["input_ids"][0].tolist()
    assert (ids.count(token_ids().audio), ids.count(token_ids().image)) == (50, 64)


def test_the_checkpoint_has_this_tokenizer() -> None:
    """Sentences changed after training would change the ids that the weights were trained with."""
    path = Path(__file__).parents[2] / "nano" / "checkpoint" / "tokenizer.json"
    if not path.is_file():
        pytest.skip("nano/checkpoint is not made yet: make nano")
    assert type(tokenizer()).from_file(str(path)).get_vocab() == tokenizer().get_vocab()
