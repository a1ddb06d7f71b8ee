"""Text ⇄ token ids, with the checkpoint's own tokenizer and chat template.

Inputs: `tokenizer.json` and `chat_template.jinja` of a bundle; a conversation as the template's entries → outputs:
token ids of the prompt; ids of the reply, one at a time → text.

Control tokens (`<|im_end|>`, `<|AUDIO|>` …) come from the template only. The same characters in a person's text are
read as characters, so that nobody ends a turn or places media by typing.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import BundleError, InputError

Entry = dict[str, Any]
"""A message as the chat template sees it: `role`, and `content`: a list of `{"type": "text", "text": …}` or media."""

_MARK = "\ufdd0"
"""Keeps typed control tokens from being one: a code point Unicode sets aside for use inside programs."""


class Tokenizer:
    """A byte-level BPE tokenizer and a chat template."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, template: str) -> None:
        if not isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
            raise BundleError(
                f"the tokenizer decodes with {type(tokenizer.decoder).__name__}, ByteLevel expected; "
                "export the bundle again from a Qwen2.5-Omni checkpoint"
            )
        tokenizer.encode_special_tokens = True  # control tokens in a text are characters; encode_chat finds the others
        self._tokenizer = tokenizer
        self._control = {
            token.content: index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._control_ids = frozenset(self._control.values())
        try:
            self._template = _environment().from_string(template)
        except jinja2.TemplateError as error:
            raise BundleError(f"the chat template is damaged ({error}); export the bundle again") from error

    @classmethod
    def load(cls, tokenizer_path: Path, template_path: Path) -> Self:
        """Read the two files; raises `BundleError` when one is missing or damaged."""
        try:
            text = tokenizer_path.read_text(encoding="utf-8")
            template = template_path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"a file of the bundle cannot be read: {error}; export the bundle again") from error
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{tokenizer_path} is damaged ({error}); export the bundle again") from error
        return cls(tokenizer, template)

    def encode_chat(self, entries: Sequence[Entry], *, open_reply: bool = True) -> list[int]:
        """Return the ids of a conversation and the opening of the reply, one placeholder id for each media part.

        Raises `InputError` when the template refuses the conversation.
        """
        marked = [{**entry, "content": [self._mark(part) for part in entry["content"]]} for entry in entries]
        try:
            rendered = self._template.render(
                messages=marked, tools=None, documents=None, add_generation_prompt=open_reply
            )
        except (jinja2.TemplateError, TypeError) as error:  # a template can go wrong as any program can
            raise InputError(f"the checkpoint's chat template refuses this conversation: {error}") from error
        ids: list[int] = []
        for piece in self._control_pattern.split(rendered):
            control = self._control.get(piece)
            ids += self.encode(piece.replace(_MARK, "")) if control is None else [control]
        return ids

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; control tokens in it are characters like any other.

        Added tokens that the checkpoint does not call special, such as `<tool_call>`, are read as the tokens they are,
        as the reference does: they are words to the model and control nothing here.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of whole ids, without control tokens; bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> TextStream:
        """Return an empty stream that turns ids into text as they come."""
        return TextStream(self)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes an id stands for: none for a control token and for an id without a token."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._control_ids:
            return b""
        try:
            return bytes(_BYTE_OF_CHARACTER[character] for character in token)
        except KeyError:  # a token added as plain text, with characters the byte alphabet lacks
            return token.encode("utf-8")

    def _mark(self, part: Entry) -> Entry:
        """Put a mark behind every character that could begin a control token."""
        if "text" not in part:
            return part
        text: str = part["text"].replace(_MARK, "")
        for first in {control[0] for control in self._control}:
            text = text.replace(first, first + _MARK)
        return {**part, "text": text}


class TextStream:
    """Ids one at a time → text as soon as its characters are whole; all it returned, joined, is `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that `token_id` completes, often none: a character may be spread over several tokens."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return what is left when the reply is over, U+FFFD for a character that stayed incomplete, and start anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

    def extend(self, token_ids: Iterable[int]) -> str:
        """Return the text that several ids complete."""
        return "".join(self.push(token_id) for token_id in token_ids)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are written for: the settings and extras under which `transformers` renders them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would escape the characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes bytes as characters: visible Latin-1 as itself, the other 68 as U+0100 and on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF_CHARACTER = _byte_alphabet()
