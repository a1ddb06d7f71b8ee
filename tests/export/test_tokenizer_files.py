"""A tokenizer put together from Qwen2's older files beside the reference's, and every place a template can be in."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_tokenizer import tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from nearfield.errors import CheckpointError
from nearfield.export.tokenizer_files import collect_tokenizer
from nearfield.nano.published import SPECIAL_TOKENS
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

TEMPLATE = "{% for message in messages %}Größe{% endfor %}"
ADDED = {"<tool_call>": False, **dict.fromkeys(SPECIAL_TOKENS, True)}


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def _write_older_files(path: Path) -> dict[str, int]:
    """Write `vocab.json`, `merges.txt` and the added tokens, and return the ids of the added ones."""
    model = json.loads(tokenizer().to_str())["model"]
    _write_json(path / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"]), ""]
    (path / "merges.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")
    ids = {token: len(model["vocab"]) + place for place, token in enumerate(ADDED)}
    entries = {
        str(ids[token]): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special,
        }
        for token, special in ADDED.items()
    }  # fmt: skip
    _write_json(path / "tokenizer_config.json", {"added_tokens_decoder": entries, "chat_template": TEMPLATE})
    return ids


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Qwen2Tokenizer]:
    """The same older files, read by us and by the reference."""
    path = tmp_path_factory.mktemp("older")
    _write_older_files(path)
    content, _ = collect_tokenizer(path)
    return Tokenizer.from_str(content.decode()), Qwen2Tokenizer.from_pretrained(path, local_files_only=True)


def test_takes_tokenizer_json_as_it_is(checkpoint_3b: Path) -> None:
    content, template = collect_tokenizer(checkpoint_3b)
    assert content == (checkpoint_3b / "tokenizer.json").read_bytes()
    assert template == (checkpoint_3b / "chat_template.jinja").read_text(encoding="utf-8")


@given(st.text(max_size=40) | st.lists(st.sampled_from([*ADDED, " ", "word", "\n", "é"]), max_size=6).map("".join))
@example("It's 12 o'clock;  say\n\n  <|im_start|>user\nhello<|im_end|>\t<tool_call> Å é e\u0301 ﬁ 2025 你好。\r\n")
def test_older_files_give_the_reference_tokenizer(older: tuple[Tokenizer, Qwen2Tokenizer], text: str) -> None:
    ours, reference = older
    steps = reference.backend_tokenizer
    normalized = ours.normalizer.normalize_str(text)
    assert normalized == steps.normalizer.normalize_str(text)
    assert ours.pre_tokenizer.pre_tokenize_str(normalized) == steps.pre_tokenizer.pre_tokenize_str(normalized)
    encoding = ours.encode(text)
    assert encoding.ids == reference.encode(text)
    for skip in (True, False):
        decoded = reference.decode(encoding.ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(encoding.ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize("with_settings", [True, False])
def test_added_tokens_keep_their_ids(tmp_path: Path, with_settings: bool) -> None:
    ids = _write_older_files(tmp_path)
    if not with_settings:
        _write_json(tmp_path / "added_tokens.json", ids)
        _write_json(tmp_path / "tokenizer_config.json", {"chat_template": TEMPLATE})
    tokenizer = Tokenizer.from_str(collect_tokenizer(tmp_path)[0].decode())
    for token, special in ADDED.items():
        assert tokenizer.encode(f"a{token}b").ids[1] == tokenizer.token_to_id(token) == ids[token]
        assert (tokenizer.decode([ids[token]], skip_special_tokens=True) == "") == special


def test_windows_line_ends_in_merges_do_no_harm(tmp_path: Path) -> None:
    _write_older_files(tmp_path)
    expected, _ = collect_tokenizer(tmp_path)
    merges = tmp_path / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))
    assert collect_tokenizer(tmp_path)[0] == expected


def test_an_added_token_out_of_place_is_named(tmp_path: Path) -> None:
    ids = _write_older_files(tmp_path)
    first = next(iter(ids))
    (tmp_path / "tokenizer_config.json").unlink()
    _write_json(tmp_path / "added_tokens.json", {first: ids[first] + 5})
    message = f"added token {first!r} should have id {ids[first] + 5}, vocab.json leaves it {ids[first]}; the tokenizer"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        collect_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path, missing: str) -> None:
    _write_older_files(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(
        CheckpointError, match=r"no tokenizer: neither tokenizer\.json nor vocab\.json with merges\.txt"
    ):
        collect_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a tokenizer \(.*\); download the file again"):
        collect_tokenizer(tmp_path)


def test_merges_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    _write_older_files(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnever seen\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"vocab\.json and .*merges\.txt do not fit together .*; download both"):
        collect_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "decoder",
    [[1], {"one": {"content": "<|a|>"}}, {"1": {}}, {"1": {"content": 3}}, {"1": {"content": "a", "special": "yes"}}],
)
def test_damaged_added_tokens_are_refused(tmp_path: Path, decoder: object) -> None:
    _write_older_files(tmp_path)
    _write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with pytest.raises(CheckpointError, match=r"added tokens cannot be read \(.*\) from added_tokens\.json and"):
        collect_tokenizer(tmp_path)


def _jinja(path: Path) -> None:
    (path / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def _in_json(name: str, template: object = TEMPLATE) -> Callable[[Path], None]:
    return lambda path: _write_json(path / name, {"chat_template": template})


@pytest.mark.parametrize(
    "places",
    [
        [_jinja],
        [_in_json("chat_template.json")],
        [_in_json("tokenizer_config.json")],
        [_jinja, _in_json("chat_template.json", "second"), _in_json("tokenizer_config.json", "third")],
        [_in_json("chat_template.json"), _in_json("tokenizer_config.json", "third")],
        [_in_json("chat_template.json", None), _in_json("tokenizer_config.json")],
    ],
)
def test_the_template_comes_from_the_first_place_that_has_it(
    tmp_path: Path, places: list[Callable[[Path], None]]
) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    for write in places:
        write(tmp_path)
    assert collect_tokenizer(tmp_path)[1] == TEMPLATE


@pytest.mark.parametrize("config", [{}, {"chat_template": None}, {"chat_template": " \n"}, {"chat_template": [1]}])
def test_a_checkpoint_without_a_template_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    _write_json(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(CheckpointError, match=r"no chat template: expected it in chat_template\.jinja, chat_template"):
        collect_tokenizer(tmp_path)
