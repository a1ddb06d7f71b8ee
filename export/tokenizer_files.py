"""The tokenizer and the chat template of a checkpoint, whichever files it has them in.

Inputs: `tokenizer.json`, or `vocab.json` and `merges.txt` with the added tokens; `chat_template.jinja`, or
`chat_template.json`, or the entry of `tokenizer_config.json` → outputs: the text of `tokenizer.json` as bytes, and the
template as a string.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ..errors import CheckpointError
from .config import read_json

# Qwen2's pre-tokenizer: contractions, words with one leading mark, single digits, punctuation runs, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TOKEN_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def collect_tokenizer(path: Path) -> tuple[bytes, str]:
    """Return the contents of `tokenizer.json` and the chat template of the checkpoint in the directory `path`.

    Raises `CheckpointError` when a file is damaged, or when none of the places holds a tokenizer or a template.
    """
    return _tokenizer_json(path), _chat_template(path)


def _tokenizer_json(path: Path) -> bytes:
    tokenizer_path = path / "tokenizer.json"
    if not tokenizer_path.is_file():
        return _build(path).to_str().encode()
    content = tokenizer_path.read_bytes()
    try:
        Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{tokenizer_path} is not a tokenizer ({error}); download the file again") from error
    return content


def _build(path: Path) -> Tokenizer:
    """Put Qwen2's tokenizer together from its older files: NFC, byte-level BPE, added tokens."""
    vocabulary_path, merges_path = path / "vocab.json", path / "merges.txt"
    if not vocabulary_path.is_file() or not merges_path.is_file():
        raise CheckpointError(
            f"{path} has no tokenizer: neither tokenizer.json nor vocab.json with merges.txt; download them"
        )
    vocabulary, merges = read_json(vocabulary_path), _merges(merges_path)
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(
            f"{vocabulary_path} and {merges_path} do not fit together ({error}); download both again"
        ) from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token_id, token in sorted(_added_tokens(path).items()):
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(token.content) != token_id:
            raise CheckpointError(
                f"{path}: added token {token.content!r} should have id {token_id}, vocab.json leaves it "
                f"{tokenizer.token_to_id(token.content)}; the tokenizer's files are of different checkpoints: "
                "download them again"
            )
    return tokenizer


def _merges(path: Path) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.startswith("#version") or not line.strip():
            continue
        first, _, second = line.partition(" ")
        pairs.append((first, second))
    return pairs


def _added_tokens(path: Path) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary, by id: from `tokenizer_config.json` with all their settings, else by name alone."""
    tokens: dict[int, AddedToken] = {}
    try:
        for content, token_id in _entries(path / "added_tokens.json").items():
            special = content.startswith("<|") and content.endswith("|>")
            tokens[int(token_id)] = AddedToken(content, normalized=False, special=special)
        decoder = _entries(path / "tokenizer_config.json").get("added_tokens_decoder", {})
        for token_id, settings in decoder.items():
            flags = {flag: settings.get(flag, False) for flag in _TOKEN_FLAGS}
            tokens[int(token_id)] = AddedToken(settings["content"], **flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: added tokens cannot be read ({error!r}) from added_tokens.json and tokenizer_config.json; "
            "download both again"
        ) from error
    return tokens


def _chat_template(path: Path) -> str:
    jinja_path = path / "chat_template.jinja"
    found = [
        jinja_path.read_text(encoding="utf-8") if jinja_path.is_file() else None,
        _entries(path / "chat_template.json").get("chat_template"),
        _entries(path / "tokenizer_config.json").get("chat_template"),
    ]
    for template in found:
        if isinstance(template, str) and template.strip():
            return template
    raise CheckpointError(
        f"{path} has no chat template: expected it in chat_template.jinja, chat_template.json or "
        "tokenizer_config.json; download them again"
    )


def _entries(path: Path) -> dict[str, Any]:
    """Entries of a file that a checkpoint may lack."""
    return read_json(path) if path.is_file() else {}
