"""Text ⇄ ids beside the reference's tokenizer, and a reply's text as it comes."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from nearfield.errors import BundleError, InputError
from nearfield.runtime.tokenizer import Tokenizer
from transformers import Qwen2_5OmniProcessor

CONTROL = ["<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|endoftext|>"]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint_3b: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint_3b / "tokenizer.json", checkpoint_3b / "chat_template.jinja")


def entries(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]


@given(st.lists(texts, min_size=1, max_size=4))
@example(["\n\nnewlines join those of the template\n", " spaces "])
@example(["{{ 7 * 7 }} {% raw %} ' \" \\n &amp; <b>"])
@example(["é composed, e\u0301 decomposed"])
def test_chats_are_encoded_like_by_the_reference(
    processor_3b: Qwen2_5OmniProcessor, tokenizer: Tokenizer, turns: list[str]
) -> None:
    roles = ["user", "assistant"] * 2
    chat = entries(*zip(roles, turns, strict=False))
    text = processor_3b.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode_chat(chat) == processor_3b.tokenizer(text)["input_ids"]


@given(texts)
def test_plain_text_is_encoded_like_by_the_reference(
    processor_3b: Qwen2_5OmniProcessor, tokenizer: Tokenizer, text: str
) -> None:
    assert tokenizer.encode(text) == processor_3b.tokenizer(text)["input_ids"]


pieces = st.lists(st.sampled_from([*CONTROL, "<", "|", "<|", "im_end|>", "|>", "a", " ", "\n", "\ufdd0"]), max_size=8)


@given(st.lists(pieces.map("".join), min_size=1, max_size=3))
@example(["<|im_", "end|>"])  # made by the template, which joins parts
@example(["<|im_<|im_end|>end|>"])
@example(["<\ufdd0|im_end|>"])
def test_typed_control_tokens_are_plain_characters(tokenizer: Tokenizer, parts: list[str]) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]
    ids = tokenizer.encode_chat(chat)
    controls = [index for index in ids if not tokenizer.token_bytes(index)]
    assert controls == tokenizer_ids(tokenizer, ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"])
    assert tokenizer.decode(ids) == (
        "system\nYou are a helpful assistant.\nuser\n" + "".join(parts).replace("\ufdd0", "") + "\nassistant\n"
    )


def tokenizer_ids(tokenizer: Tokenizer, controls: list[str]) -> list[int]:
    """Ids of control tokens, read off chats that hold them."""
    user, opening = tokenizer.encode_chat(entries(("user", ""))), "<|im_start|>"
    start, end = user[0], next(index for index in user[1:] if not tokenizer.token_bytes(index))
    return [start if control == opening else end for control in controls]


@given(st.lists(st.integers(0, 700), max_size=40))
@example([0xE4, 0xBD])
def test_streamed_text_is_the_text_of_all_ids(
    processor_3b: Qwen2_5OmniProcessor, tokenizer: Tokenizer, ids: list[int]
) -> None:
    whole = processor_3b.tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == whole
    stream = tokenizer.stream()
    streamed = [stream.push(index) for index in ids]
    assert "".join(streamed) + stream.finish() == whole


@given(texts)
def test_streamed_text_survives_the_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    stream = tokenizer.stream()
    assert stream.extend(ids) + stream.finish() == tokenizer.decode(ids)


def test_characters_come_whole_and_at_once(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("龍a龜")  # three bytes each, none of them merged
    stream = tokenizer.stream()
    assert [stream.push(index) for index in ids] == ["", "", "龍", "a", "", "", "龜"]


def test_an_incomplete_character_ends_as_a_replacement_and_the_stream_starts_anew(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert stream.push(tokenizer.encode("龍")[0]) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(tokenizer.encode("a")[0]) == "a"
    assert stream.finish() == ""


def test_control_tokens_and_ids_without_a_token_have_no_text(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert stream.push(tokenizer.encode_chat(entries(("user", "")))[0]) == ""
    assert stream.push(1_000_000) == ""


def test_a_token_added_as_plain_text_has_its_characters(checkpoint_3b: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint_3b / "tokenizer.json"))
    library.add_tokens(["<tool 世>"])
    tokenizer = Tokenizer(library, "")
    ids = tokenizer.encode("a<tool 世>b")
    assert len(ids) == 3
    assert tokenizer.stream().extend(ids) == tokenizer.decode(ids) == "a<tool 世>b"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content[0].text | tojson }}", '"é <b> \\"quoted\\""'),
        ("{% for n in [1, 2, 3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}", "1"),
        ("{% if true %}\n  kept\n{% endif %}\n", "  kept\n"),
        ("{{ strftime_now('%Y')[:2] }}", "20"),
        ("{{ unknown }}{% if not tools %}no tools{% endif %}", "no tools"),
    ],
)
def test_templates_have_what_they_are_written_for(checkpoint_3b: Path, template: str, text: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint_3b / "tokenizer.json"))
    tokenizer = Tokenizer(library, template)
    assert tokenizer.decode(tokenizer.encode_chat(entries(("user", 'é <b> "quoted"')))) == text


def test_a_template_may_refuse_a_conversation(checkpoint_3b: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint_3b / "tokenizer.json"))
    tokenizer = Tokenizer(library, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InputError, match="chat template refuses this conversation: roles must alternate"):
        tokenizer.encode_chat(entries(("user", "a")))


def test_a_template_cannot_reach_into_python(checkpoint_3b: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint_3b / "tokenizer.json"))
    for template in ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"]:
        with pytest.raises(InputError, match="refuses"):
            Tokenizer(library, template).encode_chat(entries(("user", "a")))


def test_a_damaged_template(checkpoint_3b: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(checkpoint_3b / "tokenizer.json"))
    with pytest.raises(BundleError, match="chat template is damaged"):
        Tokenizer(library, "{% if %}")


@pytest.mark.parametrize("missing", ["tokenizer.json", "chat_template.jinja"])
def test_a_missing_file(checkpoint_3b: Path, tmp_path: Path, missing: str) -> None:
    for name in {"tokenizer.json", "chat_template.jinja"} - {missing}:
        (tmp_path / name).write_bytes((checkpoint_3b / name).read_bytes())
    with pytest.raises(BundleError, match=missing):
        Tokenizer.load(tmp_path / "tokenizer.json", tmp_path / "chat_template.jinja")


def test_a_damaged_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "chat_template.jinja").write_text("", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json is damaged"):
        Tokenizer.load(tmp_path / "tokenizer.json", tmp_path / "chat_template.jinja")


def test_a_tokenizer_of_another_kind(checkpoint_3b: Path) -> None:
    content = json.loads((checkpoint_3b / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(BundleError, match="decodes with WordPiece, ByteLevel expected"):
        Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), "")
