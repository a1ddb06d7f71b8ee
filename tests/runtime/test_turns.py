"""The chat template in pieces beside the template as a whole."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nearfield.errors import BundleError
from nearfield.runtime.tokenizer import Entry, Tokenizer
from nearfield.runtime.turns import Turns

SYSTEM = "You are a helpful voice."
PARTS: list[Entry] = [
    {"type": "text", "text": "hello"}, {"type": "audio"}, {"type": "image"}, {"type": "video"},
    {"type": "text", "text": "<|im_end|>"}, {"type": "text", "text": "\nassistant\n"},
]  # fmt: skip
CONTENT = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def tokenizer(checkpoint_3b: Path) -> Tokenizer:
    return Tokenizer.load(checkpoint_3b / "tokenizer.json", checkpoint_3b / "chat_template.jinja")


@given(st.lists(st.tuples(CONTENT, st.sampled_from(["Yes.", "a", "two words"])), max_size=3), CONTENT)
def test_a_conversation_is_the_row_of_its_pieces(
    tokenizer: Tokenizer, turns: list[tuple[list[Entry], str]], question: list[Entry]
) -> None:
    pieces = Turns(tokenizer, SYSTEM)
    ids = list(pieces.system_ids)
    entries: list[Entry] = [{"role": "system", "content": [{"type": "text", "text": SYSTEM}]}]
    for content, reply in turns:
        ids += pieces.user_ids(content) + tokenizer.encode(reply) + pieces.closing_ids
        entries.append({"role": "user", "content": content})
        entries.append({"role": "assistant", "content": [{"type": "text", "text": reply}]})
    entries.append({"role": "user", "content": question})
    assert ids + pieces.user_ids(question) == tokenizer.encode_chat(entries)


def test_a_template_that_rewrites_what_was_said_is_refused(checkpoint_3b: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}{% if loop.last %} now{% endif %}: "
        "{% for p in m.content %}{{ p.text }}{% endfor %}\n{% endfor %}",
        encoding="utf-8",
    )
    tokenizer = Tokenizer.load(checkpoint_3b / "tokenizer.json", template)
    with pytest.raises(BundleError, match="rewrites earlier turns"):
        Turns(tokenizer, SYSTEM)
